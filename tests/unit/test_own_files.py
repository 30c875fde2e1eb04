"""The files of a run folder that somebody else made: links, pipes, and files without an end, opened in every way there is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.one_step import make_policy
from typer.testing import CliRunner

from burnish.cli.data import trace
from burnish.cli.main import app
from burnish.inspector.blends import blend_rows
from burnish.inspector.pages.runs import find_run, list_runs
from burnish.inspector.pages.tokens import tokenizer_of
from burnish.inspector.runs import read_run, read_run_transcripts
from burnish.inspector.stored import Which, chosen
from burnish.recipe.load import config_as_recorded, config_from_data, load_config
from burnish.recipe.recorded import recorded_setup
from burnish.rollout.store.json_lines import read_json_lines
from burnish.rollout.store.own_files import MOST_LINE_BYTES, check_own, open_file, own_file, own_files, read_whole
from burnish.rollout.store.records import read_share
from burnish.trainer.data.config import Making
from burnish.trainer.data.prepared import PreparedData, lay_out
from burnish.trainer.models.checkpoints import list_checkpoints
from burnish.trainer.phases.sft import SFTConfig

pytestmark = [pytest.mark.unit, pytest.mark.timeout(120)]

WAYS: dict[str, Callable[[Path], Any]] = {
    "show": read_run,
    "report": lambda run: list(read_run_transcripts(run)),
    "replay and regrade": lambda run: list(chosen(run, Which())),
    "setup": recorded_setup,
    "config": config_as_recorded,
    "trace": lambda run: trace(run, 1, None),
    "blends": lambda run: blend_rows(read_run(run)),
    "checkpoints": list_checkpoints,
    "tokens": tokenizer_of,
    "pages": lambda run: find_run(run.parent, run.name),
}
FILES = {
    "config.json": ("show", "setup", "config"),
    "versions.json": ("show", "report"),
    "seeds.json": ("show", "report"),
    "metrics.jsonl": ("show", "trace"),
    "evaluations.jsonl": ("show", "report"),
    "ledger.jsonl": ("show",),
    "alarms.jsonl": ("show",),
    "retention.jsonl": ("show",),
    "transcripts/a.jsonl": ("show", "report", "pages"),
    "episodes/rft.000001.train.sampled.parquet": ("show", "replay and regrade", "pages"),
    "data/sft/blend.json": ("show", "trace", "blends"),
    "data/dpo/pairs.json": ("trace",),
    "checkpoints.jsonl": ("checkpoints",),
    "checkpoints/rft-1/model/tokenizer.json": ("tokens",),
}
CONFIG = {"name": "r", "model": "m", "environment": "burnish/Arithmetic-v0", "sft": {"steps": 1, "batch": 1, "data": "x.jsonl"}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "r"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "seeds.json").write_text("{}")
    (folder / "metrics.jsonl").write_text(json.dumps({"phase": "sft", "step": 1, "time": 1.0}) + "\n")
    return folder


@pytest.mark.parametrize(("name", "way"), [(name, way) for name, ways in FILES.items() for way in ways if name != "config.json"])
def test_a_pipe_keeps_nobody_waiting(name: str, way: str, run: Path) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    with pytest.raises((ValueError, LookupError), match=r"is a pipe or a device|there is no run"):
        WAYS[way](run)


@pytest.mark.parametrize(("name", "way"), [(name, way) for name, ways in FILES.items() for way in ways])
@pytest.mark.parametrize("linked", ["file", "folder"])
def test_no_link_leads_out_of_a_run_folder(name: str, way: str, linked: str, run: Path, tmp_path: Path) -> None:
    outside, file = tmp_path / "outside", run / name
    if linked == "folder" and file.parent == run:
        pytest.skip("its folder is the run's own")
    if linked == "folder":
        file.parent.rename(outside)
        (outside / file.name).write_text("secret")
        file.parent.symlink_to(outside)
    else:
        file.unlink(missing_ok=True)
        outside.write_text(json.dumps(CONFIG))
        file.symlink_to(outside)
    with pytest.raises(ValueError, match="is a link that leads out of the folder"):
        WAYS[way](run)


def test_a_link_within_the_folder_and_a_run_that_is_one_are_as_good_as_a_file(run: Path, tmp_path: Path) -> None:
    (run / "metrics.jsonl").rename(run / "kept.jsonl")
    (run / "metrics.jsonl").symlink_to("kept.jsonl")
    (tmp_path / "latest").symlink_to(run)
    assert [row.phase for row in read_run(tmp_path / "latest").metrics] == ["sft"]
    (run / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match="is a link that leads"):
        check_own(run, run / "loop")


def test_a_file_without_end_stops_only_its_own_run(run: Path) -> None:
    good = run.parent / "good"
    good.mkdir()
    for name in ("config.json", "seeds.json", "metrics.jsonl"):
        (good / name).write_bytes((run / name).read_bytes())
    for name in ("metrics.jsonl", "config.json"):
        whole = (run / name).read_bytes()
        os.truncate(run / name, 40 << 30)
        with pytest.raises(ValueError, match=rf"{name}.*(the line is longer than 64 MiB|is larger than 64 MiB)"):
            read_run(run)
        found = CliRunner().invoke(app, ["runs", "list", str(run.parent)])
        assert found.exit_code == 1 and "good" in found.output and "64 MiB" in found.output
        (run / name).write_bytes(whole)
    assert len(list_runs(run.parent)) == 2


def test_files_are_read_to_a_bound(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x" * 11)
    assert read_whole(file, 11) == b"x" * 11
    with pytest.raises(ValueError, match="is larger than"):
        read_whole(file, 10)
    with pytest.raises(ValueError, match="is a pipe, a device or a folder"):
        open_file(tmp_path)
    os.truncate(file, MOST_LINE_BYTES + 1)
    with pytest.raises(ValueError, match=r"a:1: the line is longer than 64 MiB"):
        list(read_json_lines(file))
    assert own_file(tmp_path, "none") is None and own_files(tmp_path, "*", "none") == [] and own_files(tmp_path, "*") == [file]


# ------------------------------------------------------------------------------------------------------------- prepared data


@pytest.fixture
def traced(run: Path, tmp_path: Path) -> Path:
    """A run whose step 1 can be traced to its rows."""
    place = tmp_path / "own.jsonl"
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    place.write_text((json.dumps(row) + "\n") * 3)
    table = SFTConfig(steps=1, batch=2, data=str(place))
    (run / "data" / "sft").rmdir()
    lay_out(table.supervised_rows, Making(make_policy(tmp_path / "policy"), 120, {}, 0, 9), run / "data" / "sft").close()
    assert len(trace(run, 1, None).lines) == 4
    return run


@pytest.mark.parametrize(
    "content", ["[]", "{}", "5", "null", '"x"', "[[", '{"batch": 1}', '{"batch": 1, "order": 1, "by": "samples", "sources": [5]}']
)
def test_a_record_of_another_form_is_a_fault_of_the_file(content: str, traced: Path) -> None:
    (traced / "data" / "sft" / "blend.json").write_text(content)
    with pytest.raises(ValueError, match=r"blend\.json"):
        trace(traced, 1, None)


@pytest.mark.parametrize(
    "change",
    [
        {"share": "1/0"}, {"share": "1e999999999"}, {"share": "0.5"}, {"share": 1}, {"asked": None}, {"asked": "-1"},
        {"name": "../../outside"},
        {"name": "/etc"}, {"name": ".."}, {"name": 5}, {"name": ""}, {"files": "x"}, {"files": [5]}, {"examples": -1}, {"examples": "3"},
        {"examples": 10**30}, {"more": 1},
    ],
)  # fmt: skip
def test_a_field_of_a_record_that_is_none_is_named(change: dict[str, Any], traced: Path) -> None:
    file = traced / "data" / "sft" / "blend.json"
    record = json.loads(file.read_text())
    record["sources"][0] |= change
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"blend\.json: "):
        trace(traced, 1, None)


@pytest.mark.parametrize("change", [{"rows": 1e999}, {"rejected": 1e999}, {"rows": "3"}, {"rows": -1}, {"rows": True}, {"asked": "1e999"}])
def test_a_number_of_a_blend_that_is_none_is_a_fault_of_the_file(change: dict[str, Any], traced: Path) -> None:
    file = traced / "data" / "sft" / "blend.json"
    record = json.loads(file.read_text())
    for more in ({}, change):
        file.write_text(json.dumps({**record, "sources": [record["sources"][0], {**record["sources"][0], "name": "two", **more}]}))
        if not more:
            assert len(blend_rows(read_run(traced))) == 2
            continue
        with pytest.raises(ValueError, match=r"blend\.json: a source of a blend cannot be read"):
            blend_rows(read_run(traced))


@pytest.mark.parametrize(("change", "said"), [({"batch": 0}, "batch"), ({"batch": 10**12}, "batch"), ({"order": "x"}, "order")])
def test_a_record_has_a_batch_and_an_order(change: dict[str, Any], said: str, traced: Path) -> None:
    file = traced / "data" / "sft" / "blend.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=rf"blend\.json: {said}"):
        trace(traced, 1, None)


def test_the_examples_of_a_source_are_its_own_and_all_there(traced: Path, tmp_path: Path) -> None:
    folder = traced / "data" / "sft"
    record = json.loads((folder / "blend.json").read_text())
    (folder / "blend.json").write_text(json.dumps({**record, "sources": [{**record["sources"][0], "examples": 4}]}))
    with pytest.raises(ValueError, match=r"own holds 3 examples, but blend\.json says 4"):
        trace(traced, 1, None)
    (folder / "blend.json").write_text(json.dumps({**record, "sources": [{**record["sources"][0], "files": []}]}))
    with pytest.raises(ValueError, match=r"is of a file that blend\.json does not name"):
        trace(traced, 1, None)
    (folder / "blend.json").write_text(json.dumps(record))
    os.truncate(folder / "own" / "tokens.bin", 4)
    data = PreparedData(folder)
    with pytest.raises(ValueError, match="which are not there"):
        data.examples(0)
    data.close()
    (folder / "own").rename(tmp_path / "outside")
    (folder / "own").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="is a link that leads out of the folder"):
        trace(traced, 1, None)


@pytest.mark.parametrize("text", ["1/0", "1e9", "0.5", "-1", "1/-2", "", " 1", "1" * 31, None, 1])
def test_a_share_is_written_in_one_way(text: Any) -> None:
    with pytest.raises(ValueError, match="is no share"):
        read_share(text)
    assert str(read_share("7/10")) == "7/10" and str(read_share("1")) == "1"


# -------------------------------------------------------------------------------------------------------------------- nesting


def test_a_recipe_nested_too_deeply_is_one_line_with_its_place(tmp_path: Path) -> None:
    deep: dict[str, Any] = {}
    for _ in range(900):
        deep = {"a": deep}
    (tmp_path / "a.toml").write_text(f"[{'.'.join(['a'] * 3000)}]\nb = 1\n")
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "environment_args": deep}))
    (tmp_path / "b.toml").write_text(f"environment_args = {{ x = {'[' * 900}{']' * 900} }}\n")
    reads: list[Callable[[], Any]] = [
        lambda: load_config(tmp_path / "a.toml"), lambda: load_config(tmp_path / "b.toml"), lambda: load_config(tmp_path),
        lambda: config_as_recorded(tmp_path), lambda: config_from_data({**CONFIG, "environment_args": deep}),
        lambda: load_config("recipes/arithmetic.toml", [f"environment_args.{'.'.join(['a'] * 3000)}=1"]),
        lambda: load_config("recipes/arithmetic.toml", [f"environment_args.x={'[' * 200}{']' * 200}"]),
    ]  # fmt: skip
    for read in reads:
        with pytest.raises(ValueError, match=r"nested more than 60 deep|a key of 3001 parts|not valid TOML|cannot be read") as found:
            read()
        assert "\n" not in str(found.value) and len(str(found.value)) < 400
