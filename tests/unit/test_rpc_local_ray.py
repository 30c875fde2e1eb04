"""A local Ray is started again when the machine was too busy for Ray's own limit, and for no other reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from burnish.rpc import ray_ends
from burnish.rpc.local_ray import ATTEMPTS, PATIENCE, _marked, check_folder, start_local_ray

pytestmark = pytest.mark.unit

LATE = Exception("The current node timed out during startup. This could happen because some of the raylet failed to startup.")
TAKEN = Exception("The last 20 lines of dashboard.log:\n  in server_bind\n    self.socket.bind(self.server_address)")
BUSY = RuntimeError("Ray did not start within its 30 s, 3 times; is the machine too busy")


@pytest.mark.parametrize("mode", ["Disabled", "", "tokens", "k8s"])
def test_a_ray_that_would_ask_nobody_for_its_token_is_not_started(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    def init(**options: Any) -> None:
        raise AssertionError("it was started")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    monkeypatch.setattr("burnish.rpc.local_ray.require", lambda *args: None)
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(ValueError, match=f"RAY_AUTH_MODE={mode}: Ray listens on every address"):
        start_local_ray(num_cpus=1)


@pytest.mark.parametrize("own", [None, "7"])
def test_a_proxy_has_a_minute_to_be_ready_unless_the_environment_says_else(monkeypatch: pytest.MonkeyPatch, own: str | None) -> None:
    """Ray's own 5 s are too few where a machine is busy."""
    for name in PATIENCE:
        monkeypatch.setenv(name, "")  # so that what is set below is taken back afterwards
        monkeypatch.delenv(name)
    if own is not None:
        monkeypatch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", own)
    seen: list[str] = []
    started = SimpleNamespace(init=lambda **options: seen.append(os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"]))
    monkeypatch.setitem(sys.modules, "ray", started)
    monkeypatch.setattr("burnish.rpc.local_ray.require", lambda *args: None)
    start_local_ray(num_cpus=1)
    assert seen == [own or "60"]


@pytest.mark.parametrize(
    ("answers", "calls", "raises"),
    [
        (["started"], 1, None),
        ([LATE, LATE, "started"], 3, None),
        ([LATE] * 9, ATTEMPTS, BUSY),
        ([TAKEN, LATE, "started"], 3, None),
        ([TAKEN] * 9, ATTEMPTS, RuntimeError("Ray found a port taken that it had found free, 3 times")),
        ([ValueError("no such option"), "started"], 1, ValueError("no such option")),
    ],
)
def test_only_a_late_start_and_one_without_its_port_are_tried_again(
    monkeypatch: pytest.MonkeyPatch, answers: list[Any], calls: int, raises: Exception | None
) -> None:
    """A late one leaves processes behind, which Ray would keep beside the next ones."""
    given: list[dict[str, Any]] = []
    left: list[subprocess.Popen[bytes]] = []

    def init(**options: Any) -> Any:
        assert all(one.wait(10) for one in left), "what is left of an earlier try has ended"
        answer = answers[len(given)]
        given.append(options)
        if isinstance(answer, Exception):
            left.append(subprocess.Popen(["sleep", "600"]))
            raise answer
        return answer

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, shutdown=lambda: None))
    monkeypatch.setattr("burnish.rpc.local_ray.require", lambda *args: None)
    try:
        if raises is None:
            assert start_local_ray(num_cpus=2) == "started"
        else:
            with pytest.raises(type(raises), match=str(raises)):
                start_local_ray(num_cpus=2)
        assert given == [{"address": "local", "num_cpus": 2}] * calls
        if raises is BUSY:
            assert len(left) == ATTEMPTS and all(one.wait(10) for one in left)
    finally:
        for one in left:
            one.kill()
            one.wait(10)


def test_a_folder_called_burnish_where_one_starts_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_folder()
    (tmp_path / "burnish" / "rpc").mkdir(parents=True)
    (tmp_path / "burnish" / "__init__.py").touch()
    with pytest.raises(ValueError, match="holds a folder called burnish, which Python takes for this program"):
        start_local_ray(num_cpus=1)


RENAMED = "from ray._raylet import setproctitle; setproctitle('ray::Agent'); print(1, flush=True); input()"


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="marks are read as Linux shows them")
def test_a_process_of_ray_that_gave_itself_another_name_still_carries_its_mark() -> None:
    pytest.importorskip("ray")
    before = dict(os.environ)
    with _marked("abc"):  # a raylet hands its environment on in no order, and what stood before what Ray sets was written over
        environment = {ray_ends.MARK: os.environ[ray_ends.MARK], **os.environ, "RAY_CLIENT_MODE": "0"}
        command = [sys.executable, "-c", RENAMED]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert dict(os.environ) == before
    try:
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        assert Path(f"/proc/{process.pid}/comm").read_text() == "ray::Agent\n"
        assert ray_ends.marked("abc") == {process.pid: "ray::Agent"}
    finally:
        process.kill()
        process.communicate()
