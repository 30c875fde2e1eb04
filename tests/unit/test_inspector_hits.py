"""Where the words of a search stand: marked in what is shown, with what stands around the first."""

from __future__ import annotations

import pytest

from burnish.envs.types import Message, ToolCall
from burnish.inspector.hits import AROUND, MARKS, around_first, first_hit, marked

pytestmark = pytest.mark.unit

CHAT = [
    Message("system", "You inspect parts."),
    Message("assistant", "I look.", (ToolCall("call_0", "measure", {"feature": "bore"}),)),
    Message("tool", "12.5 mm", tool_call_id="call_0"),
]


@pytest.mark.parametrize(
    ("text", "words", "shown"),
    [
        ("a <b> Bore & bores", ["bore"], "a &lt;b&gt; <mark>Bore</mark> &amp; <mark>bore</mark>s"),
        ("he is here", ["he"], "<mark>he</mark> is here"),
        ("no word", [], "no word"),
        ("naïve NAÏVE", ["aïv"], "n<mark>aïv</mark>e N<mark>AÏV</mark>E"),
        ("bores", ["bor", "bores"], "<mark>bores</mark>"),
        ("a.c abc", ["a.c"], "<mark>a.c</mark> abc"),
        ("x\x1b[31m bore", ["bore"], "x\\x1b[31m <mark>bore</mark>"),
    ],
)
def test_words_are_marked_and_all_else_is_escaped(text: str, words: list[str], shown: str) -> None:
    assert marked(text, words) == shown


def test_of_very_many_hits_the_first_are_marked_and_that_is_said() -> None:
    most = "bore <b> " * MARKS
    assert marked(most, ["bore"]) == "<mark>bore</mark> &lt;b&gt; " * MARKS
    more = str(marked(f"{most}Bore & bore", ["bore"]))
    assert more.startswith(str(marked(most, ["bore"])) + "Bore &amp; bore\n<small>Of more hits, ") and more.count("<mark>") == MARKS


def test_the_first_hit_is_found_in_texts_and_in_tool_calls() -> None:
    assert [first_hit(CHAT, [word]) for word in ("inspect", "bore", "mm", "12", "absent")] == [0, 1, 2, 2, None]
    assert first_hit(CHAT, []) is None
    assert around_first(CHAT, ["bore"]) == 'measure(feature="bore")'
    assert around_first(CHAT, ["absent"]) == ""


def test_what_stands_around_a_hit_is_one_line_and_short() -> None:
    said = around_first([Message("user", f"{'x' * 500}\n\n bore \n{'y' * 500}")], ["bore"])
    assert said.startswith("…x") and said.endswith("y…") and " bore " in said and "\n" not in said
    assert len(said) <= 2 * AROUND + len("bore") + 2
