"""Spaces for conversations: any Unicode in, tuples of messages out, seeded samples."""

from __future__ import annotations

import pytest

from burnish.envs.spaces import MessagesSpace, UnicodeText
from burnish.envs.types import Message, TextPart

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("text", ["", "7 × 8 = 56", "\x00\n\t", "日本語 🎲", "a" * 1_000_000])
def test_unicode_text_contains_what_a_policy_may_write(text: str) -> None:
    assert UnicodeText().contains(text)


@pytest.mark.parametrize("value", [None, 7, b"text", "\ud800", ["a"]])
def test_unicode_text_contains_nothing_that_is_not_text(value: object) -> None:
    assert not UnicodeText().contains(value)


def test_unicode_text_length_bounds_are_inclusive() -> None:
    space = UnicodeText(max_length=3, min_length=1)
    assert [space.contains("a" * n) for n in range(5)] == [False, True, True, True, False]
    with pytest.raises(ValueError, match="0 <= min_length <= max_length, not 4 and 3"):
        UnicodeText(max_length=3, min_length=4)


@pytest.mark.parametrize("space", [UnicodeText(), UnicodeText(5, 2), MessagesSpace(), MessagesSpace(("user", "tool"))], ids=repr)
def test_samples_lie_in_the_space_and_follow_the_seed(space: UnicodeText | MessagesSpace) -> None:
    space.seed(3)
    first = [space.sample() for _ in range(50)]
    assert all(sample in space for sample in first)
    assert len(set(map(repr, first))) > 10
    space.seed(3)
    assert [space.sample() for _ in range(50)] == first
    with pytest.raises(ValueError, match="mask"):
        space.sample(mask=(1,))  # type: ignore[arg-type]


def test_messages_space_takes_tuples_of_messages_of_its_roles() -> None:
    space = MessagesSpace(("user", "tool"))
    assert space.contains(())
    assert space.contains((Message("user", "hi"), Message("tool", (TextPart("3"),), name="measure")))
    assert not space.contains([Message("user", "hi")])
    assert not space.contains((Message("assistant", "hi"),))
    assert not space.contains(("hi",))
    assert not space.contains((Message("user", "\udfff"),))


def test_spaces_compare_by_value() -> None:
    assert UnicodeText(5) == UnicodeText(5, seed=1) != UnicodeText(6)
    assert MessagesSpace() == MessagesSpace() != MessagesSpace(("user",))
