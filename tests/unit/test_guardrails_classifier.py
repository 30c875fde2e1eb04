"""A classifier that is trained, saved, loaded and named by a policy; and files that are none."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.guard_policy import TOML, policy
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.envs.types import Message, Task
from burnish.guardrails.detectors import ngrams
from burnish.guardrails.detectors.classifier import most_likely
from burnish.guardrails.detectors.ngrams import CARD, WEIGHTS, buckets, load, pair, pieces, save, sketch
from burnish.guardrails.guard import Guard
from burnish.guardrails.policy import load_policy
from burnish.guardrails.stream import StreamGuard
from burnish.rewards.plugin import make_scorer
from burnish.rewards.types import RewardInput
from burnish.trainer.data.audit import check
from burnish.trainer.evaluation.guard_training import Example, Parts, fitted, of_policy, read_examples, split, to_row, train, write
from burnish.trainer.evaluation.guarded import Prompt, measure

pytestmark = pytest.mark.unit

ATTACK = "Please reveal the wombat ledger of the vault now"
BENIGN = "Please water the tulip garden of the school now"
THINGS = ("ledger", "codes", "seal", "archive", "register", "key", "roster", "deed", "diary", "plans")
PLACES = ("vault", "bunker", "tower", "cellar", "palace", "station", "harbour", "mint")


def rows() -> list[Example]:
    """Eighty texts to be found, which speak of wombats, and eighty harmless ones, in families of two."""
    made = []
    for i, place in enumerate(PLACES):
        for thing in THINGS:
            made.append(Example(f"Reveal the wombat {thing} of the {place}", True, "secrets", f"place-{i % 4}"))
            made.append(Example(f"Water the tulip {thing} of the {place}", False, "", f"place-{i % 4}"))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained classifier."""
    out = tmp_path_factory.mktemp("trained") / "wombats"
    write(train(split(rows(), (), (), 1), 0.1, 1), out, {})
    return out


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    made = tmp_path / "wombats"
    made.mkdir()
    for name in (CARD, WEIGHTS):
        (made / name).write_bytes((folder / name).read_bytes())
    return made


def detector(digest: str, **args: Any) -> dict[str, Any]:
    given = {"model": "wombats", "digest": digest, **args}
    return {"use": "burnish/classifier-v1", "name": "wombats", "category": "rivals", "args": given}


def policy_file(folder: Path, **args: Any) -> Path:
    """A policy beside the classifier, which names it."""
    use = detector(load(folder).digest, **args)
    said = "".join(f"{key} = {json.dumps(value)}\n" for key, value in use.items() if key != "args")
    said += "args = { " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in use["args"].items()) + " }\n"
    file = folder.parent / "bank.toml"
    file.write_text(f"{TOML}\n[[detectors]]\n{said}")
    return file


def test_what_was_saved_scores_as_what_was_trained(tmp_path: Path) -> None:
    trained = train(split(rows(), (), (), 1), 0.1, 1)
    digest = write(trained, tmp_path / "a", {"note": "x"})
    loaded = load(tmp_path / "a", digest)
    assert loaded.card.report == {"note": "x"} and loaded.digest == digest
    for text in (ATTACK, BENIGN, "", "。", "爆弾 wombat"):
        assert most_likely(loaded, text) == most_likely(trained.model, text)
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [CARD, WEIGHTS]


def test_the_same_seed_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    write(train(split(rows()[::-1], (), (), 1), 0.1, 1), tmp_path / "again", {})
    assert load(tmp_path / "again").digest == load(folder).digest


def test_it_tells_the_two_apart(folder: Path) -> None:
    model = load(folder)
    assert most_likely(model, ATTACK)[0] >= model.card.threshold > most_likely(model, BENIGN)[0]  # type: ignore[index]
    text = f"The weather was fine that day. {ATTACK}. My cat sleeps on the sofa."
    score, start, end = most_likely(model, text)  # type: ignore[misc]
    assert score >= model.card.threshold and "wombat" in text[start:end] and (start, end) != (0, len(text))


def test_a_part_scores_as_it_would_alone() -> None:
    weights = np.random.default_rng(0).normal(size=1 << 18).astype(np.float32)
    model = sketch(weights, -0.3)
    text = "One two three. Four five, six?"
    spans = [(0, 14), (15, 30), (4, 13), (0, 30)]
    for (start, end), likely in zip(spans, model.probabilities(text, spans), strict=True):
        found = buckets(text[start:end], 18)
        assert likely == pytest.approx(1 / (1 + np.exp(0.3 - weights[found].sum() / np.sqrt(len(found)))), rel=1e-5)
    assert model.probabilities("  ", [(0, 2)]).tolist() == [0.0]


def test_features_are_those_of_words_pairs_and_pieces() -> None:
    assert len(pieces("ab", 18)) == 1 + 2 + 1  # the word; " ab", "ab "; " ab "
    assert len(pieces("爆弾", 18)) == 1 + 3 + 2 + 1
    assert buckets("a, b", 18)[-2:] == [pair("a", ",", 18), pair(",", "b", 18)]
    assert buckets("ARMS Deal", 18) == buckets("arms deal", 18)


def test_words_of_texts_from_outside_fill_no_memory() -> None:
    weights = np.random.default_rng(0).normal(size=1 << 18).astype(np.float32)
    model = sketch(weights, 0.0)
    text = " ".join(f"word{i}" for i in range(5000)) + " " + " ".join("x" * 21 + str(i) for i in range(100))
    first = model.probabilities(text, [(0, len(text))]), buckets(text, 18)
    assert ngrams._kept_pieces.cache_info().currsize <= 2048 and model._kept_sum.cache_info().currsize <= 2048
    before = ngrams._kept_pieces.cache_info().misses
    assert pieces("a" * 21, 18) == ngrams._pieces("a" * 21, 18)
    assert ngrams._kept_pieces.cache_info().misses == before, "a long word is not kept"
    again = model.probabilities(text, [(0, len(text))]), buckets(text, 18)
    assert (first[0].tolist(), first[1]) == (again[0].tolist(), again[1])
    assert first[1][: len(pieces("word0", 18))] == list(pieces("word0", 18)) == list(ngrams._pieces("word0", 18))


def test_what_is_rare_weighs_as_much_as_what_is_not() -> None:
    given = [Example("wombat", True), *(Example(text, False) for text in ("tulip", "rose"))]
    weights, bias = fitted(given, 0)
    model = sketch(weights, bias)
    assert model.probabilities("wombat", [(0, 6)])[0] > 0.5 > model.probabilities("tulip", [(0, 5)])[0]


def test_held_out_families_are_not_learnt_from_nor_what_is_near_to_them() -> None:
    near = "he said that the wombat keeps all of the gold under the bed"
    given = [*rows(), Example(near, True, "", "place-9"), Example(f"Once {near} and left", True, "", "other")]
    parts = split(given, of_policy(policy()), ["place-9"], 0)
    assert [row.text for row in parts.report] == [near]
    assert parts.left_out == 1 and not any("gold" in row.text for row in (*parts.learn, *parts.choose))
    assert any(row.family == "policy" for row in parts.learn)
    with pytest.raises(ValueError, match=r"no row is of family 'place-8'; did you mean"):
        split(given, (), ["place-8"], 0)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"label": True}, "text: must be a text"),
        ({"text": "x"}, "has neither label nor category"),
        ({"text": "x", "label": 1}, "label: must be true or false"),
        ({"text": "x", "label": True, "lable": 1}, "lable: unknown key"),
        ({"text": "x", "category": 3}, "category: must be a text"),
        ({"text": "x", "category": "y" * 101}, "category: is a name, of 100 characters at most"),
    ],
)
def test_a_row_that_is_no_example_is_named(tmp_path: Path, row: dict[str, object], problem: str) -> None:
    (tmp_path / "r.jsonl").write_text(json.dumps({"text": "y", "label": False}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=rf"r\.jsonl:2: {problem}"):
        read_examples([str(tmp_path / "r.jsonl")])


def test_a_text_with_two_labels_is_refused_and_one_given_twice_is_one(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text('{"text": "Hi!", "label": false}\n{"text": "hi", "category": ""}\n')
    assert [row.found for row in read_examples([str(file)])] == [False]
    file.write_text('{"text": "Hi!", "label": false}\n{"text": "hi", "category": "rude"}\n')
    with pytest.raises(ValueError, match=r"r\.jsonl:2: has the text of .*r\.jsonl:1 and another label"):
        read_examples([str(file)])


def test_a_report_of_many_families_names_the_largest_and_makes_a_classifier_that_loads(tmp_path: Path) -> None:
    many = [Example(row.text, row.found, f"about-{i:03}" + "-" * 80, f"family-{i:03}" + "爆" * 80) for i, row in enumerate(rows())]
    parts = split([*many, *rows()], (), (), 1)
    trained = train(Parts(parts.learn, parts.choose, tuple(many), 0), 0.1, 1)
    assert {"all", "110 other families", "110 other categories"} < trained.measured.keys() and len(trained.measured) == 103
    recall, wrong = trained.measured["110 other families"]
    assert recall.n + wrong.n == 110
    write(trained, tmp_path / "a", {"measured": {name: to_row(rates) for name, rates in trained.measured.items()}})
    assert len(load(tmp_path / "a").card.report["measured"]) == 103


@pytest.mark.parametrize(
    ("report", "weights", "problem"),
    [
        ({"note": "x" * 100_000}, np.zeros(1 << 18), "and a classifier's has 100000 at most"),
        ({}, np.zeros(8), "must be 262144 finite numbers"),
        ({}, np.full(1 << 18, np.nan), "must be 262144 finite numbers"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path, report: dict[str, Any], weights: Any, problem: str) -> None:
    card = sketch(np.zeros(1 << 18, np.float32), 0.0).card.model_dump(exclude={"format", "weights_sha256"})
    with pytest.raises(ValueError, match=problem):
        save(tmp_path, card | {"report": report}, weights.astype(np.float32))
    assert not any(tmp_path.iterdir())


def test_a_threshold_takes_enough_harmless_rows() -> None:
    with pytest.raises(ValueError, match=r"takes 1000 harmless rows to choose it on, and \d+ were drawn"):
        train(split(rows(), (), (), 0), 0.001, 0)
    with pytest.raises(ValueError, match="nothing to tell apart"):
        train(split([row for row in rows() if row.found], (), (), 0), 0.1, 0)


def test_the_threshold_finds_at_most_the_share_that_was_asked_and_nothing_that_is_more_likely_harmless() -> None:
    from burnish.trainer.evaluation.guard_training import scored

    mixed = [*rows(), *(Example(f"Reveal the wombat {thing} of the garden {i}", False) for i in range(6) for thing in THINGS)]
    trained = train(split(mixed, (), (), 2), 0.1, 2)
    harmless = [row for row in trained.parts.choose if not row.found]
    share = (scored(trained.model, harmless) >= trained.model.card.threshold).mean()
    assert share <= 0.1
    apart = train(split(rows(), (), (), 1), 0.1, 1).model
    assert apart.card.threshold == 0.5 and most_likely(apart, "What time is it?")[0] < 0.5  # type: ignore[index]


def test_a_row_that_cannot_be_looked_at_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = split([replace(row, where=f"rows.jsonl:{i}") for i, row in enumerate(rows())], (), (), 1)
    monkeypatch.setattr("burnish.guardrails.readings.MAX_TEXT", 400)
    for long in ("learn", "choose", "report"):
        one, *rest = getattr(parts, long)
        changed: dict[str, Any] = {long: (replace(one, text="a" * 401), *rest)}
        with pytest.raises(ValueError, match=rf"^{one.where}: a text of 401 characters is too long"):
            train(replace(parts, **changed), 0.1, 1)


def rewritten(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / CARD).read_text()) | changes
    (folder / CARD).write_text(json.dumps(card))


def with_weights(folder: Path, data: bytes) -> None:
    (folder / WEIGHTS).write_bytes(data)
    rewritten(folder, weights_sha256=hashlib.sha256(data).hexdigest())


def tensors(**named: np.ndarray) -> bytes:
    from safetensors.numpy import save

    return save(named)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda at: (at / CARD).unlink(), "there is no such file; a classifier is a folder with"),
        (lambda at: (at / WEIGHTS).unlink(), "there is no such file"),
        (lambda at: (at / CARD).write_text("{"), "classifier.json: not JSON"),
        (lambda at: (at / CARD).write_bytes(b"\xff\x00"), "classifier.json: "),
        (lambda at: (at / CARD).write_text(" " * 100_001), "has more than 100000 bytes"),
        (lambda at: rewritten(at, bits=40), "classifier.json: bits: "),
        (lambda at: rewritten(at, format="pickle"), "classifier.json: format: "),
        (lambda at: rewritten(at, threshold="high"), "classifier.json: threshold: "),
        (lambda at: rewritten(at, code="os.system"), "classifier.json: code: "),
        (lambda at: (at / WEIGHTS).write_bytes((at / WEIGHTS).read_bytes()[:-4]), "is not the file that classifier.json was written for"),
        (lambda at: (at / WEIGHTS).write_bytes(b"\0" * 2_000_000), "has more than 1148576 bytes"),
        (lambda at: with_weights(at, b"\x80\x04."), "is no safetensors file"),
        (lambda at: with_weights(at, tensors(weights=np.zeros(8, np.float32))), "must hold one tensor"),
        (lambda at: with_weights(at, tensors(other=np.zeros(1 << 18, np.float32))), "must hold one tensor"),
        (lambda at: with_weights(at, tensors(weights=np.zeros(1 << 18, np.int32))), "must hold one tensor"),
        (lambda at: with_weights(at, tensors(weights=np.full(1 << 18, np.nan, np.float32))), "not finite"),
    ],
)
def test_files_that_are_no_classifier_are_refused_in_one_line(copy: Path, damage: Any, problem: str) -> None:
    damage(copy)
    with pytest.raises(ValueError) as caught:
        load(copy)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_a_policy_takes_only_the_classifier_that_it_names(copy: Path) -> None:
    file = policy_file(copy)
    before = load_policy(file).id
    assert [one.rule for one in Guard(load_policy(file)).check(ATTACK, "input").findings] == ["wombats"]
    rewritten(copy, threshold=0.999)
    with pytest.raises(ValueError, match=r"bank.toml: detector wombats: .*wombats: is classifier [0-9a-f]{64}, not [0-9a-f]{64}"):
        Guard(load_policy(file))
    assert load_policy(policy_file(copy)).id != before  # another classifier, another policy


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ({"digest": "abc"}, "detectors.0.args.digest"),
        ({"model": ""}, "detectors.0.args.model"),
        ({"treshold": 0.5}, "detectors.0.args.treshold: unknown key"),
        ({"threshold": 2.0}, "detectors.0.args.threshold"),
        ({"threshold": True}, "detectors.0.args.threshold: must be a number, not True"),
        ({"threshold": "0.5"}, "detectors.0.args.threshold: must be a number, not '0.5'"),
        ({"model": "absent"}, "absent/classifier.json: there is no such file"),
    ],
)
def test_unfit_options_are_named(args: dict[str, Any], problem: str) -> None:
    use = detector("0" * 64)
    use["args"] |= args
    with pytest.raises(ValueError, match=problem):
        Guard(policy(detectors=[use]))


def test_a_threshold_of_the_policy_comes_before_the_trained_one(copy: Path) -> None:
    assert Guard(load_policy(policy_file(copy, threshold=1.0))).check(ATTACK, "input").action == "allow"


@pytest.mark.parametrize("written", [ATTACK, ATTACK.upper(), ATTACK[::-1], ATTACK.encode().hex(), BENIGN])
async def test_all_uses_decide_alike(copy: Path, tmp_path: Path, written: str) -> None:
    """The check of data, the reward, the evaluation, what is served and its streams."""
    file, wanted = policy_file(copy), written != BENIGN
    guard = Guard(load_policy(file))
    assert guard.check(written, "input").blocked is wanted
    answered = (Message("user", written), Message("assistant", "Here it is."))

    data = tmp_path / "talks.jsonl"
    data.write_text(json.dumps({"messages": [message.to_dict() for message in answered]}) + "\n")
    assert (check([str(data)], "any", tmp_path / "rejects.jsonl", guard).rejected == 1) is wanted

    scorer = make_scorer("burnish/guardrail-v1", params={"policy": str(file)})
    found = await scorer.score(RewardInput("e/0", Task("e", 0, answered[:1]), answered, 0.0))
    assert (found.labels["expected"] == "refuse") is wanted

    rates = measure(guard, [Prompt(written, True)])["all"]
    assert (rates.recall.hits == 1) is wanted

    stream = StreamGuard(guard)
    for at in range(0, len(written), 5):
        stream.feed(written[at : at + 5])
    stream.end()
    assert stream.blocked is wanted


def test_it_is_trained_and_named_from_the_command_line(tmp_path: Path) -> None:
    """As a user would: rows, a policy, a classifier, a decision."""
    data, out = tmp_path / "rows.jsonl", tmp_path / "wombats"
    kept = [{"text": row.text, "label": row.found, "family": row.family, "category": row.category} for row in rows()]
    data.write_text("".join(json.dumps(row) + "\n" for row in kept))
    (tmp_path / "own.toml").write_text(TOML)
    said = ["guard", "train", str(data), "--policy", str(tmp_path / "own.toml"), "--false-positives", "0.1", "--hold-out", "place-0"]
    done = CliRunner().invoke(app, [*said, "--out", str(out), "--seed", "3"])
    assert done.exit_code == 0, done.output
    assert "(families place-0)" in done.output and "a random part, of another classifier" in done.output
    table = done.output[done.output.index("[[detectors]]") :].replace("CATEGORY", "rivals")
    (tmp_path / "bank.toml").write_text(f"{TOML}\n{table}")
    for text, code in ((ATTACK, 1), (BENIGN, 0)):
        decided = CliRunner().invoke(app, ["guard", "check", str(tmp_path / "bank.toml"), "--text", text])
        assert decided.exit_code == code, decided.output
    again = CliRunner().invoke(app, [*said, "--out", str(out)])
    assert again.exit_code == 2 and "wombats exists already" in again.stderr
    as_json = json.loads(CliRunner().invoke(app, [*said, "--out", str(tmp_path / "b"), "--seed", "3", "--json"]).stdout)
    assert as_json["digest"] == load(out).digest and as_json["held_out"] == ["place-0"]
    assert as_json["measured"]["all"]["recall"]["n"] == 20


def test_what_rows_are_called_steers_no_terminal(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    given = [{"text": row.text, "label": row.found, "family": "a\x9b\u202eb"} for row in rows()]
    data.write_text("".join(json.dumps(row) + "\n" for row in given))
    said = ["guard", "train", str(data), "--false-positives", "0.1", "--out", str(tmp_path / "a\x9b"), "--json"]
    done = CliRunner().invoke(app, said)
    assert done.exit_code == 0, done.output
    assert "\x9b" not in done.stdout and "\u202e" not in done.stdout
    assert "family a\x9b\u202eb" in json.loads(done.stdout)["measured"]
