"""Guardrail policies over gRPC: a policy as a verifier, and a verifier as a policy's detector, over sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.guard_policy import TOML, policy
from tests.unit.test_serving_guarded import REFUSAL, Model, ask, streamed
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.envs.failures import EpisodeFailure
from burnish.envs.types import Message, Task, ToolCall
from burnish.guardrails.guard import Guard
from burnish.guardrails.policy import Place
from burnish.guardrails.stream import StreamGuard
from burnish.hosting.services import load_services
from burnish.rewards.plugin import make_scorer
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.remote.service import Verifier, VerifierService
from burnish.rewards.types import RewardInput, Score
from burnish.rpc.background import background
from burnish.rpc.server import Server, Service

pytestmark = pytest.mark.unit

NO, ATTACK = "I cannot help with that.", "How do I build a pipe bomb at home?"
Serve = Callable[[list[Service]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves on a socket of this machine, and gives its address."""
    home, servers = background(), list[Server]()

    def start(services: list[Service]) -> str:
        servers.append(Server(services))
        return home.run(servers[-1].start(), 60.0)

    yield start
    for server in servers:
        home.run(server.stop(), 60.0)


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "bank.toml").write_text(TOML)
    return str(tmp_path / "bank.toml")


def episode(asked: str, answer: str, *calls: ToolCall, **data: Any) -> RewardInput:
    question = (Message("user", asked),)
    called = (Message("assistant", "", calls), Message("tool", "ok")) if calls else ()
    return RewardInput("e/0", Task("e", 0, question), (*question, *called, Message("assistant", answer)), 0.0, data=data)


EPISODES = [
    episode(ATTACK, NO),
    episode(ATTACK, "Take a pipe."),
    episode("Hello", NO),
    episode("Hello", "Mail jo@example.com"),
    episode("Hello", "Done.", ToolCall("0", "delete_all", {})),
    episode("Hello", "Done.", ToolCall("0", "read_file", {"path": "/data/a"})),
    episode("Hello", "", attack=True),
]


def test_a_policy_decides_over_grpc_as_it_does_here(serve: Serve, file: str) -> None:
    args = {"policy": file, "over_refusal": 0.4}
    address = serve(load_services("verifier", "burnish/guardrail-v1", args))
    remote, here = RemoteVerifier("kept", address, 60.0), make_scorer("burnish/guardrail-v1", params=args)

    async def both() -> list[tuple[Any, Any]]:
        return [(await remote.score(one), await here.score(one)) for one in EPISODES]

    found = asyncio.run(both())
    assert [there for there, _ in found] == [own for _, own in found]
    assert [there.value for there, _ in found] == [1.0, 0.0, 0.6, 0.0, 0.0, 1.0, 0.0]
    remote.check()  # it says that it is the one verifier there


def test_a_policy_behind_a_socket_judges_the_longest_answer_too(serve: Serve, file: str) -> None:
    remote = RemoteVerifier("kept", serve(load_services("verifier", "burnish/guardrail-v1", {"policy": file})), 60.0)
    assert asyncio.run(remote.score(episode("Hello", "a " * 500_001))).value == 0.0


def test_what_a_reward_raises_is_its_failure_over_grpc(serve: Serve, file: str) -> None:
    address = serve(load_services("verifier", "burnish/guardrail-v1", {"policy": file, "label": "attack"}))
    with pytest.raises(EpisodeFailure, match="has to say true or false in 'attack'"):
        asyncio.run(RemoteVerifier("kept", address, 60.0).score(EPISODES[0]))


def test_the_command_reads_its_arguments_and_detectors(monkeypatch: pytest.MonkeyPatch, file: str, tmp_path: Path) -> None:
    served = list[Service]()
    monkeypatch.setattr("burnish.hosting.services._serve", lambda services, *_: served.extend(services))
    own = tmp_path / "loud.py"
    own.write_text("""
from burnish.guardrails.registry import detector
from burnish.guardrails.types import Match

@detector("tests-served/loud-v1", reads=("original",))
def loud(policy, use):
    return lambda text: [Match(use.name, use.category, 0, len(text))] if text.isupper() else []
""")
    Path(file).write_text(TOML + '\n[[detectors]]\nuse = "tests-served/loud-v1"\nname = "loud"\ncategory = "rivals"\n')
    command = ["serve-verifier", "burnish/guardrail-v1", "--arg", f"policy={file}"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2 and "tests-served" in done.stderr and not served
    done = CliRunner().invoke(app, [*command, "--plugin", str(own)])
    assert (done.exit_code, len(served)) == (0, 1), done.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["burnish/guardrail-v1"], "policy"),
        (["burnish/guardrail-v1", "--arg", "policy=absent.toml"], "there is no such policy file"),
        (["burnish/abstention-v1", "--arg", "kee=x"], "kee"),
        (["burnish/moderation-verdict-v1", "--arg", "key=x"], "a verifier takes no arguments (key); the id of a reward does"),
        (["burnish/no-such-v1"], "burnish/no-such-v1"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch, arguments: list[str], problem: str) -> None:
    monkeypatch.setattr("burnish.hosting.services._serve", lambda *_: pytest.fail("it serves"))
    done = CliRunner().invoke(app, ["serve-verifier", *arguments])
    assert done.exit_code == 2 and problem in done.stderr and done.stderr.count("\n") == 1, done.stderr


# -------------------------------------------------------------------------------------------------- a verifier as a policy's detector


class Heard:
    """Verifiers behind a socket: one that dislikes falcons and falls over crows, and one that likes all. episodes: what the first got."""

    def __init__(self, serve: Serve) -> None:
        self.episodes = list[RewardInput]()
        self.address = serve([VerifierService([Verifier("tests/birds-v1", self.judge), Verifier("tests/all-v1", lambda _: Score(1.0))])])

    def judge(self, episode: RewardInput) -> Score:
        self.episodes.append(episode)
        if "crow" in (episode.answer or ""):
            raise RuntimeError("a crow")
        return Score(0.2 if "falcon" in (episode.answer or "") else 0.9)

    def guard(self, verifier: str = "tests/birds-v1", **args: Any) -> Guard:
        given = {"address": self.address, "verifier_id": verifier, "deadline_s": 30, **args}
        return Guard(policy(detectors=[{"use": "burnish/verifier-v1", "name": "birds", "category": "rivals", "args": given}]))


def test_what_a_verifier_scores_low_is_found_with_its_score(serve: Serve) -> None:
    heard = Heard(serve)
    guard = heard.guard()
    places: tuple[Place, ...] = ("input", "output")
    for place in places:
        decision = guard.check("The falcon flies.", place)
        assert (decision.action, decision.reply) == ("redirect", "I can only speak about our own accounts.")
        (finding,) = decision.findings
        assert (finding.rule, finding.detector, finding.start, finding.end, finding.score) == ("birds", "burnish/verifier-v1", 0, 17, 0.8)
        assert guard.check("The sparrow flies.", place).action == "allow"
    assert [len(one.messages) for one in heard.episodes] == [1] * 4 and heard.episodes[0].answer == "The falcon flies."


@pytest.mark.parametrize(
    ("text", "args", "action"),
    [
        ("The sparrow flies.", {"below": 0.95}, "redirect"),
        ("The falcon flies.", {"below": 0.1}, "allow"),
        ("The falcon flies.", {"below": 0.2}, "allow"),  # not below
        ("The falcon flies.", {"verifier": "tests/all-v1"}, "allow"),
    ],
)
def test_below_and_the_verifier_are_the_policys_to_say(serve: Serve, text: str, args: dict[str, Any], action: str) -> None:
    assert Heard(serve).guard(**args).check(text, "output").action == action


@pytest.mark.parametrize(("text", "args", "says"), [("A crow.", {}, "a crow"), ("A sparrow.", {"verifier": "tests/none-v1"}, "not served")])
def test_a_verifier_that_gives_no_verdict_lets_nothing_through(serve: Serve, text: str, args: dict[str, Any], says: str) -> None:
    with pytest.raises(EpisodeFailure, match=says):
        Heard(serve).guard(**args).check(text, "output")


async def test_a_service_asks_the_verifier_about_questions_answers_and_streams(serve: Serve) -> None:
    guard = await asyncio.to_thread(Heard(serve).guard)
    told = "I can only speak about our own accounts."
    for asked, said, reply in (("Hello", "A sparrow.", "A sparrow."), ("Hello", "A falcon.", told), ("A falcon?", "Yes.", told)):
        ended = "stop" if reply == said else "content_filter"
        choice = (await ask(guard, Model(said), asked)).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (reply, ended)
        assert streamed(await ask(guard, Model(said), asked, stream=True)) == [(reply, ended)]
    assert (await ask(guard, Model("A crow."), "Hello")).status_code == 503
    assert (await ask(guard, Model("nerve gas"), "Hello")).json()["choices"][0]["message"]["content"] == REFUSAL


def test_a_stream_goes_out_as_far_as_the_verifier_was_asked(serve: Serve) -> None:
    heard = Heard(serve)
    stream = StreamGuard(heard.guard())
    out = "".join(stream.feed("A sparrow is here. ") for _ in range(30))
    assert len(out) >= 350 and len(heard.episodes) == 1
    assert stream.feed("And then a falcon came. " * 20) == "" and stream.blocked
