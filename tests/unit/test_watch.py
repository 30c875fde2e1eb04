"""`burnish runs watch`: what a run's folder tells on one screen, while the run goes on and at its end."""

from __future__ import annotations

import io
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.unit.stored_run import played, recipe, seeded, stored, tiny_model
from tests.unit.test_compare import burnish, make_run

from burnish.inspector.library import Library
from burnish.inspector.runs import read_run
from burnish.inspector.watching import Rewards, Watched, facts, lines, screen, sparkline
from burnish.rollout.store.json_lines import JsonLines
from burnish.rollout.store.records import AlarmRow, LedgerRow
from burnish.rollout.store.sole_driver import sole_driver

pytestmark = pytest.mark.unit

HOSTILE = "[bold]\x1b[2J\u202eparting\nof ways[/bold]"


def write(file: Path, *rows: dict[str, Any]) -> None:
    with JsonLines(file) as lines:
        for row in rows:
            lines.append(row)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two of forty steps, of 20 seconds each."""
    folder = make_run(tmp_path / "runs", "first", 0, 1e-5)
    config = json.loads((folder / "config.json").read_text())
    config |= {"sft": None, "dpo": {"steps": 2}, "rft": {"steps": 40}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").unlink()
    of_step = {"phase": "rft", "episodes": 8.0, "failed": 2.0, "rewarded": 6.0}
    busy = {f"{state}/{part}_seconds": 5.0 for state in ("busy", "idle") for part in ("engine", "environment", "rewards", "learner")}
    steps = [{**of_step, **busy, "step": i, "time": 1000.0 + 20 * i, "reward_mean": 0.25 * i, "success": 0.5} for i in (1, 2)]
    write(folder / "metrics.jsonl", *steps)
    write(
        folder / "ledger.jsonl",
        LedgerRow(phase="rft", step=2, issued=20, trained=8, masked={"env_error": 4}, dropped={"zero_variance": 4}, carried=4).to_row(),
    )
    write(
        folder / "alarms.jsonl",
        *(AlarmRow(phase="rft", step=i, guard="parting", action="warn", text=HOSTILE).to_row() for i in range(5)),
    )
    return folder


def of(run: Path, rewards: Rewards = (), live: bool = True) -> list[tuple[str, str]]:
    return list(facts(Watched(read_run(run), rewards, live, 1055.0)))


def test_one_screen_says_where_a_run_is(run: Path) -> None:
    told = of(run, [(1, 0.25, 0.2, 0.3), (2, 0.5, 0.4375, 0.5625)])
    assert [name for name, _ in told if name not in ("alarm", "")] == [
        "run", "step", "time left", "in flight", "reward", "success", "failed", "evaluated", "alarms", "busy",
    ]  # fmt: skip
    said = dict(told)
    assert said["run"] == "first, under way"
    assert said["step"] == "rft 2 of 40"
    assert said["time left"] == "about 13 min of rft, at 20 s a step"
    assert said["in flight"] == "rft 3, 4 attempts on their way after step 2, written 15 s ago"
    assert said["reward"] == "▁█ 0.5 (0.4375 to 0.5625)"
    assert said["success"] == "▁▁ 0.5 (n = 6)"
    assert said["failed"] == "2 of 8 in step 2; since the phase began, not trained on: 4 env_error, 4 zero_variance"
    assert said["evaluated"].startswith("after rft ") and said["evaluated"].endswith("n = 7")
    assert said["busy"] == "engines 50%, environments and tools 50%, rewards and verifiers 50%, learner 50%, in the last 2 steps"
    assert [value.split(":")[0] for name, value in told if name == "alarm"] == ["rft 4 parting", "rft 3 parting", "rft 2 parting"]
    assert said["alarms"] == "2 more before these"


def test_the_time_left_is_that_of_steps_and_not_of_the_pause_before_a_resume(run: Path) -> None:
    of_step = {"phase": "rft", "reward_mean": 0.5}
    write(run / "metrics.jsonl", *({**of_step, "step": i, "time": 90_000.0 + 20 * i, "step_seconds": 15.0 + i} for i in (3, 4)))
    assert dict(of(run))["time left"] == "about 11 min of rft, at 18.5 s a step"
    write(run / "metrics.jsonl", *({**of_step, "step": i, "time": 90_000.0 + 20 * i, "step_seconds": 3.0} for i in range(5, 20)))
    assert dict(of(run))["time left"] == "about 63 s of rft, at 3 s a step"


def test_the_time_left_has_room_for_the_measurements_on_held_out_tasks(run: Path) -> None:
    steps = [{"phase": "rft", "step": i, "time": 2000.0 + i, "step_seconds": 15.0} for i in (3, 4)]
    write(run / "metrics.jsonl", steps[0], {**steps[1], "held_out/seconds": 40.0})
    assert dict(of(run))["time left"] == "about 15 min of rft, at 25 s a step"


def test_where_a_share_is_stored_the_interval_is_said_to_be_of_that(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    for share, said in ((0.25, "▁█ 0.5 (0.4375 to 0.5625, of those that are stored)"), (1.0, "▁█ 0.5 (0.4375 to 0.5625)")):
        (run / "config.json").write_text(json.dumps({**config, "episodes": {"share": share}}))
        assert dict(of(run, [(2, 0.5, 0.4375, 0.5625)]))["reward"] == said


def test_a_run_that_is_over_or_has_not_begun_says_less(run: Path) -> None:
    said = dict(of(run, live=False))
    assert said["run"] == "first, no process is seen to drive it" and not {"time left", "in flight"} & set(said)
    (run / "report.html").write_text("")
    assert dict(of(run, live=False))["run"] == "first, has ended"
    for name in ("metrics.jsonl", "evaluations.jsonl", "ledger.jsonl", "alarms.jsonl"):
        (run / name).unlink()
    assert of(run) == [("run", "first, under way"), ("step", "none yet")]


def test_a_phase_before_others_names_them_and_shows_its_loss(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    write(run / "metrics.jsonl", {"phase": "dpo", "step": 2, "time": 9.0, "loss": 0.5, "step_seconds": 3.0})
    said = dict(of(run))
    assert (said["step"], said["loss"]) == ("dpo 2 of 2, then rft", "▁ 0.5")
    assert "time left" not in said and said["in flight"].startswith("what comes after dpo 2")


@pytest.mark.parametrize(
    "odd", [{"time": 0.0}, {"time": 2.0**53}, {"step": 10**9}, {"reward_mean": -1.7e308}, {"reward_mean": 1.7e308}, {"failed": 1e300}]
)
def test_any_numbers_of_a_folder_make_a_screen(run: Path, odd: dict[str, Any]) -> None:
    write(run / "metrics.jsonl", {"phase": "rft", "step": 3, "time": 1060.0, "episodes": 8.0, "reward_mean": 0.5, **odd})
    assert lines(Watched(read_run(run), (), True, 1070.0))


@pytest.mark.parametrize("steps", [2**53 + 1, 10**400, -1, True, "40", 40.0, None])
def test_steps_that_a_phase_cannot_have_are_not_counted_to(run: Path, steps: object) -> None:
    (run / "config.json").write_text(json.dumps({"rft": {"steps": steps}}))
    said = dict(of(run))
    assert said["step"] == "rft 2" and "time left" not in said
    (run / "config.json").write_text(json.dumps({"rft": {"steps": 2**53}}))
    assert dict(of(run))["step"] == f"rft 2 of {2**53}"


def test_nothing_that_a_run_wrote_steers_the_terminal(run: Path) -> None:
    shown = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    shown.print(screen(Watched(read_run(run), (), True, 1055.0)))
    assert isinstance(shown.file, io.StringIO)
    text = shown.file.getvalue()
    for said in (text, "\n".join(lines(Watched(read_run(run), (), True, 1055.0)))):
        assert "\x1b[2J" not in said and "\u202e" not in said
        assert "[bold]\\x1b[2J\\u202eparting\\nof ways[/bold]" in said


def test_a_sparkline_is_as_wide_as_its_last_values() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([2.0, 2.0]) == "▁▁" and sparkline([]) == sparkline([float("nan")]) == ""
    assert sparkline([-1.7e308, float("inf"), 1.7e308]) == "▁█"
    assert len(sparkline([float(i) for i in range(100)])) == 40


def test_in_a_pipe_it_prints_what_is_known_once(run: Path) -> None:
    done = burnish("runs", "watch", run)
    assert done.exit_code == 0 and done.stdout.startswith("run        first, under way\nstep       rft 2 of 40\n")
    assert done.stderr == ""


def test_on_a_terminal_it_is_drawn_anew_until_the_run_ends(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, driver = io.StringIO(), ExitStack()
    driver.enter_context(sole_driver(run, print))
    for file in run.iterdir():
        os.utime(file, (0, 0))
    monkeypatch.setattr("burnish.run.display.new_console", lambda: Console(file=seen, width=100, force_terminal=True))

    def goes_on(seconds: float) -> None:
        """What the run does while nobody looks."""
        assert "rft 2 of 40" in seen.getvalue()
        write(run / "metrics.jsonl", {"phase": "rft", "step": 3, "time": 1060.0, "reward_mean": 0.75})
        driver.close()

    monkeypatch.setattr("burnish.cli.runs_command.time.sleep", goes_on)
    done = burnish("runs", "watch", run)
    assert done.exit_code == 0 and seen.getvalue().rindex("rft 3 of 40") > seen.getvalue().rindex("rft 2 of 40")
    assert done.stderr == f"no process is seen to drive the run, which has no report; `burnish run {run} --resume` takes it on\n"


def test_ctrl_c_ends_the_looking_alone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("burnish.run.display.new_console", lambda: Console(file=io.StringIO(), width=100, force_terminal=True))
    monkeypatch.setattr("burnish.cli.runs_command.time.sleep", interrupted)
    before = {file: file.read_bytes() for file in run.iterdir()}
    done = burnish("runs", "watch", run)
    assert (done.exit_code, done.stderr) == (130, "interrupted\n")
    assert {file: file.read_bytes() for file in run.iterdir()} == before


def test_the_interval_is_that_of_the_stored_episodes(tmp_path: Path) -> None:
    made = recipe(tiny_model(tmp_path / "tiny"), "burnish/Arithmetic-v0")
    folder = stored(made, played(made, seeded(8), ["7", "12", "19"], 3), tmp_path / "run", step=4)
    write(folder / "metrics.jsonl", {"phase": "rft", "step": 4, "time": 1.0, "reward_mean": 0.125})
    ((_, _, low, high),) = Library(folder / "episodes").rewards("rft")
    assert f"({low:.4g} to {high:.4g})" in burnish("runs", "watch", folder).stdout


def test_episodes_that_are_stored_after_the_row_of_their_step_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, shown = recipe(tiny_model(tmp_path / "tiny"), "burnish/Arithmetic-v0"), io.StringIO()
    home = stored(made, played(made, seeded(8), ["7", "12", "19"], 3), tmp_path / "run", step=4)
    write(home / "metrics.jsonl", {"phase": "rft", "step": 4, "time": 1.0, "reward_mean": 0.125})
    (file,) = (home / "episodes").glob("*.parquet")
    later = file.rename(tmp_path / file.name)
    os.utime(home / "episodes", (0, 0))
    monkeypatch.setattr("burnish.run.display.new_console", lambda: Console(file=shown, width=100, force_terminal=True))
    driver, looks = ExitStack(), list[str]()
    driver.enter_context(sole_driver(home, print))

    def goes_on(seconds: float) -> None:
        looks.append(shown.getvalue())
        if later.exists():
            later.rename(file)
        else:
            driver.close()

    monkeypatch.setattr("burnish.cli.runs_command.time.sleep", goes_on)
    assert burnish("runs", "watch", home).exit_code == 0
    assert ["0.125 (" in look for look in looks] == [False, True]
