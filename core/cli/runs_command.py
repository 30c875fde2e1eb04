"""`burnish runs …` and `burnish report`: run folders from the terminal, for people and, with `--json`, for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from burnish.cli.answer import answer
from burnish.cli.needs import needs_episodes, needs_training
from burnish.cli.options import JsonOption, RunArgument, print_json
from burnish.rpc.extras import require

if TYPE_CHECKING:
    from burnish.inspector.comparing import SideBySide
    from burnish.inspector.frontier import Frontier
    from burnish.inspector.pages.runs import RunLine
    from burnish.inspector.runs import MetricRow, RecordedRun
    from burnish.inspector.watching import Watched
    from burnish.rollout.store.records import Comparison, EvaluationRecord

RunsArgument = Annotated[Path, typer.Argument(metavar="RUNS", help="A folder of run folders.")]
SeveralArgument = Annotated[list[Path], typer.Argument(metavar="RUN [RUN …]", help="Run folders.", show_default=False)]
SHOWN = ("reward_mean", "success", "held_out/success", "loss", "learner/entropy", "learner/kl")
"""Metrics that a line of `tail` shows, those of them that a step has."""
POLL_S = 1.0
NONE_KEPT = 1
"""Exit code when no run kept what was asked for."""
UNREAD = 1
"""Exit code when a run of a list cannot be read."""


def register(app: typer.Typer, runs_app: typer.Typer) -> None:
    """Add the commands to the command line and to their group."""
    commands: dict[str, Callable[..., None]] = {"list": list_runs, "show": show, "diff": diff, "tail": tail, "export": export}
    commands |= {"watch": watch, "frontier": frontier, "scale": scale}
    for name, command in commands.items():
        runs_app.command(name)(command)
    app.command("report")(report)


def list_runs(runs: RunsArgument = Path("runs"), as_json: JsonOption = False) -> None:
    """List the runs in a folder, the latest first: how far they came and what they reached. Exits with 1 when one cannot be read; a folder
    that may not be looked into is named, and may be none."""
    needs_training("runs list")
    from burnish.cli.models import table_lines
    from burnish.inspector.pages.runs import closed_folders
    from burnish.inspector.pages.runs import list_runs as lines_of
    from burnish.inspector.runs import read_run

    if runs.exists() and not runs.is_dir():
        raise ValueError(f"{runs} is no folder; `burnish run RECIPE` makes runs, in runs/ unless told otherwise")
    found: list[tuple[RunLine, dict[str, Any]]] = []
    unread = [(one.name, one, "permission denied") for one in closed_folders(runs)]
    closed = len(unread)
    for line in lines_of(runs) if runs.is_dir() else ():
        try:
            found.append((line, summary(read_run(line.path))))
        except (OSError, ValueError) as error:
            unread.append((line.name, line.path, " ".join(str(error).split())))
    if as_json:
        print_json([
            *({**row, "live": line.live, "changed": line.changed} for line, row in found),
            *({"run": name, "path": str(path), "error": problem} for name, path, problem in unread),
        ])  # fmt: skip
    else:
        cells = [
            (row["run"], _at(row), _success(row["success"], row["tasks"]), "under way" if line.live else "", line.age)
            for line, row in found
        ]  # fmt: skip
        if cells or not unread:
            _print(table_lines(("run", "at", "success", "", "written"), cells) if cells else [_no_runs(runs)])
    for name, _, problem in unread:
        _print_error(f"{name} cannot be read: {problem}")
    if len(unread) > closed:
        raise typer.Exit(UNREAD)


def show(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show what a run is of and what its phases reached."""
    needs_training("runs show")
    from burnish.cli.models import table_lines
    from burnish.inspector.held_out import held_out_rows
    from burnish.inspector.report import facts_of, headline, phase_rows
    from burnish.inspector.runs import phases_of, read_run
    from burnish.inspector.watching import held_out_line

    found = read_run(run)
    records = phase_rows(found)
    for problem in found.unread:
        _print_error(f"a line cannot be read: {problem}")
    if found.unread_others:
        _print_error(f"{found.unread_others} more lines cannot be read")
    if as_json:
        alarms = {"alarms": [alarm.to_row() for alarm in found.alarms], "unread": found.unread, "unread_others": found.unread_others}
        print_json({**summary(found), "evaluations": [*map(_measured, records)], "held_out": held_out_rows(found), **alarms})
        return
    _print([found.name, *(f"  {name:<12} {value}" for name, value in facts_of(found))])
    cells = [
        (record.phase, r.mode, _percent(r.success), f"{_percent(r.success_low)} to {_percent(r.success_high)}", str(len(r.task_success)))
        for record in records
        for r in (record.result,)
    ]
    _print(table_lines(("phase", "mode", "success", "95 % interval", "tasks"), cells) if cells else ["no evaluation yet"])
    _print(f"held out in the course of {phase}: {line}" for phase in phases_of(found.metrics) if (line := held_out_line(found, phase)))
    _print([line for line in (headline(found),) if line])


def diff(runs: SeveralArgument, as_json: JsonOption = False) -> None:
    """Say what two runs or more were given otherwise, and what their evaluations say of the same tasks."""
    needs_training("runs diff")
    from burnish.inspector.comparing import side_by_side

    found = side_by_side(runs)
    if as_json:
        print_json(found.to_row())
    else:
        _print(_diff_lines(found))


def frontier(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN|RUNS [RUN …]", help="Runs, or folders of runs such as `burnish tune` leaves.", show_default=False),
    ],
    min_retention: Annotated[float, typer.Option(min=0, help="What must be left of every skill for a run to be picked.")] = 0.95,
    mode: Annotated[
        Literal["sampled", "greedy"] | None,
        typer.Option(help="Of the evaluations. Default: the one that most runs have, sampled where as many have both.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the drawing and the table into a page.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Set what runs gained against what they kept of earlier skills, and pick the one that gained most among those that kept enough.

    Exits with 1 when none did."""
    needs_training("runs frontier")
    from burnish.inspector.frontier import find_frontier, write_frontier

    found = find_frontier(runs, min_retention, mode)
    page = write_frontier(found, out) if out is not None else None
    if as_json:
        print_json(found.to_row())
    else:
        _print(_frontier_lines(found))
        _print([] if page is None else ["", str(page)])
    if found.pick is None:
        raise typer.Exit(NONE_KEPT)


def tail(
    run: RunArgument,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Steps to begin with.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with each new step, until the run ends.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the last steps of a run, and with --follow those that come."""
    needs_training("runs tail")
    from burnish.inspector.pages.runs import is_under_way
    from burnish.inspector.runs import check_run, read_metrics

    home = check_run(run)
    rows = list(read_metrics(home / "metrics.jsonl"))
    _print(_step(row, as_json) for row in rows[len(rows) - min(lines, len(rows)) :])
    while follow:
        ended = not is_under_way(home)  # asked first: what was written before its end is still printed
        now = list(read_metrics(home / "metrics.jsonl"))
        same = next((i for i, (old, new) in enumerate(zip(rows, now, strict=False)) if old != new), min(len(rows), len(now)))
        if same < len(rows):  # a run that resumes takes back what it had written since its checkpoint
            back = now[same - 1] if same else None
            _print_error(f"the run went back to {f'{back.phase} {back.step}' if back else 'its beginning'}")
        _print(_step(row, as_json) for row in now[same:])
        rows = now
        if ended:
            break
        time.sleep(POLL_S)
    if follow:
        _say_without_end(run, home)


def watch(run: RunArgument) -> None:
    """Show where a run is, on one screen that is drawn anew until the run ends; in a pipe, once. Ctrl-C ends the looking, not the run."""
    needs_training("runs watch")
    from rich.live import Live

    from burnish.inspector.runs import check_run
    from burnish.inspector.watching import lines, screen
    from burnish.run.display import new_console

    home, console = check_run(run), new_console()
    looks = _looks(home)
    if not console.is_terminal:
        _print(lines(next(looks)))
        return
    with Live(console=console, auto_refresh=False) as live:
        for seen in looks:
            live.update(screen(seen), refresh=True)
            if not seen.live:
                break
            time.sleep(POLL_S)
    _say_without_end(run, home)


def _looks(home: Path) -> Iterator[Watched]:
    """A run again and again, without end; what has not been written to since is not read again."""
    from burnish.inspector.library import Library
    from burnish.inspector.pages.runs import is_under_way
    from burnish.inspector.runs import read_run
    from burnish.inspector.watching import Watched

    library = Library(home / "episodes")
    live = is_under_way(home)  # asked before what is written is looked at: what came before the end is still shown
    while True:
        written, found = _written(home), read_run(home)
        rewards = library.rewards(found.metrics[-1].phase) if found.metrics else []
        while True:
            yield Watched(found, rewards, live, time.time())
            live = is_under_way(home)
            if _written(home) != written:
                break


def _written(home: Path) -> dict[str, tuple[int, int]]:
    """How large the files of rows are, and when they were written; and when a file of episodes came or went, which follows its row."""
    found = dict[str, tuple[int, int]]()
    for file in (*home.glob("*.jsonl"), home / "episodes"):
        with suppress(FileNotFoundError):  # gone since it was listed
            state = file.stat()
            found[file.name] = (state.st_size, state.st_mtime_ns)
    return found


def _say_without_end(run: Path, home: Path) -> None:
    if not (home / "report.html").is_file():
        _print_error(f"no process is seen to drive the run, which has no report; `burnish run {run} --resume` takes it on")


def export(
    run: RunArgument,
    target: Annotated[Path, typer.Argument(metavar="DIR", help="A folder for the logs.", show_default=False)],
    to: Annotated[Literal["inspect"], typer.Option(help="Which tool's: `inspect view --log-dir DIR` opens them.")] = "inspect",
    as_json: JsonOption = False,
) -> None:
    """Write a run's evaluations, with every attempt that is stored of them, as logs of Inspect (*.eval)."""
    needs_episodes("runs export")
    require("burnish runs export --to inspect", ["inspect_ai"], "inspect")
    from burnish.inspector.inspect_logs import export_evaluations

    _print_written(export_evaluations(run, target), as_json)


def scale(
    run: RunArgument,
    engines: Annotated[int, typer.Option(min=1, help="How many there are to be.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Give a run that is under way more engines or fewer, from the end of its step on. One that is resumed begins with them."""
    needs_training("runs scale")
    from burnish.inspector.pages.runs import is_under_way
    from burnish.inspector.runs import check_run
    from burnish.run.scale import ask_for_engines

    home = check_run(run)
    live, count = is_under_way(home), f"{engines} engine{'s' if engines > 1 else ''}"  # asked before something is written there
    ask_for_engines(home, engines)
    if as_json:
        print_json({"schema": 1, "run": str(home), "engines": engines, "under_way": live})
    elif live:
        _print([f"{run} is asked to have {count}, and says so at the end of its step"])
    else:
        _print([f"no process is seen to drive {run}; it begins with {count} once it is resumed"])


def report(
    runs: SeveralArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where it goes. Default: report.html in the run; comparison.html here.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one self-contained page: of a run what it did, of several how they compare."""
    needs_training("report")
    from burnish.inspector.comparing import write_comparison
    from burnish.inspector.report import write_report

    page = write_report(runs[0], out) if len(runs) == 1 else write_comparison(runs, out or Path("comparison.html"))
    _print_written([page], as_json)


def _print_written(written: Sequence[Path], as_json: bool) -> None:
    """The files that a command wrote, a line each."""
    if as_json:
        print_json({"schema": 1, "written": [str(file) for file in written]})
    else:
        _print(map(str, written))


def summary(run: RecordedRun) -> dict[str, Any]:
    """A run in a row: its last step, and the success of its last evaluation with the number of its tasks: a sampled one where there is any,
    as in the report."""
    last = run.metrics[-1] if run.metrics else None
    sampled = [record for record in run.evaluations if record.result.mode == "sampled"]
    evaluation = next(reversed(sampled or run.evaluations), None)
    row: dict[str, Any] = {"run": run.name, "path": str(run.path), "recipe": run.config.get("name"), "model": run.config.get("model")}
    row |= {"phase": last.phase if last else None, "step": last.step if last else None}
    result = evaluation.result if evaluation else None
    row |= {"success": result.success if result else None, "tasks": len(result.task_success) if result else 0}
    return row | {"alarms": len(run.alarms)}


def _diff_lines(found: SideBySide) -> Iterator[str]:
    from burnish.cli.models import table_lines

    names = [run.name for run in found.runs]
    if found.settings:
        yield from table_lines(("setting", *names), [(field, *values) for field, values in found.settings.items()])
    else:
        yield "the same settings"
    for pair in found.paired:
        success = " against ".join(_success(r.success, len(r.task_success)) for r in (pair.record.result, pair.first.result))
        yield f"{pair.run}, {pair.phase} {pair.mode}: {success}: {_change(pair.change)}"
        for word, moved in (("improved", pair.better), ("regressed", pair.worse)):
            if moved:
                yield f"  most {word}: " + ", ".join(f"{task} {before:g} -> {after:g}" for task, before, after in moved)


def _frontier_lines(found: Frontier) -> Iterator[str]:
    from burnish.cli.models import table_lines

    cells = [
        (
            one.run,
            _percent(one.success),
            f"{100 * one.gain.difference:+.1f} ({100 * one.gain.low:+.1f} to {100 * one.gain.high:+.1f})",
            "no skill to keep" if one.retention is None else f"{one.retention:.3f} ({one.low:.3f} to {one.high:.3f}) {one.skill}",
            "picked" if one is found.pick else "frontier" if one.on_frontier else "",
            ", ".join(one.settings),
        )
        for one in found.runs
    ]
    yield from table_lines(("run", "success", "gain in points", "least retention", "", "with"), cells)
    yield from (f"left out: {line}" for line in found.left_out)
    kept = f"kept {found.min_retention:g} of every skill"
    yield f"no run gained and {kept}" if found.pick is None else f"picked: {found.pick.path}, which gained most of those that {kept}"


def _measured(record: EvaluationRecord) -> dict[str, Any]:
    r = record.result
    shares = {"success": r.success, "low": r.success_low, "high": r.success_high, "reward": r.reward}
    return {"phase": record.phase, "step": record.step, "mode": r.mode, **shares, "tasks": len(r.task_success)}


def _change(change: Comparison | None) -> str:
    if change is None:
        return "not comparable: other tasks, or another success part"
    points = [f"{100 * value:+.1f}" for value in (change.difference, change.low, change.high)]
    return f"{points[0]} points ({points[1]} to {points[2]}), {change.significance}, n = {change.n}"


def _step(row: MetricRow, as_json: bool) -> str:
    if as_json:
        return json.dumps({"phase": row.phase, "step": row.step, "time": row.time, **row.values})
    from burnish.inspector.text import number

    of = {"success": "rewarded", "held_out/success": "held_out/tasks"}
    counted = {name: f" (n = {row.values[count]:.0f})" for name, count in of.items() if count in row.values}
    shown = (f"{name} {number(row.values[name])}{counted.get(name, '')}" for name in SHOWN if name in row.values)
    return f"{row.phase} {row.step:>5}  " + "  ".join(shown)


def _at(row: dict[str, Any]) -> str:
    return "not begun" if row["phase"] is None else f"{row['phase']} {row['step']}"


def _success(share: float | None, tasks: int) -> str:
    """A success beside the number of tasks that it is of."""
    return _percent(share) if share is None else f"{_percent(share)} (n = {tasks})"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _print(lines: Any) -> None:
    from burnish.inspector.text import printable

    for line in lines:
        answer(printable(line))


def _print_error(line: str) -> None:
    from burnish.inspector.text import printable

    typer.echo(printable(line), err=True)


def _no_runs(runs: Path) -> str:
    where = f"in {runs}" if runs.is_dir() else f"here: there is no folder {runs}"
    return f"no runs yet {where}; `burnish run RECIPE` makes runs, in runs/ unless told otherwise"
