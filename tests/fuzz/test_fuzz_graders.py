"""Grader JSON, templates, formulas and judges' answers made up by a machine: a value or a typed error, never a crash or a silent zero."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.made_up import JSON, spoiled

from burnish.rewards.graders.formula import Formula, FormulaError
from burnish.rewards.graders.judge import read_label, read_number
from burnish.rewards.graders.multi import asks_a_judge, grade
from burnish.rewards.graders.templates import MissingReference, Sample, Template, UnreadableOutput
from burnish.rewards.graders.types import METRICS, load_grader, read_grader
from burnish.rewards.types import UNREADABLE

NAMES = ("a", "b")
TOKENS = ["a", "b", "c", "1", "0", ".5", "2e3", "1e999", "+", "-", "*", "/", "^", "**", "(", ")", ",", " ", "min", "max", "abs", "floor"]
TOKENS += ["ceil", "exp", "sqrt", "log", "if", "lambda", "not", "__class__", ".", "[", "'", "=", ":", "é", "\x00", "\n", "#", "@"]
FORMULAS: st.SearchStrategy[str] = st.recursive(
    st.one_of(st.sampled_from(NAMES), st.floats(0, 1e9).map(repr), st.sampled_from(["0", "1", "2", "1e300"])),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "^", "**"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(st.sampled_from(["abs", "floor", "ceil", "exp", "sqrt", "log"]), inner).map(lambda t: f"{t[0]}({t[1]})"),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda t: f"{t[0]}({t[1]}, {t[2]})"),
        inner.map(lambda text: f"-{text}"),
    ),
    max_leaves=12,
)
SCORES = st.fixed_dictionaries({name: st.one_of(st.floats(0, 1), st.floats(allow_nan=False, allow_infinity=False)) for name in NAMES})

TEXT = st.sampled_from(["{{sample.output_text}}", "{{item.x}}", "{{item.x.y[0]}}", "{{sample.output_json.x}}", "plain", ""])
MESSAGES = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": TEXT}), min_size=1, max_size=2)
STRING_CHECK = st.fixed_dictionaries(
    {
        "type": st.just("string_check"),
        "name": st.just("n"),
        "operation": st.sampled_from(["eq", "ne", "like", "ilike"]),
        "input": TEXT,
        "reference": TEXT,
    }
)
SIMILARITY = st.fixed_dictionaries(
    {
        "type": st.just("text_similarity"),
        "name": st.just("n"),
        "evaluation_metric": st.sampled_from([*METRICS, "meteor"]),
        "input": TEXT,
        "reference": TEXT,
    }
)
JUDGED = st.fixed_dictionaries(
    {"type": st.sampled_from(["score_model", "label_model"]), "name": st.just("n"), "model": st.just("m"), "input": MESSAGES},
    optional={"labels": st.just(["a", "b"]), "passing_labels": st.just(["a"]), "range": st.just([0, 1])},
)
SINGLE = st.one_of(STRING_CHECK, SIMILARITY)
MULTI = st.fixed_dictionaries(
    {
        "type": st.just("multi"),
        "name": st.just("n"),
        "graders": st.fixed_dictionaries({"a": SINGLE, "b": SINGLE}),
        "calculate_output": FORMULAS,
    }
)
ITEMS = st.one_of(st.dictionaries(st.sampled_from(["x", "y"]), JSON, max_size=2), st.just({"x": {"y": ["right"]}}))
ANSWERS = st.one_of(st.text(max_size=60), JSON.map(lambda value: json.dumps(value)), st.just('{"x": "right"}'), st.just("right"))


@given(st.one_of(st.lists(st.sampled_from(TOKENS), max_size=30).map("".join), st.text(max_size=60)), SCORES)
def test_any_text_is_a_formula_or_refused(text: str, scores: dict[str, float]) -> None:
    try:
        formula = Formula(text, NAMES)
    except FormulaError:
        raise AssertionError("a text that is no formula has no scores to have no value for") from None
    except ValueError as error:
        assert str(error)
        return
    check_value(formula, scores)


@given(FORMULAS, SCORES)
def test_a_formula_has_a_finite_value_or_says_why_not(text: str, scores: dict[str, float]) -> None:
    check_value(Formula(text, NAMES), scores)


def check_value(formula: Formula, scores: dict[str, float]) -> None:
    try:
        value = formula(scores)
    except FormulaError as error:
        assert formula.text in str(error) or repr(formula.text) in str(error)
        return
    assert type(value) is float and math.isfinite(value)


@given(st.one_of(spoiled(st.one_of(SINGLE, JUDGED, MULTI)), JSON), ANSWERS, ITEMS)
def test_any_json_is_a_grader_or_refused_and_a_grader_grades(data: Any, answer: str, item: dict[str, Any]) -> None:
    try:
        grader = read_grader(data)
    except ValueError as error:
        assert str(error).startswith("grader: ")
        return
    if asks_a_judge(grader):
        return
    try:
        score = asyncio.run(grade(grader, Sample(answer), item, None))
    except (MissingReference, FormulaError) as error:
        assert str(error)
        return
    assert math.isfinite(score.value)
    if grader.type == "string_check" and score.value == 0.0 and UNREADABLE not in score.parts:
        text, reference = (Template(template).fill(Sample(answer), item) for template in (grader.input, grader.reference))
        holds = {"eq": text == reference, "ne": text != reference, "like": reference in text}
        assert not holds.get(grader.operation, reference.casefold() in text.casefold())


@given(st.binary(max_size=200) | spoiled(MULTI).map(lambda data: json.dumps(data).encode()))
def test_any_file_is_a_grader_or_refused(content: bytes) -> None:
    file = scratch() / "grader.json"
    file.write_bytes(content)
    try:
        load_grader(file)
    except ValueError as error:
        assert str(error).startswith(str(file))


@given(
    st.lists(
        st.sampled_from(["{{", "}}", "{", "}", "item", "sample", ".", "x", "[", "0", "]", "'", " ", "output_text", "output_json"])
    ).map("".join),
    ITEMS,
)
def test_any_text_is_a_template_or_refused(text: str, item: dict[str, Any]) -> None:
    try:
        template = Template(text)
    except ValueError:
        assert "{{" in text
        return
    try:
        filled = template.fill(Sample("answer"), item)
    except (MissingReference, UnreadableOutput) as error:
        assert str(error)
        return
    assert "{{" in text or filled == text


@given(
    st.one_of(
        st.text(max_size=40),
        JSON.map(lambda value: json.dumps(value)),
        st.floats().map(repr),
        st.sampled_from(["good", '{"result": 1e400}']),
    )
)
def test_a_judges_answer_is_a_finite_number_or_a_label_or_nothing(text: str) -> None:
    number, label = read_number(text), read_label(text, ("good", "bad"))
    assert number is None or math.isfinite(number)
    assert label in (None, "good", "bad")
    assert label is None or label in text.casefold()


_scratch: list[Path] = []


def scratch() -> Path:
    return _scratch[-1]


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    _scratch.append(tmp_path_factory.mktemp("fuzz"))
