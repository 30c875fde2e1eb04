"""Grader JSON: what is read and what is refused, what templates fill in, and what texts are worth, by hand."""

from __future__ import annotations

import asyncio
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.envs.types import Message, Task
from burnish.rewards.graders.judge import read_number
from burnish.rewards.graders.multi import grade, require_packages
from burnish.rewards.graders.templates import MissingReference, Sample, Template
from burnish.rewards.graders.text_similarity import similarity
from burnish.rewards.graders.types import read_grader
from burnish.rewards.plugin import make_scorer
from burnish.rewards.types import RewardInput, Score

pytestmark = pytest.mark.unit

ID = "burnish/openai-grader-v1"
EXACT = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.reference_answer}}",
}
CLOSE = {**EXACT, "type": "text_similarity", "name": "close", "evaluation_metric": "rouge_1"} | {"operation": None}
CLOSE.pop("operation")
RATE = {"type": "score_model", "name": "rate", "model": "judge", "input": [{"role": "user", "content": "{{sample.output_text}}"}]}


def episode(answer: str, **data: Any) -> RewardInput:
    messages = (Message("user", "2 + 2?"), Message("assistant", answer))
    return RewardInput("t/0", Task("t", 0), messages, 0.0, data={"reference_answer": "4", **data})


def score(grader: dict[str, Any], answer: str, options: dict[str, Any] | None = None, **data: Any) -> Score:
    return asyncio.run(make_scorer(ID, params={"grader": grader, **(options or {})}).score(episode(answer, **data)))


@pytest.mark.parametrize(
    ("operation", "answer", "value"),
    [
        ("eq", "Straße 4", 1.0),
        ("eq", "straße 4", 0.0),
        ("ne", "straße 4", 1.0),
        ("like", "In der Straße 4.", 1.0),
        ("like", "in der straße 4", 0.0),
        ("ilike", "in der STRASSE 4", 1.0),
        ("ilike", "in der Straße", 0.0),
    ],
)
def test_string_check(operation: str, answer: str, value: float) -> None:
    assert score({**EXACT, "operation": operation, "reference": "Straße 4"}, answer) == Score(value)


CAT = ("the cat sat on the mat", "the cat sat on a mat")


@pytest.mark.parametrize(
    ("metric", "pair", "expected"),
    [
        ("fuzzy_match", ("abcd", "abd"), 2 * 3 / 7),
        ("rouge_1", CAT, 2 * 5 / 12),  # the, cat, sat, on, mat of 6 and 6 words
        ("rouge_2", CAT, 2 * 3 / 10),  # the cat, cat sat, sat on
        ("rouge_3", CAT, 2 * 2 / 8),
        ("rouge_4", CAT, 2 * 1 / 6),
        ("rouge_5", CAT, 0.0),
        ("rouge_l", ("the mat sat", "the cat sat on a mat"), 2 * 2 / 9),  # in order: the … sat, or the … mat
        ("rouge_1", ("The CAT, sat!", "the cat sat"), 1.0),
        ("gleu", CAT, (5 + 3 + 2 + 1) / (6 + 5 + 4 + 3)),
        ("bleu", CAT, math.exp(sum(math.log(p) for p in (5 / 6, 3 / 5, 2 / 4, 1 / 3)) / 4)),
        ("bleu", ("the cat", "the cat sat on"), math.exp(1 - 4 / 2)),  # every n-gram is right, and half the length is missing
        ("bleu", ("dog", "cat"), 0.0),
    ],
)
def test_text_similarity_by_hand(metric: str, pair: tuple[str, str], expected: float) -> None:
    assert similarity(metric, *pair) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("metric", "package"), [("bleu", "sacrebleu"), ("rouge_l", "rapidfuzz"), ("rouge_2", None)])
def test_a_metric_whose_package_is_missing_says_what_to_install(metric: str, package: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.rpc.extras.find_spec", lambda name: None)
    grader = read_grader({**CLOSE, "evaluation_metric": metric})
    if package is None:
        require_packages(grader)
        return
    with pytest.raises(
        ValueError, match=rf"needs {package}, which is not installed here: in burnish's checkout, pip install .* '\.\[graders\]'"
    ):
        require_packages(grader)


@pytest.mark.parametrize("metric", ["fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_l"])
def test_equal_texts_are_worth_one_and_nothing_is_worth_nothing(metric: str) -> None:
    assert similarity(metric, "yes", "yes") == similarity(metric, *(CAT[0],) * 2) == 1.0
    assert similarity(metric, "", "yes") == similarity(metric, "yes", "") == 0.0


def test_a_threshold_adds_a_part_and_changes_no_value() -> None:
    grader = {**CLOSE, "reference": "one two", "pass_threshold": 0.8}
    assert score(grader, "one two three") == Score(0.8, {"passed": 1.0})
    assert score({**grader, "pass_threshold": 0.81}, "one two three") == Score(0.8, {"passed": 0.0})


def test_templates_fill_in_paths() -> None:
    item = {"a": {"b": [1, {"c d": "x"}]}, "flag": True, "none": None}
    sample = Sample('{"x": {"y": [10, 20]}}')
    for text, expected in {
        "{{item.a.b[0]}}": "1",
        "{{ item.a.b.0 }}": "1",
        "{{item.a.b[1]['c d']}}": "x",
        '{{item["a"].b[1]}}': '{"c d": "x"}',
        "{{item.flag}}/{{item.none}}": "true/null",
        "{{sample.output_json.x.y[1]}}": "20",
        "{{sample.output_json}}": '{"x": {"y": [10, 20]}}',
        "no reference, { one brace }": "no reference, { one brace }",
    }.items():
        assert Template(text).fill(sample, item) == expected


def test_what_is_filled_in_is_not_looked_at_again() -> None:
    assert Template("{{item.a}} {{sample.output_text}}").fill(Sample("{{item.secret}}"), {"a": "{{item.secret}}", "secret": "x"}) == (
        "{{item.secret}} {{item.secret}}"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{}}", "is no reference"),
        ("{{item}}", "is no reference"),
        ("{{item.}}", "is no reference"),
        ("{{item.a[}}", "is no reference"),
        ("{{item.a b}}", "is no reference"),
        ("{{.item.a}}", "is no reference"),
        ("{{itme.a}}", r"refers to 'itme'; did you mean 'item'\?"),
        ("{{sample.output_txt}}", r"the sample has no 'output_txt'; did you mean 'output_text'\?"),
        ("{{sample.output_text.x}}", "output_text is a text without parts"),
        ("{{item.a", "is not closed"),
        ("{{item.a}} {{item.b", r"is not closed: '\{\{item.b'"),
        ("}} {{item.a}}}} {{", "is not closed"),
        ("{{{item.a}}", "is no reference"),
        ("{{item.a}}" * 201, "more than 200 references"),
    ],
)
def test_what_is_no_reference_is_refused_at_load(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_grader({**EXACT, "input": text})


def test_a_template_of_brackets_that_are_not_closed_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="is not closed"):
        Template("{{" * 1_000_000)
    assert Template("{{ item.a }}}} }}{{item.b}}").fill(Sample(""), {"a": 1, "b": "{{item.a}}"}) == "1}} }}{{item.a}}"


def test_an_item_without_what_is_asked_for_is_a_failure_that_names_it() -> None:
    with pytest.raises(MissingReference, match=r"\{\{item.a.x\}\}: a has no 'x'; the item has a"):
        Template("{{item.a.x}}").fill(Sample(""), {"a": {"b": 1}})
    with pytest.raises(EpisodeFailure) as caught:
        score({**EXACT, "reference": "{{item.answr}}"}, "4")
    failure = caught.value.failure
    assert (failure.kind, failure.culprit) == (FailureKind.REWARD_ERROR, ID)
    assert "task t: MissingReference: {{item.answr}}: it has no 'answr'; the item has messages, reference_answer" in failure.detail


@pytest.mark.parametrize("answer", ["no JSON", '{"verdict": 1', "{}", "[]", "7", '"x"', "[" * 100_000])
def test_an_answer_that_is_not_the_json_asked_for_is_worth_the_least_and_says_so(answer: str) -> None:
    grader = {**EXACT, "operation": "ne", "input": "{{sample.output_json.verdict}}"}
    assert score(grader, answer) == Score(0.0, {"unreadable": 1.0})


def test_the_item_has_the_conversation_and_what_the_recipe_adds() -> None:
    grader = {**EXACT, "input": "{{item.messages[0].content}}|{{item.goal}}", "reference": "2 + 2?|5"}
    assert score(grader, "4", {"item": {"goal": "deep.list[1]"}}, deep={"list": [4, 5]}).value == 1.0
    with pytest.raises(EpisodeFailure, match=r"item\.goal = 'deep\.lst': deep has no 'lst'"):
        score(grader, "4", {"item": {"goal": "deep.lst"}}, deep={"list": []})


def test_multi_weighs_its_graders_and_keeps_their_parts() -> None:
    grader = {"type": "multi", "name": "m", "graders": {"e": EXACT, "c": {**CLOSE, "pass_threshold": 1}}, "calculate_output": "(e + c) / 2"}
    assert score(grader, "4") == Score(1.0, {"e": 1.0, "c": 1.0, "c.passed": 1.0})
    assert score(grader, "4 of 5") == Score(0.25, {"e": 0.0, "c": 0.5, "c.passed": 0.0})


def test_an_answer_that_is_no_json_earns_the_least_of_the_whole_formula() -> None:
    right = {**EXACT, "input": "{{sample.output_json.verdict}}", "reference": "pass"}
    rude = {**EXACT, "operation": "like", "input": "{{sample.output_json.note}}", "reference": "idiot"}
    grader = {"type": "multi", "name": "m", "graders": {"right": right, "rude": rude}, "calculate_output": "0.5*right + 0.5*(1-rude)"}
    assert score(grader, '{"verdict": "pass", "note": "fine"}').value == 1.0
    assert score(grader, '{"verdict": "scrap", "note": "you idiot"}').value == 0.0
    garbage = score(grader, "garbage")  # 0.5 when each part is given its own least
    assert garbage == Score(0.0, {"right": 0.0, "rude": 0.0, "right.unreadable": 1.0, "rude.unreadable": 1.0})
    with pytest.raises(ValueError, match=r"'-\(1 / right\)' has no least value"):
        read_grader({**grader, "calculate_output": "-(1 / right)"})


def test_a_formula_without_a_value_is_a_failure_never_zero() -> None:
    grader = {"type": "multi", "name": "m", "graders": {"e": EXACT}, "calculate_output": "1 / e"}
    assert score(grader, "4").value == 1.0
    with pytest.raises(EpisodeFailure) as caught:
        score(grader, "5")
    assert (caught.value.failure.kind, caught.value.failure.culprit) == (FailureKind.REWARD_INVALID, ID)
    assert caught.value.failure.detail == "task t: '1 / e' divides by zero at e = 0"


@pytest.mark.parametrize(
    ("grader", "message"),
    [
        ({"type": "python", "name": "p", "source": "def grade(sample, item): return 1"}, "a python grader comes with the sandbox"),
        ({**CLOSE, "evaluation_metric": "meteor"}, "'meteor' cannot be had: it needs the WordNet corpus"),
        ({**CLOSE, "evaluation_metric": "cosine"}, "'cosine' cannot be had: it needs an embedding model"),
        ({**CLOSE, "evaluation_metric": "rouge_6"}, "'rouge_6' is unknown; did you mean 'rouge_"),
        ({**EXACT, "operation": "regex"}, "operation: must be 'eq', 'ne', 'like' or 'ilike'"),
        ({**EXACT, "refrence": "x"}, "refrence: unknown key"),
        ({"type": "string_chek", "name": "x"}, "Input tag 'string_chek'"),
        ({"name": "x"}, "Unable to extract tag"),
        ({**RATE, "range": [1, 0]}, r"range \[1, 0\] must be \[lowest, highest\]"),
        ({**RATE, "pass_threshold": 2}, "pass_threshold 2 is outside the range"),
        ({**RATE, "input": []}, "input: must have at least 1 item"),
        ({**RATE, "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input_text"),
        (
            {**RATE, "type": "label_model", "labels": ["good", "Good"], "passing_labels": ["good"]},
            r"labels \['good', 'Good'\] must differ by more than case",
        ),
        (
            {**RATE, "type": "label_model", "labels": ["good", "bad"], "passing_labels": ["god"]},
            "passing label 'god' is none of the labels; did you mean 'good'",
        ),
        (
            {"type": "multi", "name": "m", "graders": {"e": EXACT}, "calculate_output": "f"},
            "names 'f', which is no grader here; known are e",
        ),
        ({"type": "multi", "name": "m", "graders": {"max": EXACT}, "calculate_output": "1"}, "grader key 'max' cannot be used"),
        ({"type": "multi", "name": "m", "graders": {"is": EXACT}, "calculate_output": "1"}, "grader key 'is' cannot be used"),
        ({"type": "multi", "name": "m", "graders": {}, "calculate_output": "1"}, "at least 1 item"),
        (
            {
                "type": "multi",
                "name": "m",
                "graders": {"m": {"type": "multi", "name": "m", "graders": {"e": EXACT}, "calculate_output": "e"}},
                "calculate_output": "m",
            },
            "Input tag 'multi'",
        ),
    ],
)
def test_what_is_refused_at_load(grader: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_scorer(ID, params={"grader": grader, **({"base_url": "http://127.0.0.1:1/v1"} if "model" in grader else {})})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs exactly one of file"),
        ({"file": "x.json", "grader": EXACT}, "needs exactly one of file"),
        ({"file": "missing.json"}, "missing.json: there is no such file; a path counts from the folder that burnish is started in, /"),
        ({"file": "/missing.json"}, "missing.json: there is no such file$"),
        ({"grader": EXACT, "base_url": "http://127.0.0.1:1"}, "base_url: no effect, this grader asks no judge"),
        ({"grader": RATE}, "a judge needs base_url"),
        ({"grader": RATE, "api_key_env": "BURNISH_NO_SUCH_KEY"}, "BURNISH_NO_SUCH_KEY is not set"),
        ({"grader": EXACT, "item": {"x": "a..b["}}, "is no reference"),
        ({"grader": EXACT, "fiel": "x"}, "has no option 'fiel'; did you mean 'file'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_scorer(ID, params=options)


def test_a_file_holds_a_grader_bare_or_under_its_key(tmp_path: Path) -> None:
    good: tuple[dict[str, Any], ...] = (EXACT, {"grader": EXACT})
    for grader in good:
        (tmp_path / "grader.json").write_text(json.dumps(grader))
        scorer = make_scorer(ID, params={"file": str(tmp_path / "grader.json")})
        assert asyncio.run(scorer.score(episode("4"))).value == 1.0
    for content, message in (
        (b"{", "not JSON"),
        (b"[]", "must hold a JSON object, not list"),
        (b"\xff", "not JSON"),
        (b"[" * 99_999, "not JSON"),
    ):
        (tmp_path / "grader.json").write_bytes(content)
        with pytest.raises(ValueError, match=f"grader.json: {message}"):
            make_scorer(ID, params={"file": str(tmp_path / "grader.json")})


def test_grading_needs_no_event_loop_of_its_own() -> None:
    assert asyncio.run(grade(read_grader(EXACT), Sample("4"), {"reference_answer": 4}, None)) == Score(1.0)


@pytest.mark.parametrize("said", ["```" + " " * 300_000 + "x", "1" * 300_000 + "x", "```json\n" + "\n" * 300_000 + "1```x", "." * 300_000])
def test_no_answer_of_a_judge_holds_up_the_others(said: str) -> None:
    started = time.process_time()
    assert read_number(said) is None
    assert time.process_time() - started < 20, "it takes milliseconds; one look at each pair of characters takes minutes"


@pytest.mark.parametrize(
    ("said", "number"),
    [('```json\n{"result": 0.5}\n```', 0.5), ("```\n7 ```", 7.0), ("``````", None), ("```", None), ("1" * 101, None), ("7```", None)],
)
def test_a_fenced_number_is_one(said: str, number: float | None) -> None:
    assert read_number(said) == number
