"""`burnish/grounded-v1` and `burnish/citations-v1`, against values worked out by hand."""

from __future__ import annotations

import time
from typing import Any

import pytest

from burnish.envs.types import Message, Task
from burnish.guardrails.citations import cited_statements
from burnish.rewards.plugin import make_scorer
from burnish.rewards.types import RewardInput, Score

pytestmark = pytest.mark.unit

PASSAGES = ["The bore is 12.5 mm wide.", "The shaft is made of steel in Ulm.", "Shafts are checked on Mondays, by hand."]


def episode(answer: str | None, *before: Message, **data: object) -> RewardInput:
    asked = Message("user", "What is known?")
    said = (Message("assistant", answer),) if answer is not None else ()
    return RewardInput("e/0", Task("e", 0, (asked,)), (asked, *before, *said), 0.0, data=data)


async def score(id: str, what: RewardInput, **args: Any) -> Score:
    return await make_scorer(f"burnish/{id}", params=args).score(what)


@pytest.mark.parametrize(
    ("answer", "value", "claims", "supported"),
    [
        ("The bore is 12.5 mm.", 1.0, 1, 1),
        ("The bore is 13 mm.", 0.0, 1, 0),  # a number that stands nowhere
        ("The bore is 12.5 mm. The shaft is made of brass in Bonn.", 0.5, 2, 1),  # shaft, made of: 2 of 4 words
        ("The shaft is made of steel in Bonn.", 1.0, 1, 1),  # shaft, made, steel: 3 of 4 words are enough
        ("I do not know.", 0.0, 0, 0),
        ("I do not know its price. The bore is 12.5 mm.", 1.0, 1, 1),
        (" ", 0.0, 0, 0),
        (None, 0.0, 0, 0),
    ],
)
async def test_an_answer_is_worth_the_share_of_its_claims_that_the_context_supports(
    answer: str | None, value: float, claims: int, supported: int
) -> None:
    found = await score("grounded-v1", episode(answer, document=PASSAGES), context="document")
    abstained = float(answer == "I do not know.")
    assert (found.value, found.parts) == (value, {"claims": claims, "supported": supported, "abstained": abstained})
    told = await score("grounded-v1", episode(answer, *(Message("tool", text) for text in PASSAGES)), messages=["tool"])
    assert told == found, "messages of the conversation are a context like a field of the data"


async def test_the_explanation_names_what_the_context_has_not() -> None:
    found = await score("grounded-v1", episode("The bore is 12.5 mm. Its price is 9 EUR.", document=PASSAGES[0]), context="document")
    assert found.explanation == "not in the context: 'Its price is 9 EUR.'"


@pytest.mark.parametrize("id", ["grounded-v1", "citations-v1"])
async def test_to_say_that_one_does_not_know_has_its_own_price_and_nothing_has_none(id: str) -> None:
    for document in (PASSAGES, None):
        assert (await score(id, episode("I do not know.", document=document), context="document", abstained=0.3)).value == 0.3
        assert (await score(id, episode("", document=document), context="document", abstained=0.3)).value == 0.0
        hedged = await score(id, episode("I cannot say more: it is 500 mm deep.", document=document), context="document", abstained=0.3)
        assert (hedged.value, hedged.parts["claims"], hedged.parts["abstained"]) == (0.0, 1, 0)
    assert (await score(id, episode("The bore is 12.5 mm [1].", document=None), context="document")).value == 0.0


@pytest.mark.parametrize(
    ("answer", "value", "parts"),
    [
        ("The bore is 12.5 mm [1].", 1.0, {}),
        ("The bore is 12.5 mm. [1] The shaft is steel.[2]", 1.0, {}),  # behind the full stop
        ("The bore is 12.5 mm [2].", 0.0, {}),  # the second passage does not say so
        ("The bore is 12.5 mm [1, 2] and shafts are checked [3].", 1.0, {}),
        ("The bore is 12.5 mm [1]. The shaft is made of steel.", 0.5, {"uncited": 1}),
        ("The bore is 12.5 mm [1][4].", 0.0, {"unknown": 1}),
        ("The bore is 12.5 mm [0].", 0.0, {"unknown": 1}),
        ('It says "the bore is  12.5 mm wide".', 1.0, {}),  # bore, 12.5, mm, wide of five words
        ('It says "the bore is 12.5 mm deep".', 0.0, {"misquoted": 1}),
        ('It says "the bore is 12.5 mm wide" [2].', 0.0, {"misquoted": 1}),  # it stands in another
        ('"The bore is 12.5 mm wide." [4]', 0.0, {"unknown": 1}),
        ("„Made of steel in Ulm“, says [2]. A “bore” is 12.5 mm [1].", 1.0, {}),  # one word is a term
        ("[1]", 0.0, {}),
    ],
)
async def test_a_claim_counts_that_cites_what_is_there_and_supports_it(answer: str, value: float, parts: dict[str, int]) -> None:
    found = await score("citations-v1", episode(answer, document=PASSAGES), context="document")
    assert found.value == value, found
    assert {name: found.parts[name] for name in ("uncited", "unknown", "misquoted")} == {"uncited": 0, "unknown": 0, "misquoted": 0} | parts
    told = await score("citations-v1", episode(answer, *(Message("tool", text) for text in PASSAGES)), messages=["tool"])
    assert told == found


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("The bore is 12.5 mm [9].", "there is no passage 9: 'The bore is 12.5 mm [9].'"),
        ('It says "bore and shaft alike" [1].', "not what the passage says: 'bore and shaft alike'"),
        ("The bore is 12.5 mm.", "cites nothing: 'The bore is 12.5 mm.'"),
        ("The bore is 12.5 mm [3].", "not what is cited: 'The bore is 12.5 mm [3].'"),
    ],
)
async def test_the_explanation_names_the_first_claim_that_does_not_hold(answer: str, said: str) -> None:
    assert (await score("citations-v1", episode(answer, document=PASSAGES), context="document")).explanation == said


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ({}, "say where the context is"),
        ({"context": "document", "messages": ["tool"]}, "say where the context is"),
        ({"messages": ["boss"]}, "messages"),
        ({"context": "document", "abstained": 2}, "abstained"),
        ({"contxt": "document"}, "contxt"),
    ],
)
def test_options_without_sense_are_refused(args: dict[str, Any], problem: str) -> None:
    for id in ("burnish/grounded-v1", "burnish/citations-v1"):
        with pytest.raises(ValueError, match=problem):
            make_scorer(id, params=args)


@pytest.mark.parametrize(
    ("data", "problem"),
    [({}, "has no field 'document'"), ({"document": 3}, "must be a text or a list of texts"), ({"document": ["a", 3]}, "list of texts")],
)
async def test_a_task_without_its_context_is_a_failure_and_no_zero(data: dict[str, Any], problem: str) -> None:
    with pytest.raises(Exception, match=problem):
        await score("grounded-v1", episode("The bore is 12.5 mm.", **data), context="document")


@pytest.mark.parametrize("piece", ["a b [1]. ", "I cannot say, it is ", "....", "[1,1", '"a b c d" ', "“", "[1] ", ".[1]", '"'])
def test_what_a_policy_writes_takes_no_time_beyond_its_length(piece: str) -> None:
    started = time.process_time()
    cited_statements(piece * (100_000 // len(piece)), ["a b c d e f g " * 2000, *PASSAGES])
    assert time.process_time() - started < 3
