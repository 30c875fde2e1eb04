"""`burnish data …`: what each command prints, what it exits with, and the rows and rollouts that it finds of a step."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.unit.one_step import make_policy
from typer.testing import CliRunner

from burnish.cli import data_replay
from burnish.cli.data import trace
from burnish.cli.main import app
from burnish.envs.contract import make_env
from burnish.envs.types import Message
from burnish.guardrails.scripts import languages_of
from burnish.inspector.blends import blend_rows
from burnish.inspector.runs import read_run
from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.base import GenerateRequest
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.engine.fake import Reply, ScriptedEngine
from burnish.rollout.worker import RolloutWorker, WorkerSetup
from burnish.trainer.data import audit, sources
from burnish.trainer.data.config import HELD_OUT_SEEDS, Making
from burnish.trainer.data.curated.catalog import find_catalog
from burnish.trainer.data.pairs import lay_out as lay_out_pairs
from burnish.trainer.data.prepared import PreparedData, lay_out
from burnish.trainer.evaluation.alone import LoneFleet
from burnish.trainer.evaluation.suites.builtin import SEED
from burnish.trainer.evaluation.suites.finding import find_suite
from burnish.trainer.phases.dpo import DPOConfig
from burnish.trainer.phases.sft import SFTConfig

pytestmark = pytest.mark.unit


def talk(question: str, answer: str = "yes") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(file: Path, *rows: object) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def burnish(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["data", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_check_counts_forms_names_the_unfit_and_exits_by_their_number(tmp_path: Path) -> None:
    place = write(tmp_path / "a.jsonl", talk("a"), {"text": "x"}, {"what": 1})
    rejects = str(tmp_path / "rejects.jsonl")
    said = burnish("check", place, "--rejects", rejects, code=1)
    assert "1 rows: conversation\n1 rows: document\n1 unfit, all in" in said and "a.jsonl:3: the row is of no form" in said
    assert json.loads(Path(rejects).read_text())["line"] == 3
    burnish("check", place, "--max-rejects", "1")
    assert "2 unfit" in burnish("check", place, "--for", "sft", code=1)


def test_dedup_writes_what_is_new_as_it_stood(tmp_path: Path) -> None:
    rows = [talk("Is it here?"), talk("is it HERE"), {**talk("Where is it?"), "id": 7}]
    out = tmp_path / "out.jsonl"
    said = burnish("dedup", write(tmp_path / "a.jsonl", *rows), "--out", str(out))
    assert "2 rows say something new, 1 are exact duplicates" in said and "a.jsonl:2 = " in said
    assert [json.loads(line) for line in out.read_text().splitlines()] == [rows[0], rows[2]]


def test_a_file_that_is_there_is_never_written_over(tmp_path: Path) -> None:
    rows, there = write(tmp_path / "a.jsonl", {"messages": [{"role": "user", "content": "hi"}]}), tmp_path / "there.jsonl"
    there.write_text("mine")
    for arguments in (("dedup", rows, "--out"), ("check", rows, "--rejects")):
        assert burnish(*arguments, str(there), code=2) == f"error: {there} exists already; choose another place or remove it\n"
    assert there.read_text() == "mine"


def test_what_is_written_into_a_folder_that_is_read_is_no_row_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = sources.found_rows

    def once(file: str, *how: Any, **named: Any) -> Any:
        assert "z-" not in file, "what is written is read"
        return read(file, *how, **named)

    monkeypatch.setattr(audit, "found_rows", once)
    write(tmp_path / "a.jsonl", talk("a"), talk("b"), {"what": 1})
    out, rejects, new = (tmp_path / f"z-{name}.jsonl" for name in ("out", "rejects", "new"))
    burnish("check", str(tmp_path), "--out", str(out), "--rejects", str(rejects), "--max-rejects", "1")
    assert (len(out.read_text().splitlines()), len(rejects.read_text().splitlines())) == (2, 1)
    out.unlink()
    rejects.unlink()
    said = burnish("dedup", str(tmp_path), "--out", str(new))
    assert "2 rows say something new, 0 are exact duplicates" in said
    assert "there is no such file" in burnish("check", str(out), "--out", str(out), code=2) and not out.exists()


def test_stats_tell_languages_by_the_scripts_of_their_letters(tmp_path: Path) -> None:
    texts = ["Where is it?", "Wo ist es?", "Где заказ 7?", "注文はどこですか", "订单在哪里", "주문은 어디에 있나요", "12 + 3", "মূল্য কত"]
    place = write(tmp_path / "a.jsonl", *({"text": text} for text in texts), {"what": 1})
    lines = [line.split() for line in burnish("stats", place).splitlines()]
    assert lines[1][1:3] == ["8", "1"]
    told = {tuple(line[2:]): line[1] for line in lines[3:]}
    latin = "LATIN cs, da, de, en, es, fi, fr, id, it, nl, no, pl, pt, ro, sv, tr"
    assert {" ".join(words): count for words, count in told.items()} == {
        latin: "2", "- none whose script is known": "2", "CYRILLIC bg, ru, sr, uk": "1", "CJK HIRAGANA KATAKANA ja": "1", "CJK zh": "1",
        "CJK HANGUL ko": "1",
    }  # fmt: skip
    assert languages_of("مرحبا hi") == ("ar",) and languages_of("") == ()


def test_contamination_exits_with_one_where_there_is_any(tmp_path: Path) -> None:
    place, other = write(tmp_path / "a.jsonl", talk("Is part nine here?")), write(tmp_path / "b.jsonl", talk("Is part ten here?"))
    assert "1 of 1 rows" in burnish("contamination", place, "--against", place, code=1)
    assert "0 of 1 rows" in burnish("contamination", place, "--against", other)


def test_contamination_knows_suites_and_what_a_recipe_measures_with(tmp_path: Path) -> None:
    """A suite of prompts, one whose environment asks, one of texts; a recipe's held-out tasks, by seeds or rows, its held-out rows and its
    suites."""
    found = {name: find_suite(f"burnish/{name}-v1") for name in ("procedural", "plain-english")}
    procedural, prose = found["procedural"].tasks, found["plain-english"].texts
    assert procedural is not None and prose is not None
    env = make_env("burnish/Arithmetic-v0", max_operand=20)
    (of_suite,), _ = env.reset(seed=SEED)
    (of_seed,), _ = env.reset(seed=HELD_OUT_SEEDS[0] + 1)
    trained = write(
        tmp_path / "a.jsonl", talk(procedural(4)[3].prompt[0].text), talk(of_suite.text), {"text": prose(3)[2].text}, talk(of_seed.text)
    )
    suites = [part for name in ("procedural", "arithmetic", "plain-english") for part in ("--suite", f"burnish/{name}-v1")]
    said = burnish("contamination", trained, *suites, code=1)
    assert all(
        place in said for place in ("burnish/procedural-v1:3: 100%", f"burnish/arithmetic-v1:{SEED}: 100%", "plain-english-v1:2: 100%")
    )
    assert "of 224 rows" in said
    held_out = write(tmp_path / "held.jsonl", talk("Is the last order here?"))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "r"\nmodel = "m"\nenvironment = "burnish/Arithmetic-v0"\n[environment_args]\nmax_operand = 20\n'
        f'[sft]\nsteps = 1\ndata = "{trained}"\nheld_out = "{held_out}"\nheld_out_every = 1\n'
        '[evaluation]\ntasks = 5\n[retention]\nsuites = ["burnish/procedural-v1"]\n'
    )
    said = burnish("contamination", trained, "--recipe", str(recipe), code=1)
    assert "of 106 rows" in said and f"recipe.toml:heldout-{HELD_OUT_SEEDS[0] + 1}: 100%" in said and "procedural-v1:3: 100%" in said
    recipe.write_text(recipe.read_text() + "items = 150\n")
    late = write(tmp_path / "late.jsonl", talk(procedural(150)[149].prompt[0].text))
    said = burnish("contamination", late, "--recipe", str(recipe), code=1)
    assert "of 156 rows" in said and "procedural-v1:149: 100%" in said, "as many items as the recipe asks"
    recipe.write_text(recipe.read_text().removesuffix("items = 150\n"))
    clean = write(tmp_path / "b.jsonl", talk("Whose coat is this?"))
    assert "0 of 106 rows" in burnish("contamination", clean, "--recipe", str(recipe))
    assert "1 of 1 rows" in burnish("contamination", held_out, "--against", held_out, code=1)
    assert "needs what is measured: --against PLACE, --suite ID or --recipe FILE" in burnish("contamination", clean, code=2)
    assert "--plugin has no effect without --suite" in burnish("contamination", clean, "--against", clean, "--plugin", "x.py", code=2)


def test_contamination_holds_a_recipe_in_a_run_folder_to_what_that_folder_may_name(tmp_path: Path) -> None:
    run, clean = run_folder(tmp_path, {}, []), write(tmp_path / "b.jsonl", talk("Whose coat is this?"))
    for name in ("mine.py", "../mine.py"):
        (run / name).write_text("print('it ran')\n")
        (run / "recipe.toml").write_text(
            f'name = "r"\nmodel = "m"\nplugins = ["{run / name}"]\nenvironment = "burnish/Arithmetic-v0"\n[evaluation]\ntasks = 5\n'
        )
        said = burnish("contamination", clean, "--recipe", str(run / "recipe.toml"), code=2)
        assert "plugins" in said and "it is run with --trust only, when the run is your own" in said and "it ran" not in said
    assert "0 of 5 rows" in burnish("contamination", clean, "--recipe", str(run / "recipe.toml"), "--trust")
    assert "--trust has no effect without --recipe" in burnish("contamination", clean, "--against", clean, "--trust", code=2)


def test_the_pairs_of_a_step_are_traced_and_their_blend_is_reported(tmp_path: Path) -> None:
    model = make_policy(tmp_path / "policy")
    places = [write(tmp_path / f"{name}.jsonl", {"prompt": "?", "chosen": "yes", "rejected": name}) for name in ("a", "b")]
    said = {"steps": 1, "batch": 4, "data": places[0], "blend": [{"data": places[1], "percent": 25, "name": "general"}]}
    run = run_folder(tmp_path, {"dpo": said}, [{"phase": "dpo", "step": 1, "blend/own": 0.75, "blend/general": 0.25}])
    lay_out_pairs(DPOConfig.model_validate(said), Making(model, 120, {}, 0, 9), run / "data" / "dpo").close()
    lines = burnish("trace", str(run), "1").splitlines()
    assert sorted(tuple(line.split()[1::3]) for line in lines[2:]) == [("general", f"{places[1]}:1"), *[("own", f"{places[0]}:1")] * 3]
    rows = blend_rows(read_run(run))
    assert [(row.source, row.by, row.asked, row.samples, row.rows) for row in rows] == [
        ("own", "pairs", 0.75, 0.75, 1),
        ("general", "pairs", 0.25, 0.25, 1),
    ]


def run_folder(tmp_path: Path, config: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    run = tmp_path / "run"
    (run / "transcripts").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(config))
    (run / "metrics.jsonl").write_text("".join(json.dumps({"time": 1.0, **row}) + "\n" for row in rows))
    return run


def test_trace_gives_the_rows_of_a_supervised_step(tmp_path: Path) -> None:
    model, place = make_policy(tmp_path / "policy"), write(tmp_path / "own.jsonl", *(talk(str(i)) for i in range(3)))
    run = run_folder(tmp_path, {}, [{"phase": "sft", "step": 1}, {"phase": "sft", "step": 2}])
    table = SFTConfig(steps=2, batch=2, data=place)
    lay_out(table.supervised_rows, Making(model, 120, {}, 0, 9), run / "data" / "sft").close()
    said = burnish("trace", str(run), "2")
    data = PreparedData(run / "data" / "sft")
    expected = [drawn.where for drawn in data.drawn(1)]
    assert "sft step 2: positions 2 to 3 of the blend" in said and all(where in said for where in expected)
    assert [line.split()[:3] for line in said.splitlines()[2:]] == [["2", "own", "1"], ["3", "own", "2"]]
    with pytest.raises(ValueError, match=r"has no step 3: sft took 2"):
        trace(run, 3, None)
    with pytest.raises(ValueError, match=r"has no step 1 of rft: sft took 2"):
        trace(run, 1, "rft")


def dpo_run(tmp_path: Path) -> tuple[Path, Path]:
    """A run whose phase of two steps had pairs from a file, with the folder of its pairs."""
    pairs = [{"prompt": f"what is {i}?", "chosen": "four", "rejected": "two"} for i in range(3)]
    run = run_folder(tmp_path, {"dpo": {"steps": 2}}, [{"phase": "dpo", "step": 1}, {"phase": "dpo", "step": 2}])
    table = DPOConfig(steps=2, batch=2, data=write(tmp_path / "pairs.jsonl", *pairs))
    lay_out_pairs(table, Making(make_policy(tmp_path / "policy"), 120, {}, 0, 9), run / "data" / "dpo").close()
    return run, run / "data" / "dpo"


def test_trace_gives_the_pairs_of_a_step(tmp_path: Path) -> None:
    run, folder = dpo_run(tmp_path)
    said = [burnish("trace", str(run), step).splitlines() for step in ("1", "2")]
    assert [lines[0] for lines in said] == ["dpo step 1: 2 pairs", "dpo step 2: 2 pairs"]
    rows = [line.split() for lines in said for line in lines[2:]]
    assert [row[:3] for row in rows] == [["0", "own", "1"], ["1", "own", "1"], ["2", "own", "1"], ["3", "own", "2"]]
    assert {row[4] for row in rows[:3]} == {f"{tmp_path}/pairs.jsonl:{i}" for i in (1, 2, 3)}, "each pair once in every pass"
    (first, _) = json.loads(burnish("trace", str(run), "2", "--json"))["pairs"]
    assert first == {"position": 2, "source": "own", "epoch": 0, "pair": int(rows[2][3]), "better": rows[2][4], "worse": rows[2][4]}
    record = json.loads((folder / "pairs.json").read_text())
    (only,) = record.pop("sources")
    earlier = record | {name: value for name, value in only.items() if name not in ("name", "share", "files")}
    (folder / "pairs.json").write_text(json.dumps(earlier))
    before = burnish("trace", str(run), "2")
    assert "pairs.jsonl, its file 1:" in before, "as an earlier burnish laid it out"
    assert [line.split()[:4] for line in before.splitlines()[2:]] == [row[:4] for row in rows[2:]]


def test_a_phase_whose_data_is_gone_has_no_step_to_trace(tmp_path: Path) -> None:
    run, folder = dpo_run(tmp_path)
    (folder / "pairs.json").unlink()
    assert burnish("trace", str(run), "2", code=2) == f"error: {folder} holds no data of the phase (neither blend.json nor pairs.json)\n"


@pytest.mark.parametrize(
    "change",
    [
        {"pairs": 0}, {"pairs": 4}, {"pairs": "3"}, {"pairs": 2**60}, {"batch": 0}, {"batch": 10**12}, {"order": 1.5}, {"files": [5]},
        {"source": None}, {"share": "1/2"}, {"share": 1}, {"name": "../x"}, {"name": ""},
    ],
)  # fmt: skip
def test_a_record_of_pairs_that_is_none_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    run, folder = dpo_run(tmp_path)
    record = json.loads((folder / "pairs.json").read_text())
    (only,) = record["sources"]
    changed = record | change if change.keys() <= record.keys() else {**record, "sources": [only | change]}
    (folder / "pairs.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"pairs\.json"):
        trace(run, 1, None)


@pytest.mark.parametrize("task", ["train-²", f"train-{'9' * 5000}:x"])
def test_a_task_may_be_called_anything(tmp_path: Path, task: str) -> None:
    run = run_folder(tmp_path, {}, [{"phase": "rft", "step": 4}])
    write(run / "transcripts" / "episodes.jsonl", transcript("train-1", 0, 1.0), transcript(task, 0, 1.0))
    assert [row["task"] for row in trace(run, 4, None).data["rollouts"]] == [task, "train-1"]


def test_no_more_is_shown_of_a_step_than_a_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of kilobytes that says how many pairs a step had, and a long name of the file that each is from."""
    run, folder = dpo_run(tmp_path)
    record = json.loads((folder / "pairs.json").read_text())
    (only,) = record["sources"]
    long = {**record, "batch": 1_000_000, "sources": [{**only, "files": ["n" * 40_000]}]}
    (folder / "pairs.json").write_text(json.dumps(long))
    said = r"error: dpo step 1: its first 4\d\d rows take more than 33554432 characters; so much is not shown of a step\n"
    assert re.fullmatch(said, burnish("trace", str(run), "1", code=2))
    (folder / "pairs.json").write_text(json.dumps({**record, "batch": 1_000_000}))
    monkeypatch.setattr("burnish.cli.data.MOST_TRACED", 5000)
    assert "take more than 5000 characters" in burnish("trace", str(run), "1", code=2), "of short names too"


def test_what_is_shown_of_rollouts_is_bounded_and_holds_nothing_that_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_folder(tmp_path, {}, [{"phase": "rft", "step": 4}])
    talked = [{**transcript("train-9", i, 1.0), "messages": [{"role": "user", "content": "x" * 10_000}]} for i in range(20)]
    write(run / "transcripts" / "episodes.jsonl", *talked)
    monkeypatch.setattr("burnish.cli.data.MOST_TRACED", 5000)
    assert len(trace(run, 4, None).lines) == 22
    write(
        run / "transcripts" / "episodes.jsonl", *talked, *({**one, "sample": 20 + i, "episode": "e" * 999} for i, one in enumerate(talked))
    )
    with pytest.raises(ValueError, match=r"rft step 4: its first \d+ rows take more than 5000 characters"):
        trace(run, 4, None)


def transcript(task: str, sample: int, total: float | None) -> dict[str, Any]:
    judged = {"reward": {"total": total, "parts": {"verdict": total, "cost": -0.5}}} if total is not None else {}
    failed = {"failure": {"kind": "env_error", "culprit": "bench", "detail": "unplugged"}} if total is None else {}
    base = {"run": "r", "phase": "rft", "step": 4, "split": "train", "mode": "sampled", "episode": f"{task}/{sample}", "task": task}
    return {
        "schema": 1,
        **base,
        "seed": 7,
        "sample": sample,
        "messages": [],
        **judged,
        **failed,
        "trainable_tokens": 0,
        "context_tokens": 0,
    }


def test_trace_gives_the_rollouts_of_a_policy_step_with_their_parts(tmp_path: Path) -> None:
    run = run_folder(tmp_path, {}, [{"phase": "rft", "step": 4}])
    rows = [transcript("train-10:sums-3", 0, 1.0), transcript("train-9", 1, None), transcript("train-9", 0, 0.25)]
    write(run / "transcripts" / "episodes.jsonl", *rows, {**transcript("train-1", 0, 1.0), "step": 3})
    said = burnish("trace", str(run), "4", "--phase", "rft").splitlines()
    assert said[0] == "rft step 4: 3 rollouts"
    assert [line.split()[0] for line in said[2:]] == ["train-9", "train-9", "train-10:sums-3"]
    assert "verdict 0.25, cost -0.5" in said[2] and "env_error (bench)" in said[3]


def test_replay_keeps_whole_answers_and_makes_a_catalog_of_them(tmp_path: Path) -> None:
    """A scripted engine that says a word and stops, or goes on to its limit for every third question."""
    model = make_policy(tmp_path / "policy")

    def say(request: GenerateRequest) -> Reply:
        count = request.max_tokens if (request.seed or 0) % 3 == 0 else 3
        tokens = [65] * count
        if count == 3:
            tokens[-1] = request.stop_token_ids[0]
        return Reply(tokens, [-0.1] * count)

    setup = WorkerSetup(model, "burnish/SingleTurn-v0", rollout=RolloutConfig(max_tokens_per_turn=8), engine=EngineConfig(max_context=120))
    worker = RolloutWorker(setup, "replay", engine=ScriptedEngine(say, max_context=120))
    prompts = [(Message("user", f"q{i}"),) for i in range(12)]
    try:
        episodes = data_replay.answers(LoneFleet(worker), prompts, 1.0)
    finally:
        worker.close()
    rows = [row for episode in episodes if (row := data_replay.answered(episode)) is not None]
    assert 0 < len(rows) < 12 and all(row["messages"][-1]["role"] == "assistant" for row in rows)
    data_replay.write_catalog(tmp_path / "replay", "self/policy-replay-v1", "Its own.", rows)
    assert find_catalog(str(tmp_path / "replay")).sets["replay"].about == "Its own."


def test_questions_for_a_replay_are_those_before_the_first_answer(tmp_path: Path) -> None:
    place = write(tmp_path / "a.jsonl", talk("a"), {"messages": [{"role": "user", "content": "b"}]}, {"text": "no question"})
    assert [prompt[-1].text for prompt in data_replay.prompts_of(place, 9, 0)] == ["a", "b"]
    own = list(data_replay.prompts_of(None, 80, 0))
    assert len(own) == 80 and len(set(own)) > 60
    with pytest.raises(ValueError, match="holds no question to ask"):
        list(data_replay.prompts_of(write(tmp_path / "b.jsonl", {"text": "x"}), 9, 0))
