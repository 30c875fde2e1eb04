"""One process drives a run."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from burnish.rollout.store.sole_driver import LOCK, is_driven, sole_driver

pytestmark = pytest.mark.unit

HOLDS = """
import sys, time
from pathlib import Path
from burnish.rollout.store.sole_driver import sole_driver
with sole_driver(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_by_name_and_the_folder_is_free_when_the_first_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match=rf"is driven by process {first.pid} already; wait until it has ended"),
            sole_driver(tmp_path, print),
        ):
            pass
        first.send_signal(signal.SIGKILL)
    with sole_driver(tmp_path, print):
        assert (tmp_path / LOCK).read_text() == str(os.getpid())
    with sole_driver(tmp_path, print):
        pass


def test_whether_a_run_is_driven_is_told_by_a_folder_that_nobody_may_write(tmp_path: Path) -> None:
    assert is_driven(tmp_path) is None, "no process has driven it"
    with sole_driver(tmp_path, print):
        (tmp_path / LOCK).chmod(0o444)
        tmp_path.chmod(0o555)
        assert is_driven(tmp_path) is True
    assert is_driven(tmp_path) is False
    tmp_path.chmod(0o755)
    (tmp_path / LOCK).unlink()
    (tmp_path / LOCK).symlink_to(tmp_path / "elsewhere")
    assert is_driven(tmp_path) is None and not (tmp_path / "elsewhere").exists()


def test_who_only_asks_takes_the_run_from_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sole_driver(tmp_path, print):
        pass
    asking = os.open(tmp_path / LOCK, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    assert is_driven(tmp_path) is False, "another asks as well"
    monkeypatch.setattr("burnish.rollout.store.sole_driver.time.sleep", lambda seconds: os.close(asking))
    with sole_driver(tmp_path, print):
        assert is_driven(tmp_path) is True


def test_where_nothing_can_be_locked_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    said: list[str] = []
    with sole_driver(tmp_path, said.append):
        assert is_driven(tmp_path) is None
    assert said == [f"{tmp_path} cannot be locked (No locks available): see to it that no second process resumes it meanwhile"]


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"), sole_driver(tmp_path, print):
        pass
    assert not (tmp_path / "elsewhere").exists()
