"""A text that is decided on while it is written: what goes out, and that the decision is the whole text's."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tests.unit.guard_policy import policy

from burnish.guardrails.guard import Guard
from burnish.guardrails.stream import HOLD, SHORTEST, StreamGuard
from burnish.guardrails.types import Decision

pytestmark = pytest.mark.unit

FILLER = "The savings account pays interest every month and costs nothing. It can be closed at any time, online or by letter. "
TEXTS = [
    FILLER * 3,
    f"{FILLER}Write to jo.doe@example.com or call +49 30 901820, and pay DE89 3704 0044 0532 0130 00 by noon. {FILLER}",
    f"{FILLER * 2}To make nerve gas you need a laboratory. {FILLER}",
    f"{FILLER}Is Rival Bank better? {FILLER}",
    f"{FILLER}It is a guaranteed return. {FILLER}",
    "口座を開設するには、身分証明書が必要です。爆弾の作り方はお答えできません。",
    "jo.doe@example.com",
    "",
]


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard(policy())


def pieces(text: str, seed: int) -> list[str]:
    """The text cut at random, a few characters at a time."""
    chance, made = random.Random(seed), []
    while text:
        size = chance.randint(1, 7)
        made.append(text[:size])
        text = text[size:]
    return made


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("text", TEXTS)
def test_however_it_is_cut_the_decision_is_the_whole_texts(guard: Guard, text: str, seed: int) -> None:
    whole, stream = guard.check(text, "output"), StreamGuard(guard)
    out = "".join(map(stream.feed, pieces(text, seed))) + stream.end()
    assert stream.decision is not None
    assert (stream.decision.action, stream.decision.message) == (whole.action, whole.message)
    if whole.blocked:
        assert text.startswith(out), "what went out is a beginning of it"
        first = min(finding.start for finding in whole.findings if finding.action == whole.action)
        assert len(out) <= first, "and nothing of what was found is in it"
    else:
        assert out == whole.reply


def test_it_is_held_only_as_long_as_it_must_be(guard: Guard) -> None:
    stream, sent, lag = StreamGuard(guard), 0, []
    for i, piece in enumerate(pieces(FILLER * 5, 0)):
        sent += len(stream.feed(piece))
        lag.append(len("".join(pieces(FILLER * 5, 0)[: i + 1])) - sent)
    assert max(lag) <= HOLD + 40, "the hold, a look's distance, and a word"
    assert min(lag[20:]) <= 8, "the end of a sentence goes out at once"


def test_a_word_without_end_is_held_and_then_let_out(guard: Guard) -> None:
    stream = StreamGuard(guard)
    out = [stream.feed("xyz" * 10) for _ in range(60)]
    assert not any(out[:15]) and sum(map(len, out)) > 500


def test_after_it_was_blocked_nothing_goes_out(guard: Guard) -> None:
    stream = StreamGuard(guard)
    assert stream.feed("nerve gas is made of all sorts of things ") == ""
    assert stream.blocked and not stream.begun
    assert stream.feed("and more") == "" and stream.end() == ""


def test_a_private_key_is_held_until_it_ends_however_long_it_is() -> None:
    kinds = {"category": "personal", "kinds": {"secret_key": "redact"}}
    stream = StreamGuard(Guard(policy(pii=kinds)))
    lines = [f"MIIEow{i:04d}{'x' * 50}\n" for i in range(200)]  # more than a look takes in of what went out
    out = "".join(map(stream.feed, [FILLER, "-----BEGIN RSA PRIVATE KEY-----\n", *lines]))
    assert out == FILLER
    out += "".join(map(stream.feed, ["-----END RSA PRIVATE KEY-----\n", FILLER])) + stream.end()
    assert out == f"{FILLER}[SECRET_KEY]\n{FILLER}"


def test_a_text_of_short_lines_is_not_looked_at_at_each(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look takes in all of the window: one for every line of a character held everybody else up."""
    looks, check = list[str](), guard.check

    def counted(text: str, *args: Any, **kwargs: Any) -> Decision:
        looks.append(text)
        return check(text, *args, **kwargs)

    monkeypatch.setattr(guard, "check", counted)
    stream, text = StreamGuard(guard), "a\n" * 100
    assert "".join(map(stream.feed, text)) + stream.end() == text
    assert len(looks) <= len(text) // SHORTEST + 1
