"""Two runs or more side by side: as values, as a page, as one file and on the terminal; and the commands that list and follow runs."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from starlette.testclient import TestClient
from tests.unit.stored_run import played, recipe, seeded, stored, tiny_model
from tests.unit.test_inspector import EVIL, evaluation
from tests.unit.test_inspector_pages import Elements
from typer.testing import CliRunner, Result

from burnish.cli.main import app
from burnish.inspector.charts import Series, Whisker, line_chart, nice_ticks, overlay_chart, whisker_chart
from burnish.inspector.comparing import comparison_page, other_settings, side_by_side
from burnish.inspector.library import Library
from burnish.inspector.pages.app import pages
from burnish.inspector.text import number
from burnish.rollout.store.json_lines import JsonLines
from burnish.rollout.store.sole_driver import sole_driver

pytestmark = pytest.mark.unit

TASKS = {"a": (0.0, 1.0), "b": (0.0, 1.0), "c": (1.0, 0.0), "d": (1.0, 1.0), "e": (0.0, 1.0), "f": (0.0, 1.0)}
"""Success on each task before and after."""


def make_run(home: Path, name: str, side: int, lr: float, **changes: Any) -> Path:
    folder = home / name
    folder.mkdir(parents=True)
    config = {"name": "demo", "model": EVIL, "environment": "burnish/Arithmetic-v0", "rft": {"lr": lr, "steps": 2}, "plugins": []}
    for file, content in (("config.json", config), ("seeds.json", {"run": side}), ("versions.json", {"python": "3.11.9", "packages": {}})):
        (folder / file).write_text(json.dumps(content))
    with JsonLines(folder / "metrics.jsonl") as lines:
        for step in (1, 2):
            lines.append({"phase": "rft", "step": step, "time": float(step), "reward_mean": 0.25 * (step + side), "success": 0.5})
    success = {task: pair[side] for task, pair in TASKS.items()} | {f"only-{side}": 1.0}
    mean = sum(success.values()) / len(success)
    with JsonLines(folder / "evaluations.jsonl") as lines:
        lines.append(evaluation("rft", mean, task_success=success, **changes).to_row())
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    made = [make_run(tmp_path / "runs", "first", 0, 1e-5), make_run(tmp_path / "runs", "other <b>", 1, 3e-5)]
    for began, folder in enumerate(made):
        os.utime(folder / "seeds.json", (1e9 + began, 1e9 + began))
    return made


def burnish(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_settings_that_differ_stand_by_their_fields() -> None:
    one = {"rft": {"lr": 1e-5, "blend": [{"share": 1}]}, "model": "nano", "plugins": []}
    other = {"rft": {"lr": 3e-5, "blend": [{"share": 2}]}, "model": "nano", "plugins": ["a.py"], "seed": 1}
    assert other_settings([one, other]) == {
        "plugins": ("[]", '["a.py"]'),
        "rft.blend.0.share": ("1", "2"),
        "rft.lr": ("1e-05", "3e-05"),
        "seed": ("–", "1"),
    }
    assert other_settings([one, one, one]) == {}


def test_evaluations_are_paired_task_by_task(runs: list[Path]) -> None:
    (pair,) = side_by_side(runs).paired
    assert (pair.run, pair.phase, pair.mode) == ("other <b>", "rft", "sampled")
    assert pair.change is not None
    # four tasks won, one lost, one the same: three of six points gained; binomial tail of 4 of 5
    assert (pair.change.difference, pair.change.n, pair.change.unpaired) == (0.5, 6, 2)
    assert pair.change.p_value == pytest.approx(6 / 32)
    assert [task for task, *_ in pair.better] == ["a", "b", "e", "f"]
    assert pair.worse == (("c", 1.0, 0.0),)


def test_what_cannot_be_paired_is_not(tmp_path: Path, runs: list[Path]) -> None:
    third = make_run(tmp_path, "third", 1, 1e-5, success_part="another")
    first, second = side_by_side([*runs, third]).paired
    assert first.change is not None and second.change is None and second.better == ()


@pytest.mark.parametrize(
    ("field", "values"),
    [("temperature", (1.0, 0.2)), ("max_turns", (1, 8)), ("max_tokens_per_turn", (64, 512)), ("template_args", ({}, {"a": 1}))],
)
def test_runs_that_were_not_played_alike_have_no_test(runs: list[Path], field: str, values: tuple[Any, Any]) -> None:
    for folder, value in zip(runs, values, strict=True):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "rollout": {field: value}}))
    (pair,) = side_by_side(runs).paired
    assert (pair.change, pair.better, pair.worse) == (None, (), ())


def test_runs_that_make_no_comparison_are_refused(tmp_path: Path, runs: list[Path]) -> None:
    for paths, said in (
        ([runs[0]], "2 to 6 different runs"),
        ([runs[0], runs[0]], "2 to 6 different runs"),
        ([runs[0], make_run(tmp_path / "elsewhere", "first", 1, 1e-5)], "called 'first'"),
        ([runs[0], tmp_path], "is not a run folder"),
    ):
        with pytest.raises(ValueError, match=said):
            side_by_side(paths)


def test_the_reward_of_a_step_is_the_mean_over_tasks_with_its_interval(tmp_path: Path) -> None:
    run = recipe(tiny_model(tmp_path / "tiny"), "burnish/Arithmetic-v0")
    folder = stored(run, played(run, seeded(8), ["7", "12", "19"], 3), tmp_path / "run", step=4)
    ((step, mean, low, high),) = Library(folder / "episodes").rewards("rft")
    assert step == 4 and 0 <= mean <= 1 and mean - low == pytest.approx(high - mean)
    assert Library(folder / "episodes").rewards("sft") == []


def test_lines_are_drawn_with_their_bands_and_labels_stay_text() -> None:
    lines = [Series("a", ((1, 0.5, 0.4, 0.6), (2, 0.7, 0.6, 0.8))), Series(EVIL, ((1, 0.2, 0.2, 0.2),)), Series("empty", ())]
    svg = str(overlay_chart("success", lines, "step"))
    assert svg.count("<polygon") == 1 and svg.count("<polyline") == 2 and "s2" not in svg
    assert "<script" not in svg and "\x1b" not in svg
    assert overlay_chart("nothing", [Series("a", ())], "step") == ""


def evaluated(folder: Path, *found: tuple[str, int, str, float]) -> None:
    with JsonLines(folder / "evaluations.jsonl") as lines:
        for phase, step, mode, success in found:
            lines.append(evaluation(phase, success, mode, step).to_row())


def test_success_is_compared_in_one_mode_and_after_the_same_phase(tmp_path: Path) -> None:
    first, other = (make_run(tmp_path, name, 0, 1e-5) for name in ("first", "other"))
    for folder in (first, other):
        (folder / "evaluations.jsonl").unlink()
    both = [(mode, off) for mode, off in (("sampled", 0.0), ("greedy", 0.5))]
    evaluated(first, *((phase, step, mode, 0.25 + off) for phase, step in (("base", 0), ("rft", 9)) for mode, off in both))
    evaluated(other, ("sft", 3, "greedy", 0.5), ("rft", 9, "greedy", 0.625))
    ((mode, svg),) = side_by_side([first, other]).success.items()
    assert mode == "greedy" and "success on held-out tasks, greedy, base step 0 to rft step 9" in svg
    titles = re.findall(r'cx="([0-9.]+)".*?<title>(.*?)</title>', svg)
    assert [said for _, said in titles] == [
        "first, base step 0: 0.75", "first, rft step 9: 0.75", "other, sft step 3: 0.5", "other, rft step 9: 0.625",
    ]  # fmt: skip
    xs = [float(x) for x, _ in titles]
    assert xs[0] < xs[2] < xs[1] == xs[3], "what was measured after the same step stands at one place"
    assert "success on held-out tasks, greedy</b>" in comparison_page([first, other])


def test_runs_that_share_no_mode_have_a_drawing_for_each(tmp_path: Path) -> None:
    first, other, none = (make_run(tmp_path, name, 0, 1e-5) for name in ("first", "other", "none"))
    (none / "evaluations.jsonl").unlink()
    (other / "evaluations.jsonl").unlink()
    evaluated(other, ("rft", 1, "greedy", 0.5))
    found = side_by_side([first, other, none]).success
    assert list(found) == ["sampled", "greedy"]
    assert [("first" in svg, "other" in svg) for svg in found.values()] == [(True, False), (False, True)]


@pytest.fixture
def client(runs: list[Path]) -> Iterator[TestClient]:
    with TestClient(pages(runs[0].parent), base_url="http://127.0.0.1:8266") as client:
        yield client


def test_the_page_compares_what_was_ticked(client: TestClient) -> None:
    listed = Elements(client.get("/rollouts").text).found
    ticks = [attrs["value"] for tag, attrs in listed if tag == "input"]
    assert sorted(str(tick) for tick in ticks) == ["first", "other <b>"]
    answer = client.get("/rollouts/-/compare", params={"run": ["other <b>", "first"]})
    assert answer.status_code == 200
    page = answer.text
    assert "+50.0" in page and "3e-05" in page and "one-sided p = 0.1875, sign test, n = 6" in page and "Most regressed" in page
    assert "<b>nano" not in page and "other <b>" not in page and not [tag for tag, _ in Elements(page).found if tag in {"img", "iframe"}]
    assert [attrs["src"] for tag, attrs in Elements(page).found if tag == "script"] and "alert(" in page  # shown, not run
    for names, status in ((["first"], 400), (["first", "nobody"], 410), ([], 400), (["../first", "first"], 410)):
        assert client.get("/rollouts/-/compare", params={"run": names}).status_code == status


def test_one_file_holds_the_comparison(runs: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "c.html"
    done = burnish("report", *runs, "--out", target)
    assert (done.output.strip(), done.exit_code) == (str(target), 0)
    page = target.read_text()
    elements = Elements(page).found
    assert not [tag for tag, _ in elements if tag in {"script", "link", "img", "iframe", "a"}]
    assert "default-src 'none'; style-src 'unsafe-inline'" in page and "+50.0" in page
    assert burnish("report", runs[0]).output.strip() == str(runs[0] / "report.html")
    for given, page_of in ((runs, target), (runs[:1], tmp_path / "one.html")):
        said = burnish("report", *given, "--out", page_of, "--json").output
        assert json.loads(said) == {"schema": 1, "written": [str(page_of)]}
    assert "2 to 6 different runs" in burnish("report", runs[0], runs[0]).stderr
    for given in (runs, runs[:1]):
        nowhere = burnish("report", *given, "--out", target.parent / "none" / "x.html")
        assert (
            nowhere.stderr
            == f"error: {target.parent}/none/x.html: there is no folder {target.parent}/none; make it, or give another file\n"
        )


def test_runs_are_listed_shown_and_compared_on_the_terminal(runs: list[Path]) -> None:
    rows = {row["run"]: row for row in json.loads(burnish("runs", "list", runs[0].parent, "--json").output)}
    assert [rows["first"][key] for key in ("phase", "step", "success", "tasks")] == ["rft", 2, pytest.approx(3 / 7), 7]
    assert "42.9% (n = 7)" in burnish("runs", "list", runs[0].parent).output
    shown = burnish("runs", "show", runs[0])
    assert shown.exit_code == 0 and "42.9%" in shown.output and "\x1b" not in shown.output
    whole = json.loads(burnish("runs", "show", runs[0], "--json").output)
    assert whole["evaluations"][0]["phase"] == "rft" and whole["alarms"] == []
    said = burnish("runs", "diff", *runs).output
    assert "rft.lr" in said and "85.7% (n = 7) against 42.9% (n = 7): +50.0 points" in said and "most regressed: c 1 -> 0" in said
    found = json.loads(burnish("runs", "diff", *runs, "--json").output)
    assert found["settings"] == {"rft.lr": {"first": "1e-05", "other <b>": "3e-05"}}
    assert found["evaluations"][0]["change"]["difference"] == 0.5


def test_of_alarms_that_cannot_be_read_the_run_that_is_shown_says_where_they_stand(runs: list[Path]) -> None:
    (runs[0] / "alarms.jsonl").write_text(
        'no json\n{"schema": 1, "phase": "rft", "step": 2, "guard": "kl", "action": "warn", "text": "far"}\n'
    )
    shown = burnish("runs", "show", runs[0])
    assert shown.exit_code == 0 and "a line cannot be read: alarms.jsonl:1: not JSON" in shown.stderr and "42.9%" in shown.stdout
    whole = json.loads(burnish("runs", "show", runs[0], "--json").stdout)
    assert [one["guard"] for one in whole["alarms"]] == ["kl"] and whole["unread"][0].startswith("alarms.jsonl:1: ")
    assert whole["unread_others"] == 0 and "more lines" not in shown.stderr
    (runs[0] / "alarms.jsonl").write_text(
        '{"schema": 1, "%s": 1}\n' % ("k" * 100_000) + '{"schema": "%s"}\n' % ("s" * 100_000) + "x\n" * 9_000
    )
    (runs[0] / "roll_backs.jsonl").write_text("x\n" * 1_000)
    shown = burnish("runs", "show", runs[0])
    assert shown.stderr.count("a line cannot be read: ") == 6 and "9996 more lines cannot be read" in shown.stderr
    told = burnish("runs", "show", runs[0], "--json")
    assert told.stderr == shown.stderr
    whole = json.loads(told.stdout)
    assert len(whole["unread"]) == 6 and max(map(len, whole["unread"])) < 700 and whole["unread_others"] == 9_996


def test_tail_goes_on_until_the_run_has_its_report(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert burnish("runs", "tail", runs[0], "-n", "1").output == "rft     2  reward_mean 0.5  success 0.5\n"
    assert json.loads(burnish("runs", "tail", runs[0], "-n", "1", "--json").output)["reward_mean"] == 0.5

    def goes_on(seconds: float) -> None:
        """What the run does while nobody looks."""
        with JsonLines(runs[0] / "metrics.jsonl") as lines:
            lines.append({"phase": "rft", "step": 3, "time": 3.0, "success": 0.75, "rewarded": 16.0})
        (runs[0] / "report.html").write_text("")

    monkeypatch.setattr("burnish.cli.runs_command.time.sleep", goes_on)
    assert burnish("runs", "tail", runs[0], "-n", "0", "--follow").output == "rft     3  success 0.75 (n = 16)\n"


def test_tail_ends_with_the_process_that_drives_the_run_and_not_before(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (runs[0] / "report.html").write_text("of the run before it was resumed")
    driver = ExitStack()
    driver.enter_context(sole_driver(runs[0], print))

    def goes_on(seconds: float) -> None:
        with JsonLines(runs[0] / "metrics.jsonl") as lines:
            lines.append({"phase": "rft", "step": 3, "time": 3.0, "success": 0.75})
        (runs[0] / "report.html").unlink()
        driver.close()  # as the system does when it is killed

    monkeypatch.setattr("burnish.cli.runs_command.time.sleep", goes_on)
    found = burnish("runs", "tail", runs[0], "-n", "0", "--follow")
    assert found.stdout == "rft     3  success 0.75\n"
    assert found.stderr == f"no process is seen to drive the run, which has no report; `burnish run {runs[0]} --resume` takes it on\n"


def test_a_run_is_under_way_while_a_process_drives_it(runs: list[Path]) -> None:
    def live() -> dict[str, bool]:
        return {row["run"]: row["live"] for row in json.loads(burnish("runs", "list", runs[0].parent, "--json").output)}

    assert live() == {"first": True, "other <b>": True}, "written a moment ago, and no lock tells"
    with sole_driver(runs[0], print):
        (runs[0] / "report.html").write_text("of the run before it was resumed")
        for file in runs[0].iterdir():
            os.utime(file, (0, 0))
        assert live() == {"first": True, "other <b>": True}, "an evaluation takes long"
    assert live() == {"first": False, "other <b>": True}


def test_a_folder_that_cannot_be_read_hides_no_run(runs: list[Path]) -> None:
    bad = runs[0].parent / "bad"
    bad.mkdir()
    for name in ("config.json", "seeds.json"):
        (bad / name).write_text("{}")
    (bad / "metrics.jsonl").write_text('{"phase": "rft", "step": 1, "time": 1.0, "loss": 1e999}\n')
    found = burnish("runs", "list", runs[0].parent)
    assert found.exit_code == 1 and "first" in found.stdout and "bad" not in found.stdout
    assert found.stderr == f"bad cannot be read: {bad}/metrics.jsonl:1: metric 'loss' is larger than a float can be\n"
    told = burnish("runs", "list", runs[0].parent, "--json")
    rows = {row["run"]: row for row in json.loads(told.stdout)}
    assert (told.exit_code, told.stderr) == (1, found.stderr)
    assert rows["first"]["step"] == 2 and "metrics.jsonl:1" in rows["bad"]["error"]


def test_a_place_without_runs_says_which_command_makes_them(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none"):
        found = burnish("runs", "list", place)
        assert "`burnish run RECIPE` makes runs" in found.output + found.stderr


def test_tail_goes_on_after_a_run_went_back_to_its_checkpoint(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 2 is taken again by a resume: once the file is shorter, once as long as before, with other rows at its end."""
    file = runs[0] / "metrics.jsonl"
    first, _ = file.read_text().splitlines()

    def again(*successes: float) -> str:
        rows = [{"phase": "rft", "step": 2 + i, "time": 9.0, "success": success} for i, success in enumerate(successes)]
        return "".join(f"{line}\n" for line in (first, *map(json.dumps, rows)))

    steps = iter([first + "\n", again(0.25), again(0.75, 1.0)])

    def goes_on(seconds: float) -> None:
        file.write_text(next(steps))
        if "0.75" in file.read_text():
            (runs[0] / "report.html").write_text("")

    monkeypatch.setattr("burnish.cli.runs_command.time.sleep", goes_on)
    found = burnish("runs", "tail", runs[0], "-n", "0", "--follow")
    assert found.stdout == "rft     2  success 0.25\nrft     2  success 0.75\nrft     3  success 1\n"
    assert found.stderr == 2 * "the run went back to rft 1\n"


def test_tail_shows_what_a_run_calls_its_phase_and_obeys_none_of_it(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"phase": "\x1b[31mrft\u202e", "step": 1, "time": 1.0}
    (runs[0] / "metrics.jsonl").write_text("".join(json.dumps({**row, "step": step}) + "\n" for step in (1, 2)))

    def goes_back(seconds: float) -> None:
        (runs[0] / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        (runs[0] / "report.html").write_text("")

    monkeypatch.setattr("burnish.cli.runs_command.time.sleep", goes_back)
    found = burnish("runs", "tail", runs[0], "--follow")
    assert "went back to" in found.stderr and not {"\x1b", "\u202e"} & {*found.stderr, *found.stdout}


def test_numbers_that_no_difference_holds_are_drawn_or_left_out() -> None:
    for value in (1e308, -1e308, math.inf, -math.inf, math.nan):
        points = ((1, value, value, value), (2, -value, -value, -value), (3, 0.0, 0.0, 0.0), (4, 5e-324, 5e-324, 5e-324))
        for svg in (overlay_chart("a", [Series("a", points)], "step"), line_chart("a", [(step, one) for step, one, *_ in points])):
            assert "nan" not in svg and "inf" not in svg
            ET.fromstring(svg)
        ET.fromstring(whisker_chart([Whisker("a", value, 0.0, 1.0, False, None), Whisker("b", 0.5, 0.0, 1.0, False, value)]))
    for low, high in ((-1e300, 1e300), (1e300, 1e300), (5e-324, 5e-324), (0.0, 5e-324), (-1e-310, 1e-310)):
        ticks = nice_ticks(low, high)
        assert all(map(math.isfinite, ticks)) and 2 <= len(ticks) <= 12 and ticks[0] <= low and high <= ticks[-1]
    assert number(1e300) == "1e+300" and number(-1e16) == "-1e+16" and number(12345.6) == "12,346"


def test_a_run_with_nothing_in_it_can_be_shown_and_compared(tmp_path: Path, runs: list[Path]) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}")
    assert "no evaluation yet" in burnish("runs", "show", tmp_path / "bare").output
    assert burnish("report", runs[0], tmp_path / "bare", "--out", tmp_path / "c.html").exit_code == 0
    assert "–" in (tmp_path / "c.html").read_text()
