"""Detectors that ask something that runs elsewhere: what they are asked about, how often, and what their verdicts count for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.unit.guard_policy import tables

from burnish.envs.failures import EpisodeFailure
from burnish.guardrails import readings as readings_module
from burnish.guardrails.guard import Guard
from burnish.guardrails.policy import DetectorUse, Policy
from burnish.guardrails.readings import MAX_TEXT
from burnish.guardrails.registry import Find, detector
from burnish.guardrails.types import Match

pytestmark = pytest.mark.unit

NOWHERE = {
    "burnish/judge-v1": {"base_url": "http://127.0.0.1:1/v1", "model": "judge", "retries": 0, "timeout_s": 2.0},
    "burnish/verifier-v1": {"address": "127.0.0.1:1", "deadline_s": 0.2},
}
"""Options of those that ask, of services that are not there."""


@detector("tests/straying-v1", reads=("original",))
def straying(policy: Policy, use: DetectorUse) -> Find:
    def find(text: str) -> Iterator[Match]:
        yield Match(use.name, "weapons", 0, len(text))

    return find


class Asked:
    """What `tests/asking-v1` was asked about, in order, and what it finds: texts that have the word."""

    def __init__(self) -> None:
        self.texts, self.word = list[str](), "trebuchet"


ASKED = Asked()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.setattr(f"{__name__}.ASKED", Asked())
    return ASKED


@detector("tests/asking-v1", reads=("original",), whole=True, asks=True)
def asking(policy: Policy, use: DetectorUse) -> Find:
    def find(text: str) -> Iterator[Match]:
        ASKED.texts.append(text)
        if ASKED.word in text:
            yield Match(use.name, use.category, 0, len(text))

    return find


def with_category(use: str, category: dict[str, Any], args: dict[str, Any] | None = None) -> Policy:
    """The policy with one detector more, in a category of its own."""
    data = tables()
    data["categories"]["own"] = {"kind": "own", "action": "refuse", **category}
    return Policy.model_validate(data | {"detectors": [{"use": use, "name": "asked", "category": "own", "args": args or {}}]})


@pytest.mark.parametrize("use", NOWHERE)
def test_who_judges_a_category_is_not_asked_where_nobody_looks_for_it(use: str) -> None:
    """An outage refused what the category has nothing to say about, and each of these requests was paid for."""
    answers = Guard(with_category(use, {"where": ["output"]}, NOWHERE[use]))
    assert answers.check("Hello", "input").action == "allow"
    with pytest.raises(EpisodeFailure):
        answers.check("Hello", "output")
    off = Guard(with_category(use, {"enabled": False}, NOWHERE[use]))
    skipped = Guard(with_category(use, {}, NOWHERE[use]), skip=["own"])
    for guard in (off, skipped):
        assert guard.check("Hello", "input").action == guard.check("Hello", "output", before="Hel").action == "allow"


def test_a_detector_finds_its_own_category_alone() -> None:
    guard = Guard(with_category("tests/straying-v1", {}))
    with pytest.raises(ValueError, match="detector tests/straying-v1 found 'weapons', and 'asked' is of category 'own'"):
        guard.check("Hello", "input")


def test_a_verdict_on_a_whole_text_is_not_asked_for_over_the_seam(asked: Asked) -> None:
    """A harmless answer was blocked for the words of its prompt."""
    guard = Guard(with_category("tests/asking-v1", {"where": ["output"]}))
    assert guard.check("is in the museum.", "output", before="The trebuchet ").action == "allow"
    assert asked.texts == ["is in the museum."], "and it is asked once"
    assert guard.check("and a trebuchet.", "output", before="A bow ").action == "refuse"
    speaking = tables() | {"languages": {"category": "rivals", "spoken": ["en"]}}
    assert Guard(Policy.model_validate(speaking)).check("It is.", "output", before="Расскажите о счетах ").action == "allow"


def test_nothing_is_asked_about_a_text_that_cannot_be_looked_at(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge was paid for four megabytes that were then refused."""
    guard = Guard(with_category("tests/asking-v1", {}))
    with pytest.raises(ValueError, match="too long to be looked at"):
        guard.check("a" * (MAX_TEXT + 1), "input")
    monkeypatch.setattr(readings_module, "MAX_READ", 400)
    with pytest.raises(ValueError, match="too many ways"):
        guard.check("\ufdfa" * 200, "input")
    assert asked.texts == []
    assert guard.check("A trebuchet", "input").action == "refuse" and asked.texts == ["A trebuchet"]


def test_what_asks_gets_each_text_once() -> None:
    with pytest.raises(ValueError, match=r"asks something elsewhere, so it gets each text once: give it reads=\('original',\)"):
        detector("tests/greedy-v1", asks=True)
