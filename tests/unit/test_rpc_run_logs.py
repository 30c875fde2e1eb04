"""The logs of a run under its name, in a folder of Ray's logs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from burnish.rpc.run_logs import link_services, run_namespace

pytestmark = pytest.mark.unit

PROGRAM = """
import os, sys
from burnish.rpc.run_logs import link_actor
link_actor(sys.argv[1], "learner-0")
print(os.getpid())
"""


def written(place: Path, namespace: str) -> str:
    """Have a process write where Ray has an actor write; its number."""
    out = place / "worker-1-f-2.out"
    with out.open("wb") as file, (place / "worker-1-f-2.err").open("wb") as errors:
        subprocess.run([sys.executable, "-c", PROGRAM, namespace], stdout=file, stderr=errors, timeout=120, check=True)
    return out.read_text().strip()


@pytest.mark.parametrize(
    ("name", "folder"), [("nano-1", "nano-1"), ("my [run] */\n", "my_run_"), ("../\udc80", ".._"), ("x" * 300, "x" * 100)]
)
def test_what_an_actor_writes_is_found_under_its_name_in_the_folder_of_its_run(tmp_path: Path, name: str, folder: str) -> None:
    for _ in range(2):  # it was started again
        number = written(tmp_path, run_namespace(name))
        assert (tmp_path / f"burnish-{folder}" / f"learner-0-{number}.out").read_text().strip() == number
        assert (tmp_path / f"burnish-{folder}" / f"learner-0-{number}.err").read_text() == ""
    assert len(list(tmp_path.glob("burnish-*"))) == 1 and len(list((tmp_path / f"burnish-{folder}").iterdir())) == 4


@pytest.mark.parametrize("namespace", ["a-uuid", "burnish-services"])
def test_what_is_of_no_run_is_left_as_it_is(tmp_path: Path, namespace: str) -> None:
    written(tmp_path, namespace)
    assert list(tmp_path.glob("burnish-*")) == []


def test_a_process_of_a_run_that_ray_does_not_redirect_is_left_as_it_is(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, run_namespace("nano-1")], capture_output=True, timeout=120, check=True)
    assert done.stdout.strip().isdigit()


def test_the_services_of_a_run_are_found_beside_its_actors(tmp_path: Path) -> None:
    for run in ("first", "second"):  # a run of the same name comes after it
        (services := tmp_path / run / "nano" / "logs").mkdir(parents=True)
        (services / "verdicts.log").write_text(run)
        link_services(tmp_path, run_namespace("nano"), services)
        assert (tmp_path / "burnish-nano" / "services" / "verdicts.log").read_text() == run
