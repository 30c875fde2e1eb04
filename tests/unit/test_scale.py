"""How many engines a run is to have: what a recipe may say, what is asked for while it is under way, and what a resumed one begins with."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.recipe.load import config_from_data
from burnish.recipe.resolve import ResolvedRun, resolve
from burnish.run import pipeline
from burnish.run.folder import create_run
from burnish.run.scale import FILE, ask_for_engines, at_size_asked, engines_asked, heed_size

pytestmark = pytest.mark.unit

WHAT: dict[str, Any] = {
    "name": "scaled", "model": "models/nano", "environment": "burnish/Arithmetic-v0", "platform": "cpu", "rft": {"steps": 3},
}  # fmt: skip
CLUSTER = {"ray_address": "auto", "env_runners": 2}


def resolved(**resources: Any) -> ResolvedRun:
    return resolve(config_from_data({**WHAT, "resources": resources}))


def test_a_recipe_says_how_few_and_how_many_engines_there_may_be() -> None:
    fixed, both, more = (
        resolved(**CLUSTER),
        resolved(**CLUSTER, min_env_runners=1, max_env_runners=4),
        resolved(**CLUSTER, max_env_runners=3),
    )
    assert [(one.placement.engines, one.placement.min_engines, one.placement.max_engines) for one in (fixed, both, more)] == [
        (2, None, None), (2, 1, 4), (2, None, 3),
    ]  # fmt: skip
    assert [one.placement.runners_line for one in (fixed, both, more)] == [
        "2 env runner(s)", "2 env runner(s), 1 to 4 as nodes come and go", "2 env runner(s), 2 to 3 as nodes come and go",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        (
            {"max_env_runners": 2},
            "max_env_runners has no effect without ray_address: no node joins or leaves a cluster that is started here",
        ),
        ({**CLUSTER, "min_env_runners": 3}, "env_runners = 2 is not between min_env_runners and max_env_runners, 3 and 2"),
        ({**CLUSTER, "max_env_runners": 1}, "env_runners = 2 is not between min_env_runners and max_env_runners, 2 and 1"),
        ({**CLUSTER, "min_env_runners": 0}, "min_env_runners"),
    ],
)
def test_what_cannot_be_is_refused(resources: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        resolved(**resources)


def test_a_run_begins_with_what_was_asked_for_as_far_as_there_is_room_for_certain(tmp_path: Path) -> None:
    def sizes(run: ResolvedRun) -> tuple[int, int | None, int | None]:
        found = at_size_asked(run, engines_asked(tmp_path)).placement
        return found.engines, found.min_engines, found.max_engines

    fixed, ranging = resolved(**CLUSTER), resolved(**CLUSTER, min_env_runners=2, max_env_runners=4)
    assert at_size_asked(fixed, engines_asked(tmp_path)) is fixed
    ask_for_engines(tmp_path, 3)
    assert (sizes(fixed), sizes(ranging)) == ((2, 2, 3), (2, 2, 3))
    ask_for_engines(tmp_path, 1)
    assert (sizes(fixed), sizes(ranging)) == ((1, 1, 1), (1, 1, 1))
    assert os.listdir(tmp_path) == [FILE]


class Under:
    """A run under way with two engines, and what was said of it."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[int] = []
        fleet = SimpleNamespace(runners={1: "one", 2: "another"})
        self.session = SimpleNamespace(algo=SimpleNamespace(fleet=fleet), scale=self.asked.append)
        self.folder, self.engines = SimpleNamespace(path=folder), None
        self.console = Console(record=True, width=400)

    def heed(self) -> str:
        heed_size(self)  # type: ignore[arg-type]
        return self.console.export_text()


def test_the_driver_heeds_each_request_once_and_says_so(tmp_path: Path) -> None:
    run = Under(tmp_path)
    assert run.heed() == "" and run.asked == []
    ask_for_engines(tmp_path, 3)
    assert "engines: 3 asked for, 2 there; others join where the cluster has room" in run.heed()
    assert run.heed() == ""
    ask_for_engines(tmp_path, 1)
    assert "engines: 1 asked for, 2 there; the last that came leave once they have played what they have" in run.heed()
    assert run.asked == [3, 1]
    for text in ('{"engines": 0}', '{"engines": "4"}', '{"engines": 2, "more": 1}', "[", ""):
        (tmp_path / FILE).write_text(text)
        said = run.heed()
        assert f"{FILE} does not say how many engines there are to be" in said and "The run goes on with the engines that it has" in said
        with pytest.raises(ValueError, match="ask again with `burnish runs scale"):
            engines_asked(tmp_path)
        ask_for_engines(tmp_path, 1)
        run.heed()


def test_what_is_asked_for_while_the_engines_start_is_heeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked, sizes = create_run(resolved(**CLUSTER), run_dir=tmp_path / "run"), list[int](), list[int]()
    ask_for_engines(folder.path, 1)

    @contextmanager
    def session_over(recipe: ResolvedRun, *others: Any) -> Iterator[Any]:
        sizes.append(recipe.placement.engines)
        ask_for_engines(folder.path, 2)
        algo = SimpleNamespace(fleet=SimpleNamespace(runners={1: "one"}))
        yield SimpleNamespace(recipe=recipe, files=None, algo=algo, scale=asked.append)

    monkeypatch.setattr(pipeline, "session_over", session_over)
    monkeypatch.setattr(pipeline, "parts_of", lambda *given: nullcontext({}))
    monkeypatch.setattr(pipeline, "_data", lambda *given: {})
    monkeypatch.setattr(pipeline, "dashboard_url", lambda: "")
    monkeypatch.setattr(pipeline, "keep_going", lambda run, done, phases: heed_size(run))
    monkeypatch.setattr("burnish.inspector.report.write_report", lambda path: None)
    pipeline._run(resolved(**CLUSTER), folder, False, Console(quiet=True), None)
    assert (sizes, asked) == ([1], [2])


def test_a_request_is_a_file_of_the_run_and_follows_no_link(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere.json"
    run.mkdir()
    elsewhere.write_text('{"engines": 7}')
    (run / FILE).symlink_to(elsewhere)
    with pytest.raises(ValueError, match="link"):
        engines_asked(run)
    (run / f".{FILE}.{os.getpid()}").symlink_to(elsewhere)
    ask_for_engines(run, 2)
    assert elsewhere.read_text() == '{"engines": 7}' and engines_asked(run) == 2 and not (run / FILE).is_symlink()


def test_the_command_says_whether_anybody_will_heed_it(tmp_path: Path) -> None:
    run = create_run(replace(resolved(), name="scaled"), run_dir=tmp_path / "run").path
    (run / "driver.lock").write_text("1")

    def scale(*more: str) -> str:
        found = CliRunner().invoke(app, ["runs", "scale", str(run), *more])
        assert found.exit_code == 0, found.output
        return found.stdout

    assert scale("--engines", "3") == f"no process is seen to drive {run}; it begins with 3 engines once it is resumed\n"
    with (run / "driver.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert scale("--engines", "1") == f"{run} is asked to have 1 engine, and says so at the end of its step\n"
        assert json.loads(scale("--engines", "2", "--json")) == {"schema": 1, "run": str(run), "engines": 2, "under_way": True}
    assert engines_asked(run) == 2
    for wrong in (["--engines", "0"], []):
        assert CliRunner().invoke(app, ["runs", "scale", str(run), *wrong]).exit_code == 2
    assert engines_asked(run) == 2
    (run / "config.json").unlink()
    assert "is not a run folder" in CliRunner().invoke(app, ["runs", "scale", str(run), "--engines", "2"]).stderr
