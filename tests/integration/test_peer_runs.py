"""Whatever whoever wrote a run folder can set in it is tried, field by field, in every way a run is opened to be looked at: none names
code, a file outside its folder, or an address to call, and none becomes markup."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console
from starlette.testclient import TestClient
from tests.integration.reaching import HOST, MARK, MARKUP, REFUSALS, TALK, Watch, burnish, json_changed, json_leaves, steers, watching
from tests.unit.one_step import make_policy

from burnish.cli.data import trace
from burnish.inspector.inspect_logs import export_evaluations
from burnish.inspector.pages.app import pages
from burnish.inspector.report import render_report
from burnish.inspector.runs import read_run, read_run_transcripts
from burnish.inspector.terminal import Selection, print_rollouts
from burnish.rollout.store.episodes import SCHEMA
from burnish.serving import deploy
from burnish.trainer.data.config import Making
from burnish.trainer.data.prepared import lay_out
from burnish.trainer.data.rollout_pairs import check_tokenizer
from burnish.trainer.evaluation.suites.scores import read_scores
from burnish.trainer.models.checkpoints import list_checkpoints
from burnish.trainer.models.finding import verified_model
from burnish.trainer.models.importing import ModelSize, new_model
from burnish.trainer.phases.sft import SFTConfig

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

INSPECT = find_spec("inspect_ai") is not None
SIZE = ModelSize(hidden=32, layers=1, heads=1, intermediate=32, vocab_size=280, max_position=64)


class Shown(NamedTuple):
    """What became of an opened run: HTML, and what a terminal got."""

    page: str
    terminal: str


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    with watching(tmp_path_factory.mktemp("outside")) as made:
        yield made


RESULT = {
    "mode": "sampled", "success_part": "env", "episodes": 2, "rewarded": 2, "success": 0.5, "success_low": 0.1, "success_high": 0.9,
    "reward": 0.5, "turns": 1.0, "tokens": 3.0, "task_success": {"t": 0.5}, "parts": {"env": 0.5}, "metrics": {"cost": 1.0},
    "confusion": {"pass": {"pass": 1, "": 1}}, "recall": {"pass": 0.5}, "macro_recall": 0.5,
    "best_constant": {"label": "pass", "success": 1.0, "macro_recall": 1.0}, "failures": {"env_error": 1}, "truncations": {"max_turns": 1},
}  # fmt: skip
TRANSCRIPT = {
    "schema": 1, "run": "r", "phase": "base", "step": 0, "split": "heldout", "mode": "sampled", "episode": "t/0", "task": "t", "seed": 1,
    "sample": 0, "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    "reward": {"total": 1.0, "parts": {"env": 1.0}}, "labels": {"expected": "pass", "predicted": "pass"}, "metrics": {"cost": 1.0},
    "turns": [{"tokens": 3, "stop_reason": "stop", "generate_s": 0.1, "env_s": 0.1, "oldest_version": 0, "newest_version": 0}],
    "trainable_tokens": 3, "context_tokens": 9,
}  # fmt: skip
AGAINST = {"base": {"difference": 0.1, "low": 0.0, "high": 0.2, "p_value": 0.1, "n": 2, "unpaired": 0}}
SAVED = {"event": "saved", "phase": "rft", "step": 3, "final": True, "metrics": {"reward": 1.0}, "created_at": "2026-01-01T00:00:00Z"}
RETAINED = {
    "schema": 1, "phase": "rft", "step": 3, "suite": "burnish/choices-v1", "kind": "answers", "items": 4, "before": 0.5, "after": 0.25,
    "retention": 0.5, "low": 0.1, "high": 0.9, "lost": 1, "gained": 0, "forgotten": 0.5, "learned": 0.0, "significance": "s",
    "not_promoted": "why",
}  # fmt: skip
STORED = {
    "schema": 2, "run": "r", "phase": "rft", "step": 1, "split": "train", "mode": "sampled", "episode": "t/0", "task": "t",
    "environment": "", "prompt": 1, "task_data": "{}", "env_data": "{}", "seed": 1, "sample": 0, "engine": "e", "reward": 1.0,
    "parts": [("env", 1.0)], "turn_parts": '{"env": [1.0]}', "labels": [("expected", "pass")], "metrics": [("cost", 1.0)],
    "messages": json.dumps([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]),
    "turns": [{"tokens": 1, "stop": "stop", "generate_s": 0.1, "env_s": 0.1}], "env_rewards": [1.0], "seconds": 0.1, "oldest_version": 0,
    "newest_version": 0, "sampled_tokens": 1, "context_tokens": 2, "lengths": [2], "token_ids": [1, 2], "mask": [False, True],
    "version": [-1, 0], "sampler_logprobs": [0.0, -0.1], "failure": "env_error", "culprit": "c", "detail": "d", "truncation": "max_turns",
}  # fmt: skip
EPISODE = "phase=rft&step=1&split=train&mode=sampled&episode=t/0"
SUITE_ITEM = {"item": "i", "sample": 0, "seed": 1, "score": 1.0, "answer": "a", "tokens": 1, "failure": ""}
RUN_FILES: Mapping[str, tuple[dict[str, Any], ...]] = {
    "config.json": (
        {"name": "r", "model": "m", "environment": "burnish/SingleTurn-v0", "plugins": [], "services": {"a": {"address": "h:1"}}},
    ),
    "versions.json": ({"python": "3.11", "platform": "linux", "cpus": 2, "packages": {"burnish": "0"}, "given": {"cpus": 2, "gpus": 0.0}},),
    "seeds.json": ({"run": 1},),
    "metrics.jsonl": ({"phase": "rft", "step": 1, "time": 1.0, "reward_mean": 0.5},),
    "evaluations.jsonl": (
        {"schema": 1, "phase": "base", "step": 0, "against": {}, **RESULT},
        {"schema": 1, "phase": "rft", "step": 3, "against": AGAINST, **RESULT},
    ),
    "ledger.jsonl": ({"schema": 1, "phase": "rft", "step": 1, "issued": 1, "trained": 0, "masked": {"env_error": 1}},),
    "transcripts/episodes.jsonl": (TRANSCRIPT, {**TRANSCRIPT, "phase": "rft", "step": 3}),
    "alarms.jsonl": ({"schema": 1, "phase": "rft", "step": 1, "guard": "g", "action": "warn", "text": "t"},),
    "retention.jsonl": (RETAINED,),
    "data/tasks/rejects.jsonl": ({"file": "a.jsonl", "line": 1, "field": "id", "reason": "r"},),
    "checkpoints.jsonl": (SAVED, {"event": "pruned", "name": "rft-1"}),
}


FILES = (*RUN_FILES, "data/sft/blend.json")


def write_run(folder: Path) -> None:
    for name in ("transcripts", "checkpoints/rft-3", "episodes", "data/tasks"):
        (folder / name).mkdir(parents=True)
    for name, rows in RUN_FILES.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    store(folder, {**STORED, "failure": None})


def store(run: Path, row: Mapping[str, Any]) -> None:
    """A row as each file of the store of the run, as far as it can be one."""
    for moment in MOMENTS:
        phase, step, split, mode = moment.split(".")
        here = {"phase": phase, "step": int(step), "split": split, "mode": mode}
        table = pyarrow.Table.from_pylist([{**row, **{name: value for name, value in here.items() if row[name] == STORED[name]}}], SCHEMA)
        pyarrow.parquet.write_table(table, run / "episodes" / f"{moment}.parquet")


MOMENTS = ("base.000000.heldout.sampled", "rft.000003.heldout.sampled", "rft.000001.train.sampled")
"""What the store of the run holds: two evaluations and a step."""


def look_at(run: Path) -> Shown:
    """Read a run folder, which every other way of opening one begins with."""
    page, terminal = io.StringIO(), io.StringIO()
    for show in (
        lambda: page.write(render_report(read_run(run), read_run_transcripts(run))),
        lambda: print_rollouts(run, Selection(), Console(file=terminal, width=120, force_terminal=True, no_color=True)),
        lambda: list_checkpoints(run),
    ):
        with contextlib.suppress(*REFUSALS):
            show()
    return Shown(page.getvalue(), terminal.getvalue())


def browse(run: Path) -> str:
    """Every page over a run, as `burnish inspect` and Ray's dashboard show it."""
    name, shown = run.name, ""
    drift = "&".join(f"{side}={name}/{moment}" for side, moment in zip(("before", "after"), MOMENTS, strict=False))
    places = (
        "", f"/{name}", f"/{name}/episodes", f"/{name}/episodes?text=q", f"/{name}/episode?{EPISODE}", f"/{name}/episode?{EPISODE}&json=1",
        f"/{name}/drawing?{EPISODE}",
        f"/-/compare?run={name}&run=other", f"/-/drift?{drift}", f"/-/drift?{drift}&task=t",
    )  # fmt: skip
    with TestClient(pages(run.parent), base_url="http://127.0.0.1:8266", raise_server_exceptions=False) as client:
        for place in places:
            answer = client.get(f"/rollouts{place}")
            assert answer.status_code in (200, 400, 410), (place, answer.status_code)
            shown += answer.text if "json" not in place else ""
    return shown


def commands(run: Path, out: Path) -> Iterator[tuple[str | Path, ...]]:
    """What the command line does with a run that it only looks at, or plays again. out: a new folder.

    Whoever replays a run runs the code that its config names elsewhere, as docs/security.md says: plug-ins are not among the payloads.
    """
    yield from (("rollouts", run), ("rollouts", run, "--prompt"))
    yield from (("runs", "list", run.parent), ("runs", "show", run), ("runs", "diff", run, run.parent / "other"), ("runs", "tail", run))
    yield from (("replay", run, "--all"), ("regrade", run, "--reward", "burnish/inspection-cost-v1"))
    yield from (("data", "trace", run, "1"), ("data", "trace", run, "1", "--phase", "sft"))
    yield from (("models", "show", run), ("models", "lineage", run), ("package", run, out / "package"))
    yield from (
        ("report", run),
        ("report", run, run.parent / "other", "--out", out / "both.html"),
        ("inspect", run, "--bundle", out / "bundle"),
    )


def open_wide(run: Path) -> Shown:
    """Open a run folder in every way there is."""
    page, terminal = look_at(run)
    with tempfile.TemporaryDirectory() as made:
        out = Path(made)
        page, terminal = page + browse(run), terminal + "".join(burnish(*command) for command in commands(run, out))
        with contextlib.suppress(*REFUSALS):
            serve(run)
        if INSPECT:
            with contextlib.suppress(*REFUSALS):
                export_evaluations(run, out / "logs")
        written = [*out.glob("*.html"), *out.glob("bundle/**/*.html"), *run.glob("report.html")]
        page += "".join(file.read_text() for file in written)
        (run / "report.html").unlink(missing_ok=True)
    return Shown(page, terminal)


def serve(run: Path) -> None:
    """`burnish serve RUN` up to the Ray that it would start."""

    class Enough(ValueError):
        pass

    def no_further(options: Any, cpus: int) -> bool:
        raise Enough

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploy, "start_ray", no_further)
        with contextlib.suppress(Enough):
            deploy.start_serving(run, port=0)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a model, a store, and a phase that laid out its data, so that a step can be traced; beside another one."""
    folder = tmp_path_factory.mktemp("traced")
    (folder / "own.jsonl").write_text(json.dumps({"messages": [*TALK[:1], TALK[3]]}) + "\n")
    run = folder / "runs" / "run"
    write_run(run)
    write_run(run.parent / "other")
    new_model(["some text"], run / "checkpoints" / "rft-3" / "model", SIZE)
    table = SFTConfig(steps=1, batch=1, data=str(folder / "own.jsonl"))
    lay_out(table.supervised_rows, Making(make_policy(folder / "policy"), 120, {}, 0, 9), run / "data" / "sft").close()
    rows = (*RUN_FILES["metrics.jsonl"], {"phase": "sft", "step": 1, "time": 1.0})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def copied(run: Path, folder: Path) -> Path:
    return shutil.copytree(run.parent, folder / "runs") / run.name


@contextlib.contextmanager
def changed(file: Path, content: str) -> Iterator[None]:
    honest = file.read_text()
    file.write_text(content)
    try:
        yield
    finally:
        file.write_text(honest)


def held(watch: Watch, where: str, run: Path, open_run: Callable[[Path], Shown] = open_wide) -> Shown:
    with watch.over(where):
        shown = open_run(run)
    assert not steers(shown.page) and not steers(shown.terminal.replace("<script>", "")), where
    return shown


def test_a_run_is_opened_in_every_way_there_is(traced: Path) -> None:
    page, terminal = open_wide(traced)
    assert all(shown in page for shown in ("<h1>run</h1>", "The same tasks, then and now", "t/0")) and "<script>" not in page
    assert "own.jsonl:1" in terminal and "t/0" in terminal
    with tempfile.TemporaryDirectory() as made:
        said = {command: burnish(*command) for command in commands(traced, Path(made))}
    assert not {command: text for command, text in said.items() if text.startswith("error")}


def rows_of(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.suffix == ".jsonl" else [json.loads(file.read_text())]


def lines(rows: Sequence[Any]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


@pytest.mark.parametrize("name", FILES)
def test_no_field_of_a_run_folder_reaches_out_and_none_becomes_markup(name: str, traced: Path, watch: Watch, tmp_path: Path) -> None:
    """Each field by itself, as far as the folder is read with it."""
    run = copied(traced, tmp_path)
    rows = rows_of(run / name)
    for i, row in enumerate(rows):
        for number in range(len(list(json_changed(row, "")))):
            for payload in (watch.payloads[number % len(watch.payloads)], MARKUP):
                where, changed_row = list(json_changed(row, payload))[number]
                with changed(run / name, lines([*rows[:i], changed_row, *rows[i + 1 :]])):
                    held(watch, f"{name} {where}", run, look_at)


@pytest.mark.parametrize("name", FILES)
def test_no_field_that_is_taken_reaches_out_however_a_run_is_opened(name: str, traced: Path, watch: Watch, tmp_path: Path) -> None:
    """All fields at once that take what is written into them, so that the folder is opened with them in every way."""
    run = copied(traced, tmp_path)
    honest = rows_of(run / name)
    for payloads in (*(watch.payloads[at:] + watch.payloads[:at] for at in (0, 5)), (MARKUP,)):
        rows = list(honest)
        for i in range(len(rows)):

            def is_taken(row: Any, i: int = i, rows: list[Any] = rows) -> bool:
                with changed(run / name, lines([*rows[:i], row, *rows[i + 1 :]])):
                    return can_be_read(run)

            with watch.over(f"{name}, taking"):
                rows[i] = crammed(rows[i], payloads, is_taken)
        with changed(run / name, lines(rows)):
            held(watch, f"{name} {rows}", run)


def crammed(row: Any, payloads: Sequence[str], is_taken: Callable[[Any], bool]) -> Any:
    """The row with payloads in the place of its parts and as further keys of its objects, wherever they are taken."""
    for number, path in enumerate(reversed(list(json_leaves(row)))):
        copy = json.loads(json.dumps(row))
        here, payload = copy, payloads[number % len(payloads)]
        for step in path[:-1]:
            here = here[step]
        part = here[path[-1]] if path else copy
        if isinstance(part, dict):
            part[payload] = payload
        elif path:
            here[path[-1]] = payload
        row = copy if is_taken(copy) else row
    return row


def can_be_read(run: Path) -> bool:
    try:
        read_run(run)
        list(read_run_transcripts(run))
        list_checkpoints(run)
        trace(run, 1, "sft")
    except REFUSALS:
        return False
    return True


def test_most_fields_of_a_run_folder_are_shown_as_text(watch: Watch, tmp_path: Path) -> None:
    run, shown = tmp_path / "run", 0
    write_run(run)
    for name, rows in RUN_FILES.items():
        for i, row in enumerate(rows):
            for where, changed_row in json_changed(row, MARKUP):
                with changed(run / name, lines([*rows[:i], changed_row, *rows[i + 1 :]])):
                    page, terminal = held(watch, f"{name} {where}", run, look_at)
                    shown += "&lt;script&gt;" in page or "<script>" in terminal
    assert shown > 20


@pytest.mark.parametrize("name", [name for name, value in STORED.items() if isinstance(value, str | list)])
def test_no_column_of_the_store_reaches_out_and_none_becomes_markup(name: str, traced: Path, watch: Watch, tmp_path: Path) -> None:
    run = copied(traced, tmp_path)
    for value in hostile_column(name, (*watch.payloads, MARKUP)):
        store(run, {**STORED, "failure": None, name: value})
        held(watch, f"column {name}", run)


def hostile_column(name: str, payloads: Sequence[str]) -> Iterator[Any]:
    """Values of a column that hold payloads in each of the places where one can stand: all of them, or one where there is no room for
    more."""
    if name == "messages":
        yield json.dumps([{"role": "user", "content": one, "name": one} for one in payloads])
        call = [{"id": one, "type": one, "function": {"name": one, "arguments": one}} for one in payloads]
        yield json.dumps([{"role": "assistant", "content": "4", "tool_calls": call}])
    elif name in ("task_data", "env_data", "turn_parts"):
        yield json.dumps({one: [one] for one in payloads} | {"tools": [*payloads]})
        yield json.dumps({one: [1.0] for one in payloads})
    elif name in ("parts", "labels", "metrics"):
        yield [(one, one if name == "labels" else 1.0) for one in payloads]
    elif isinstance(STORED[name], str):
        yield from (payloads[len(name) % len(payloads)], payloads[-1])


def test_no_argument_of_a_recorded_environment_reaches_out(traced: Path, watch: Watch, tmp_path: Path) -> None:
    run = copied(traced, tmp_path)
    config = json.loads((run / "config.json").read_text())
    inside = run / f"{MARK}_inside.py"
    inside.write_text("def run(*args, **kwargs): return ''\n")
    place = f"{HOST}:{watch.listener.getsockname()[1]}"
    secret = f"{place}?token_env={MARK}"
    for name in ("address", "describe", "env_id", "tools", "dataset", "token_env"):
        for value in (place, secret, f"{inside}:run", str(inside), f"http://{place}/{MARK}"):
            for id in ("burnish/Remote-v0", "burnish/Gymnasium-v0", "burnish/SingleTurn-v0"):
                recorded: dict[str, Any] = {
                    "plugins": [],
                    "services": {},
                    "environment": id,
                    "environment_args": {name: value, "deep": [{name: value}]},
                }
                (run / "config.json").write_text(json.dumps({**config, **recorded}))
                with watch.over(f"environment_args {name}={value}"):
                    burnish("replay", run, "--all")


def test_no_code_that_only_a_run_folder_names_is_imported_by_a_replay(traced: Path, watch: Watch, tmp_path: Path) -> None:
    """Code that could be imported, outside of the folder: a file, a module, and an environment that importing one would register."""
    run = copied(traced, tmp_path)
    config = json.loads((run / "config.json").read_text()) | {"plugins": [], "services": {}, "environment": "burnish/Gymnasium-v0"}
    file = f"{watch.folder}/{MARK}.py"
    changes: list[dict[str, Any]] = [{"plugins": [file]}]
    changes += [{"environment": f"{code}:{MARK}/Env-v0"} for code in (file, MARK)]
    for argument in (*watch.payloads, f"{MARK}:{MARK}-v0"):
        changes += [{"environment_args": {name: argument}} for name in ("describe", "read_action", "env_id")]
    for service in ({"tools": MARK}, {"tools": file}, {"environment": "burnish/Taxi-v0", "kwargs": {"describe": f"{MARK}:run"}}):
        changes.append({"services": {"s": service}, "environment_args": {"env_id": "service:s"}})
    for change in changes:
        (run / "config.json").write_text(json.dumps({**config, **change}))
        with watch.over(f"replay {change}"):
            burnish("replay", run, "--all", "--outward")


LINKED = (
    *RUN_FILES,
    *(f"episodes/{moment}.parquet" for moment in MOMENTS),
    "data/sft/blend.json",
    "checkpoints/rft-3/model/config.json",
    "checkpoints/rft-3/model/tokenizer.json",
)
FOLDERS = ("episodes", "data", "transcripts", "checkpoints", "data/sft", "data/sft/own", "checkpoints/rft-3", "checkpoints/rft-3/model")


@pytest.mark.parametrize("name", [*LINKED, *FOLDERS])
def test_nothing_of_a_run_leads_out_of_it(name: str, traced: Path, watch: Watch, tmp_path: Path) -> None:
    """What is linked elsewhere is not read: the watch sees no file of that place opened."""
    tokenizer_of = traced / "checkpoints" / "rft-3" / "model"
    run = copied(traced, tmp_path)
    outside = watch.folder / f"{MARK}-{name.replace('/', '-')}"
    shutil.move(run / name, outside)
    (run / name).symlink_to(outside)
    with pytest.raises(ValueError, match="is a link that leads out of the folder"):
        read_run(run)
        list_checkpoints(run)
        trace(run, 1, "sft")
        verified_model(run)
        check_tokenizer(run, tokenizer_of)
    held(watch, name, run)  # each says so, and none fails
    with watch.over(name):
        check_tokenizer(run, tokenizer_of)
    if name.startswith("checkpoints/rft-3/"):  # whoever names the checkpoint gets what is in it
        with watch.over(name):
            verified_model(run / "checkpoints" / "rft-3")


def test_no_sample_of_a_suite_reaches_out(watch: Watch, tmp_path: Path) -> None:
    head = {"schema": 1, "model": "m", "suite": "burnish/choices-v1", "kind": "answers", "right": 1.0, "chance": 0.25, "temperature": 1.0}
    kinds = {"item": pyarrow.string(), "sample": pyarrow.int32(), "seed": pyarrow.int64(), "score": pyarrow.float64(),
             "answer": pyarrow.string(), "tokens": pyarrow.int32(), "failure": pyarrow.string()}  # fmt: skip
    (tmp_path / "results.json").write_text("{}")
    for payload in watch.payloads:
        for name in [*head, *(name for name in SUITE_ITEM if isinstance(SUITE_ITEM[name], str))]:
            note = json.dumps({**head, **({name: payload} if name in head else {})})
            schema = pyarrow.schema([pyarrow.field(key, kind, key == "score") for key, kind in kinds.items()], {"burnish": note})
            row = {**SUITE_ITEM, **({name: payload} if name in SUITE_ITEM else {})}
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row], schema), tmp_path / "a.parquet")
            with watch.over(f"suite {name}"):
                read_scores(tmp_path)
