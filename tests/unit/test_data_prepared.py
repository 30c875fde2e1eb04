"""Phases laid out on disk: blended as asked, read back as made, the same after a kill, with every reject in its place."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.phase_parts import on

from burnish.cli.data import catalogs
from burnish.cli.data_replay import write_catalog
from burnish.trainer.data import pairs
from burnish.trainer.data.config import Making
from burnish.trainer.data.prepared import PreparedData, lay_out, survey
from burnish.trainer.data.store import ExampleStore, StoreWriter
from burnish.trainer.data.supervised import SupervisedExample
from burnish.trainer.learner.config import LearnerConfig, OptimizerConfig
from burnish.trainer.learner.learner import Learner
from burnish.trainer.models.importing import ModelSize, new_model
from burnish.trainer.phases.common import PhaseStep
from burnish.trainer.phases.cpt import CPTConfig
from burnish.trainer.phases.dpo import DPOConfig
from burnish.trainer.phases.midtrain import MidtrainConfig
from burnish.trainer.phases.rft import RFTPhaseConfig
from burnish.trainer.phases.sft import SFTConfig
from burnish.trainer.phases.supervised import SupervisedConfig, supervised_steps

pytestmark = pytest.mark.unit

MAX_TOKENS = 300


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose tokenizer gives about a token for two letters."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    texts = [f"order {i} of {i % 7} gaskets: shipped, thank you" for i in range(200)]
    new_model(texts, folder, ModelSize(hidden=32, layers=1, heads=1, intermediate=48, vocab_size=320, max_position=512))
    return folder


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def own(tmp_path: Path) -> str:
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(talk(f"Where is order {i}?", f"order {i} is shipped")) + "\n" for i in range(7)))
    return str(file)


def laid_out(table: SupervisedConfig, model: Path, folder: Path) -> PreparedData:
    return lay_out(table.supervised_rows, Making(model, MAX_TOKENS, {}, seed=3, order=11), folder)


def rows_of(data: PreparedData, steps: range) -> list[tuple[str, int, int]]:
    return [(drawn.source, drawn.epoch, drawn.row) for step in steps for drawn in data.drawn(step)]


def test_a_store_gives_back_what_was_added(tmp_path: Path) -> None:
    examples = [SupervisedExample(np.array(ids, np.int32), np.array(ids) % 2 == 0) for ids in ([3, 0, 2], [], [7], [4, 4])]
    with StoreWriter(tmp_path / "store") as store:
        store.add(examples[:2], row=5, file="a")
        store.add(examples[2:], row=9, file="b")
    assert (store.rows, store.examples, store.tokens, store.trained, store.files) == (2, 4, 6, 4, ("a", "b"))
    read = ExampleStore(tmp_path / "store")
    for i, example in enumerate(examples):
        assert read.example(i).token_ids.tolist() == example.token_ids.tolist()
        assert read.example(i).trainable.tolist() == example.trainable.tolist()
    assert [(read.entry(i).row, read.entry(i).file, read.entry(i).trained) for i in range(4)] == [
        (5, 0, 2),
        (5, 0, 0),
        (9, 1, 0),
        (9, 1, 2),
    ]
    read.close()


def test_a_blend_with_the_curated_catalog_is_trained_as_asked(model: Path, own: str, tmp_path: Path) -> None:
    """Half own rows, the rest a third each: of 60 samples 30, 10, 10 and 10; what does not fit the model is left out by name."""
    table = SFTConfig(steps=10, batch=6, lr=1e-2, own=(own,), blend_ratio=0.5, curated="burnish/general-v1")
    data = laid_out(table, model, tmp_path / "data")
    assert [one.name for one in data.facts] == ["own", "instruction-following", "tool-use", "refusal"]
    learner = Learner(model, LearnerConfig(threads=1, optimizer=OptimizerConfig(lr=1e-2)), seed=0)
    steps: list[PhaseStep] = list(supervised_steps(on(learner), table, data))
    last = steps[-1].metrics
    assert last["blend/own"] == 0.5 and last["rejected_rows"] == 0
    assert [last[f"blend/{one.name}"] for one in data.facts[1:]] == pytest.approx([1 / 6] * 3)
    assert last["loss"] < steps[0].metrics["loss"]
    taught = {one.name: sum(step.metrics[f"blend_tokens/{one.name}"] for step in steps) for one in data.facts}
    assert taught == data.taught(60) and sum(taught.values()) == sum(step.metrics["tokens"] for step in steps)
    drawn = rows_of(data, range(10))
    assert Counter(source for source, *_ in drawn) == {"own": 30, "instruction-following": 10, "tool-use": 10, "refusal": 10}
    passes = [row for source, epoch, row in drawn if source == "own" and epoch < 4]
    assert Counter(passes) == dict.fromkeys(range(1, 8), 4), "every own row once in each pass"
    lines = list(data.ending_lines("sft", 10))
    assert lines[0].startswith("sft blend, own: 50.00% of 60 samples, ")
    assert lines[0].endswith(" of tokens (50.00% of samples asked for), 4.3 passes over its 7")
    left_out = [json.loads(line) for line in (tmp_path / "data" / "rejects.jsonl").read_text().splitlines()]
    assert {row["source"] for row in left_out} <= {"tool-use", "refusal"} and all(">" not in row["reason"] for row in left_out)
    assert len(left_out) == sum(one.rejected for one in data.facts)
    data.close()


def test_two_levels_of_shares(model: Path, own: str, tmp_path: Path) -> None:
    blend = {"own_percent": 40.0, "curated": {"instruction-following": 75.0, "refusal": 25.0, "tool-use": 0.0}}
    table = SFTConfig.model_validate({"steps": 5, "batch": 20, "own": [own], "blend": blend})
    data = laid_out(table, model, tmp_path / "data")
    assert data.blend.counts(100) == (40, 45, 15, 0)
    assert Counter(source for source, *_ in rows_of(data, range(5))) == {"own": 40, "instruction-following": 45, "refusal": 15}


def replay_of(folder: Path, answer: str, id: str = "self/tiny-replay-v1") -> str:
    write_catalog(folder, id, "Its own answers.", [talk(f"{answer} {i}?", f"{answer} {i}.") for i in range(5)])
    return str(folder)


def test_categories_of_several_catalogs_share_one_blend_exactly_and_resume(model: Path, own: str, tmp_path: Path) -> None:
    blend = {
        "own_percent": 40,
        "catalog": ["burnish/general-v1", replay_of(tmp_path / "replay", "said")],
        "curated": {"replay": 50, "instruction-following": 30, "refusal": 20},
    }
    table = SFTConfig.model_validate_json(json.dumps({"steps": 5, "batch": 20, "own": [own], "blend": blend}))
    data = laid_out(table, model, tmp_path / "data")
    assert data.blend.counts(100) == (40, 30, 18, 12)
    rows = rows_of(data, range(5))
    assert Counter(source for source, *_ in rows) == {"own": 40, "replay": 30, "instruction-following": 18, "refusal": 12}
    assert [one.origin for one in data.facts if one.name == "replay"] == ["self/tiny-replay-v1 replay: Its own answers."]
    assert rows_of(laid_out(table, model, tmp_path / "data"), range(3, 5)) == rows[60:], "what a run that resumes draws"


def test_a_list_of_catalogs_shares_the_rest_equally_and_tells_equal_names_apart(model: Path, own: str, tmp_path: Path) -> None:
    first, second = replay_of(tmp_path / "a", "one"), replay_of(tmp_path / "b", "two", "self/other-replay-v1")
    table = SFTConfig.model_validate({"steps": 2, "batch": 10, "own": [own], "blend_ratio": 0.5, "curated": ["burnish/general-v1", first]})
    assert laid_out(table, model, tmp_path / "data").blend.counts(40) == (20, 5, 5, 5, 5)
    named = {"self/tiny-replay-v1:replay": 75, "self/other-replay-v1:replay": 25}
    blend = {"own_percent": 20, "catalog": [first, second], "curated": named}
    data = laid_out(SFTConfig.model_validate({"steps": 1, "batch": 10, "own": [own], "blend": blend}), model, tmp_path / "both")
    assert [(one.name, float(one.share)) for one in data.facts[1:]] == [
        ("self--tiny-replay-v1:replay", 0.6),
        ("self--other-replay-v1:replay", 0.2),
    ]
    assert "self--tiny-replay-v1:replay" in {drawn.source for drawn in data.drawn(0)}


@pytest.mark.parametrize(
    ("file", "data"), [("prose.jsonl", '{"text": "The sea is wide."}\n{"text": "Rain falls."}\n'), ("prose.txt", "A.\n\nB.")]
)
def test_texts_of_a_catalog_are_rehearsed_where_documents_are_read_and_refused_elsewhere(
    model: Path, own: str, tmp_path: Path, file: str, data: str
) -> None:
    (tmp_path / file).write_text(data)
    digest = hashlib.sha256(data.encode()).hexdigest()
    card = f'file = "{file}"\nsha256 = "{digest}"\nabout = "General prose."\nlicence = "CC0-1.0"\n'
    (tmp_path / "catalog.toml").write_text(f'id = "my-team/prose-v1"\n[sets.prose]\n{card}')
    (tmp_path / "notes.txt").write_text("first note\n\nsecond note")
    short = {"steps": 2, "batch": 4, "blend_ratio": 0.5, "curated": str(tmp_path)}
    for kind in (CPTConfig, MidtrainConfig):
        laid = laid_out(kind.model_validate({**short, "own": [str(tmp_path / "notes.txt")]}), model, tmp_path / kind.__name__)
        prose = laid.facts[1]
        assert (prose.name, prose.rows, prose.rejected, prose.trained) == ("prose", 2, 0, prose.tokens - 2)
        assert Counter(source for source, *_ in rows_of(laid, range(2))) == {"own": 4, "prose": 4}
    blend = {"own_percent": 50, "curated": {"prose": 100}, "catalog": str(tmp_path)}
    said = "prose of my-team/prose-v1 holds texts, which cpt and midtrain learn from"
    for table, field in ((short, "sft.curated"), ({"steps": 1, "blend": blend}, r"sft\.blend\.curated")):
        with pytest.raises(ValueError, match=f"{field}: {said}"):
            laid_out(SFTConfig.model_validate({**table, "own": [own]}), model, tmp_path / "sft")
    assert "prose: General prose.\n    texts, file prose" in "\n".join(catalogs(str(tmp_path), 1).lines)


def test_a_blend_by_tokens_comes_near_what_was_asked(model: Path, own: str, tmp_path: Path) -> None:
    """Over many passes: rows differ in length, so no single step is exact."""
    table = SFTConfig(steps=150, batch=10, own=(own,), blend_ratio=0.5, curated=True, blend_by="tokens")
    data = laid_out(table, model, tmp_path / "data")
    taught = data.taught(1500)
    assert taught["own"] / sum(taught.values()) == pytest.approx(0.5, abs=0.02)
    assert float(data.facts[0].share) != 0.5 and data.facts[0].asked == 0.5
    survey(table.supervised_rows, Making(model, MAX_TOKENS, {}), limit=8)


def test_what_is_laid_out_is_taken_again_and_what_is_half_is_made_anew(model: Path, own: str, tmp_path: Path) -> None:
    table = SFTConfig(steps=4, batch=5, own=(own,), blend_ratio=0.7, curated=True)
    before = laid_out(table, model, tmp_path / "data")
    rows = rows_of(before, range(4))
    digests = [one.digest for one in before.facts]
    Path(own).write_text(json.dumps(talk("changed", "since")) + "\n")
    again = laid_out(table, model, tmp_path / "data")
    assert rows_of(again, range(4)) == rows and [one.digest for one in again.facts] == digests
    (tmp_path / "data" / "blend.json").unlink()  # as after a kill while it was laid out
    anew = laid_out(table, model, tmp_path / "data")
    assert anew.facts[0].rows == 1 and anew.facts[1].digest == digests[1]


def test_documents_and_conversations_blend_in_one_phase(model: Path, tmp_path: Path) -> None:
    """Of a conversation every token is learned there, as of a document."""
    (tmp_path / "notes.txt").write_text("first note\n\nsecond note\n\n" + "long " * 400)
    table = CPTConfig(steps=3, batch=4, own=(str(tmp_path / "notes.txt"),), blend_ratio=0.5, curated=True)
    data = laid_out(table, model, tmp_path / "data")
    examples = [example for step in range(3) for example in data.examples(step)]
    assert all(example.trainable[1:].all() and not example.trainable[0] for example in examples)
    assert data.facts[0].rows == 3 and data.facts[0].examples > 3, "a long document is cut, and loses nothing"
    assert all(one.trained == one.tokens - one.examples for one in data.facts)


def bad_rows(own: str) -> Sequence[str]:
    lines = Path(own).read_text().splitlines()
    lines[1:1] = ["{", json.dumps({"messages": [{"role": "boss", "content": "x"}]}), json.dumps(talk("long", "word " * 400))]
    Path(own).write_text("\n".join(lines) + "\n")
    return lines


def test_unfit_rows_are_left_out_up_to_a_limit_with_their_place(model: Path, own: str, tmp_path: Path) -> None:
    bad_rows(own)
    data = laid_out(SFTConfig(steps=1, batch=4, data=own, max_rejects=3), model, tmp_path / "data")
    assert (data.facts[0].rows, data.facts[0].rejected) == (7, 3)
    assert data.metrics(0, data.examples(0)) == {"rejected_rows": 3.0}
    rejects = [json.loads(line) for line in (tmp_path / "data" / "rejects.jsonl").read_text().splitlines()]
    assert [(row["source"], row["file"], row["line"], row["field"]) for row in rejects] == [
        ("own", own, 2, ""), ("own", own, 3, "messages[0]"), ("own", own, 4, "")
    ]  # fmt: skip
    assert rejects[0]["reason"].startswith("not JSON") and "more than the 300 allowed" in rejects[2]["reason"]
    with pytest.raises(
        ValueError, match=r"own\.jsonl:2: not JSON(.|\n)*own\.jsonl:4: (.|\n)*max_rejects: 2 rows may be left out, and 3 are"
    ):
        laid_out(SFTConfig(steps=1, batch=4, data=own, max_rejects=2), model, tmp_path / "less")
    with pytest.raises(ValueError, match=r"own\.jsonl:4: the conversation is \d+ tokens long[^\n]*$"):
        laid_out(SFTConfig(steps=1, batch=4, data=own), model, tmp_path / "none")


def test_no_more_is_read_where_far_too_many_rows_are_unfit(model: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text("{}\n" * 5000)
    says = r"own\.jsonl:20: .*\n… and 987 more problems$"
    with pytest.raises(ValueError, match=says):
        laid_out(SFTConfig(steps=1, data=str(own), max_rejects=5), model, tmp_path / "sft")
    with pytest.raises(ValueError, match=says):
        pairs.lay_out(DPOConfig(steps=1, data=str(own), max_rejects=5), Making(model, MAX_TOKENS, {}), tmp_path / "dpo")
    for phase in ("sft", "dpo"):
        assert len((tmp_path / phase / "rejects.jsonl").read_text().splitlines()) == 1005


def test_a_category_that_does_not_fit_the_model_at_all_is_named(model: Path, own: str, tmp_path: Path) -> None:
    table = SFTConfig(steps=1, own=(own,), blend_ratio=0.5, curated=True)
    says = (
        r"^sft: none is fit of all \d+ rows of burnish/general-v2 tool-use:0: the conversation is \d+ tokens long, more than the "
        r"150 allowed; shorten it or raise the limit; or name another catalog, or categories without this$"
    )
    with pytest.raises(ValueError, match=says):
        lay_out(table.supervised_rows, Making(model, 150, {}), tmp_path / "sft")


def test_a_damaged_file_loses_no_row_before_the_damage(model: Path, own: str, tmp_path: Path) -> None:
    text = Path(own).read_text()
    table = tmp_path / "b.csv"
    table.write_bytes(b'messages\n"' + json.dumps(talk("q", "a")["messages"]).replace('"', '""').encode() + b'"\n\xff\xff\n')
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jsonl").write_text(text)
    table.rename(tmp_path / "folder" / "b.csv")
    data = laid_out(SFTConfig(steps=1, data=str(tmp_path / "folder"), max_rejects=1), model, tmp_path / "data")
    assert (data.facts[0].rows, data.facts[0].rejected) == (8, 1)
    (reject,) = [json.loads(line) for line in (tmp_path / "data" / "rejects.jsonl").read_text().splitlines()]
    assert (reject["file"], reject["line"]) == (f"{tmp_path}/folder/b.csv", 3)
    assert reject["reason"].startswith("not UTF-8 text") and reject["reason"].endswith("; nothing of the file is read from here on")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"blend_ratio": 0.5}, "needs curated = true, or the name of a catalog, too"),
        ({"curated": True}, r"needs blend_ratio = 0\.7, or another share, too"),
        ({"blend_ratio": 0.5, "curated": True, "blend": {"own_percent": 1, "curated": {"a": 100}}}, "say the same; remove one"),
        ({"blend_by": "tokens"}, "blend_by has no effect without a blend"),
        ({"own": ["a.jsonl"], "data": None}, "own has no effect without a blend"),
        ({"blend_ratio": 0.5, "curated": True, "data": "a.jsonl", "own": []}, "write own = … beside a blend"),
        ({"data": None, "blend": {"own_percent": 50, "curated": {"a": 60, "b": 30}}}, "must sum to 100, not 90"),
        ({"data": None, "blend": {"own_percent": 50, "curated": {"a": 160, "b": -60}}}, "b is negative"),
        ({"blend_ratio": 1.5, "curated": True}, "less than or equal to 1"),
        ({"blend_ratio": 0.5, "curated": []}, "or a list of these"),
        ({"data": None, "blend": {"own_percent": 50, "curated": {"a": 100}, "catalog": []}}, "at least 1 item"),
    ],
)
def test_blends_that_contradict_themselves_are_refused(table: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SFTConfig.model_validate({"steps": 1, "data": "a.jsonl", **table})


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"blend_ratio": 0.5, "curated": "burnish/general-v7"}, "no such version; there is burnish/general-v1"),
        ({"blend_ratio": 0.5, "curated": "no/where"}, "is no id .* and no folder with a catalog.toml"),
        (
            {"blend": {"own_percent": 50.0, "curated": {"agents": 100.0}}},
            "has no category 'agents'; it has instruction-following, tool-use",
        ),
        (
            {"blend": {"own_percent": 50.0, "curated": {"x": 100.0}, "catalog": ["burnish/general-v1", "replay"]}},
            "burnish/general-v1 and self/tiny-replay-v1 have no category 'x'; they have instruction-following, tool-use, refusal, replay",
        ),
        ({"blend_ratio": 0.5, "curated": ["replay", "replay"]}, "two of the catalogs are called self/tiny-replay-v1; name each once"),
        ({"blend": {"own_percent": 33.3333333, "curated": {"refusal": 100.0}}}, r"sft\.blend: shares as fine as these repeat only after"),
    ],
)
def test_blends_that_cannot_be_are_refused(
    model: Path, own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: dict[str, Any], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    replay_of(tmp_path / "replay", "said")
    with pytest.raises(ValueError, match=says):
        laid_out(SFTConfig.model_validate({"steps": 1, "own": [own], **table}), model, tmp_path / "data")


def test_the_demonstrations_beside_millions_of_episodes_are_laid_out_and_read_back(model: Path, own: str, tmp_path: Path) -> None:
    table = RFTPhaseConfig.model_validate({"steps": 2_000, "groups_per_step": 64, "group_size": 16, "replay": {"data": own, "share": 0.5}})
    wanted = table.supervised_rows
    assert wanted is not None and (wanted.samples, wanted.batch) == (2_048_000, 1_024), "as many as episodes, a step's beside each step"
    data = lay_out(wanted, Making(model, MAX_TOKENS, {}), tmp_path / "data")
    assert len(data.at(range(2_047_999, 2_048_000))) == 1
