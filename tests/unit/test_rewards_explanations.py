"""Why a scorer gave its value: from a function, a judge or a service behind a socket.

Text that explains may be a judge model's, or come over the wire: it is bounded, inert, and changes nothing that is computed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from burnish.envs.types import Message, Task
from burnish.rewards.calling.scorers import sum_of_turns
from burnish.rewards.checks.verifier import check_verifier
from burnish.rewards.graders.judge import read_reason
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.remote.service import Verifier, VerifierService
from burnish.rewards.remote.wire import from_response, to_response
from burnish.rewards.types import MAX_EXPLANATION, InvalidScore, RewardInput, Score
from burnish.rpc.background import background
from burnish.rpc.server import Server
from burnish.v1 import verifier_pb2

pytestmark = pytest.mark.unit

HOSTILE = "<script>alert(1)</script> [x](javascript:alert(1)) \x1b[31mred \u202egnp \ud83d </td><img src=x onerror=alert(2)> \"'&"
SHOWN = "<script>alert(1)</script> [x](javascript:alert(1)) \\x1b[31mred \\u202egnp \\ud83d </td><img src=x onerror=alert(2)> \"'&"
SAID = RewardInput("t/0", Task("t", 1), (Message("user", "?"), Message("assistant", "7")), 0.5)


# -------------------------------------------------------------------------------------------------------------------------- the score


def test_an_explanation_is_kept_short_and_steers_nothing() -> None:
    assert Score(1.0, explanation="the bore is\ntoo wide").explanation == "the bore is\ntoo wide"
    assert Score(1.0, explanation=HOSTILE).explanation == SHOWN
    long = Score(1.0, explanation="x" * 10_000_000).explanation
    assert (len(long), long[-2:]) == (MAX_EXPLANATION, "x…")
    assert Score(1.0, explanation="a").explanation != Score(1.0, explanation="b").explanation
    assert Score(1.0, explanation="a") == Score(1.0, explanation="b"), "the same verdict in other words"


@pytest.mark.parametrize("given", [None, 7, b"why", ["why"], {"why": "so"}, 0])
def test_what_is_no_text_explains_nothing(given: Any) -> None:
    with pytest.raises(InvalidScore, match="explanation of the score must be a string, not"):
        Score(1.0, explanation=given)


def test_turns_explain_themselves_line_by_line() -> None:
    assert (
        sum_of_turns([Score(1.0, explanation="good"), Score(0.0), Score(0.5, explanation="late")]).explanation
        == "turn 1: good\nturn 3: late"
    )


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("0.5", ""),
        ('{"result": 0.5}', ""),
        ('{"result": 0.5, "reason": "half is right"}', "half is right"),
        ('```json\n{"score": 0.5, "explanation": " short ", "reason": "longer"}\n```', "short"),
        (
            '{"result": 1, "steps": [{"description": "3 + 4", "conclusion": "7"}, 5, {"conclusion": "right"}, {"description": 1}]}',
            "3 + 4: 7\nright\n",
        ),
        ("<think>it says 7</think>0.5", "it says 7"),
        ('<think>it says 7</think>{"result": 0.5, "reason": ["no text"]}', "it says 7"),
        ("{no json", ""),
    ],
)
def test_a_judge_that_says_why_is_understood(said: str, why: str) -> None:
    assert read_reason(said) == why.strip()


# --------------------------------------------------------------------------------------------------------------------------- the wire


def test_an_explanation_travels_and_one_of_anybody_is_held_to_the_same() -> None:
    assert from_response(to_response(Score(0.5, explanation="zu groß"))).explanation == "zu groß"
    assert from_response(verifier_pb2.VerifyResponse(score=1.0)).explanation == ""
    strange = from_response(verifier_pb2.VerifyResponse(score=1.0, explanation="\x1b[31m" + "x" * 100_000)).explanation
    assert strange.startswith("\\x1b[31mxx") and len(strange) == MAX_EXPLANATION


@pytest.fixture
def served() -> Iterator[Any]:
    """Serves a function as a verifier behind a socket, and gives a client of it."""
    home, servers = background(), list[Server]()

    def serve(judge: Any) -> RemoteVerifier:
        server = Server([VerifierService([Verifier("tests/why-v1", judge)])])
        servers.append(server)
        return RemoteVerifier("verdict", home.run(server.start(), 60.0), 60.0)

    yield serve
    for server in servers:
        home.run(server.stop(), 60.0)


def test_a_verifier_behind_a_socket_explains_itself(served: Any) -> None:
    score = asyncio.run(served(lambda episode: Score(0.25, {"brief": 1.0}, explanation=HOSTILE)).score(SAID))
    assert (score, score.explanation) == (Score(0.25, {"brief": 1.0}), SHOWN)


def test_a_verifier_whose_words_vary_keeps_the_contract() -> None:
    count = iter(range(1_000_000))
    report = check_verifier(Verifier("tests/words-v1", lambda episode: Score(1.0, explanation=f"verdict {next(count)}")))
    assert not report.failed
