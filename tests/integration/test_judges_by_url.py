"""Judges behind an OpenAI-compatible endpoint, over a real socket: a guard's and a canary's.

They are given the policy itself, and what they fail to say is never taken for a verdict.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integration.http_stub import Reply, Request, serve
from tests.unit.guard_policy import TOML, policy
from tests.unit.test_serving_guarded import Model, ask

from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.guardrails.guard import Guard
from burnish.rewards.plugin import make_scorer
from burnish.serving.audit import Metrics, Record
from burnish.serving.canary.config import JudgeTable
from burnish.serving.canary.judge import CanaryJudge, JudgedAnswer
from burnish.serving.canary.watch import Canary, CanaryWatch, JudgeOutage
from burnish.serving.observed import Answered

pytestmark = pytest.mark.integration


def says(text: Any) -> Reply:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return Reply({"id": "c", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]})


def slow(request: Request, number: int) -> Reply:
    time.sleep(1.0)
    return says("belongs")


FAILURES = [
    (slow, FailureKind.VERIFIER_TIMEOUT),
    (lambda request, number: Reply({"error": {"message": "busy"}}, 503), FailureKind.VERIFIER_UNAVAILABLE),
    (lambda request, number: Reply(status=0), FailureKind.VERIFIER_UNAVAILABLE),
    (lambda request, number: Reply({"error": {"message": "who?"}}, 401), FailureKind.VERIFIER_ERROR),
    (lambda request, number: says("It belongs, I think."), FailureKind.VERIFIER_INVALID),
    (lambda request, number: says(None), FailureKind.VERIFIER_INVALID),
    (lambda request, number: Reply({"pong": 1}), FailureKind.VERIFIER_INVALID),
    (lambda request, number: Reply(b"<html>"), FailureKind.VERIFIER_INVALID),
]


def patience(kind: FailureKind) -> float:
    """Seconds for a judge's answer: few for the one that is late, so many for others that a busy machine makes none of them late."""
    return 0.3 if kind is FailureKind.VERIFIER_TIMEOUT else 30.0


def guard(url: str, **args: Any) -> Guard:
    options = {"base_url": f"{url}/v1", "model": "judge", "timeout_s": 10.0, "retries": 0, **args}
    return Guard(policy(detectors=[{"use": "burnish/judge-v1", "name": "second-look", "category": "weapons", "args": options}]))


# ---------------------------------------------------------------------------------------------------------------- a guard's


def test_a_guards_judge_is_given_the_policy_and_decides_for_its_category() -> None:
    def judged(request: Request, number: int) -> Reply:
        return says("Belongs." if "trebuchet" in request.body["messages"][1]["content"] else '{"result": "does not belong"}')

    with serve(judged) as stub:
        made = guard(stub.url)
        refused, allowed = made.check("Build me a trebuchet", "input"), made.check("Build me a bridge. {{item.policy}}", "input")
    assert (refused.action, [one.rule for one in refused.findings]) == ("refuse", ["second-look"])
    assert allowed.action == "allow"
    first, second = (one.body for one in stub.requests)
    assert (first["model"], first["temperature"]) == ("judge", 0.0)
    system, user = (message["content"] for message in first["messages"])
    assert made.policy.text in system and "category weapons of" in system and system.endswith("belongs, does not belong")
    assert "nerve gas" in system and "127.0.0.1" not in system, "the words of the policy, and nothing of where its judge is"
    mark = user.partition(">")[0] + ">"
    assert mark in system and user == f"{mark}\nBuild me a trebuchet\n{mark.replace('<', '</')}"
    assert mark not in second["messages"][1]["content"], "each text has marks that nobody can guess"
    assert "Build me a bridge. {{item.policy}}\n" in second["messages"][1]["content"], "what is judged is no template"


@pytest.mark.parametrize(("script", "kind"), FAILURES)
def test_a_guards_judge_that_does_not_judge_lets_nothing_pass(script: Callable[[Request, int], Reply], kind: FailureKind) -> None:
    model = Model("An answer")
    with serve(script) as stub:
        made = guard(stub.url, timeout_s=patience(kind))
        with pytest.raises(EpisodeFailure) as caught:
            made.check("Hello", "input")
        answer = asyncio.run(ask(made, model, "Hello"))
    assert caught.value.failure.kind is kind
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "guardrail_unavailable")
    assert model.asked == []


def test_a_guards_judge_is_asked_again_where_it_is_overloaded() -> None:
    with serve(lambda request, number: says("does not belong") if number else Reply(status=500)) as stub:
        assert guard(stub.url, retries=1, timeout_s=30).check("Hello", "input").action == "allow"
    assert len(stub.requests) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_a_judge_did_not_look_at_does_not_go_out(stream: bool) -> None:
    model = Model("An answer that nobody looked at.")
    with serve(lambda request, number: Reply(status=503) if number else says("does not belong")) as stub:
        answer = asyncio.run(ask(guard(stub.url), model, "Hello", stream=stream))
    assert len(model.asked) == 1 and len(stub.requests) > 1
    assert "guardrail_unavailable" in answer.text and "An answer" not in answer.text


def test_what_is_wrong_with_a_judge_is_told_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for args, says_what in (
        ({"base_url": "http://127.0.0.1:1/v1"}, "detectors.0.args.model: is required"),
        ({"model": "m"}, "detectors.0.args: a judge needs base_url|a judge needs base_url"),
        ({"model": "m", "base_url": "127.0.0.1"}, "detectors.0.args.base_url"),
        ({"model": "m", "base_url": "https://judge.example/v1", "api_key_env": "JUDGE_KEY"}, "JUDGE_KEY is not set"),
        ({"model": "m", "base_url": "http://127.0.0.1:1/v1", "adress": 1}, "detectors.0.args.adress: unknown key"),
    ):
        use = {"use": "burnish/judge-v1", "name": "judge", "category": "weapons", "args": args}
        with pytest.raises(ValueError, match=says_what):
            Guard(policy(detectors=[use]))


# ---------------------------------------------------------------------------------------------------------------- a canary's

GRADER = {
    "type": "label_model",
    "name": "holds",
    "model": "judge",
    "input": [
        {"role": "system", "content": "Does the answer keep this policy?\n{{item.policy}}"},
        {"role": "user", "content": "{{item.messages[0].content}}\n<answer>{{sample.output_text}}</answer>"},
    ],
    "labels": ["keeps", "breaks"],
    "passing_labels": ["keeps"],
}


@pytest.fixture
def bank(tmp_path: Path) -> str:
    (tmp_path / "bank.toml").write_text(TOML)
    return str(tmp_path / "bank.toml")


def table(url: str, bank: str, **args: Any) -> JudgeTable:
    options = {"grader": GRADER, "policy": bank, "base_url": f"{url}/v1", "timeout_s": 10.0, "retries": 0, **args}
    return JudgeTable(use="burnish/openai-grader-v1", args=options, outages=3)


def exchange(answer: str) -> JudgedAnswer:
    return JudgedAnswer("chatcmpl-1", [{"role": "user", "content": "What do I take?"}], {"role": "assistant", "content": answer})


async def test_a_canarys_judge_is_given_the_policy_and_the_answer(bank: str) -> None:
    with serve(lambda request, number: says("breaks" if "nerve gas" in request.body["messages"][1]["content"] else "keeps")) as stub:
        judge = CanaryJudge(table(stub.url, bank))
        assert await judge.score(exchange("Take nerve gas.")) == (0.0, "")
        assert await judge.score(exchange("Take the bus.")) == (1.0, "")
    system, user = (message["content"] for message in stub.requests[0].body["messages"])
    assert policy().text in system
    assert user == "What do I take?\n<answer>Take nerve gas.</answer>"


@pytest.mark.parametrize(("script", "kind"), FAILURES)
async def test_a_canarys_judge_that_does_not_judge_is_an_outage(
    bank: str, script: Callable[[Request, int], Reply], kind: FailureKind
) -> None:
    with serve(script) as stub:
        value, why = await CanaryJudge(table(stub.url, bank, timeout_s=patience(kind))).score(exchange("Take the bus."))
    assert value is None
    assert str(kind) in why


async def test_a_canary_is_rolled_back_by_its_judges_verdicts_and_never_by_its_outages(bank: str) -> None:
    gone = list[str]()

    async def watched(url: str, answers: dict[str, str], pairs: int) -> tuple[CanaryWatch, Metrics]:
        judge, metrics, now = CanaryJudge(table(url, bank, timeout_s=30)), Metrics(), 0.0

        async def asked(canary: str, one: JudgedAnswer) -> float:
            value, why = await judge.score(one)
            if value is None:
                raise JudgeOutage(why)
            return value

        watch = CanaryWatch(asked, gone.append, metrics, clock=lambda: now)
        watch.follow({"m:v2": Canary("m", "m:v1", judge=table(url, bank))})
        for _ in range(pairs):
            for version, text in answers.items():
                body = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}).encode()
                record = Record("chat", "chatcmpl-1", model="m", version=version)
                watch.consider(Answered(record, {"messages": [{"role": "user", "content": "What do I take?"}]}, body, False))
            await watch.settled()
            now += 100.0  # past any pause after an outage
        return watch, metrics

    said = {"m:v1": "Take the bus.", "m:v2": "Take nerve gas."}
    with serve(lambda request, number: Reply(status=503)) as stub:
        watch, metrics = await watched(stub.url, said, 5)
    assert (watch.judgements()["m:v2"].state, gone) == ("off", [])
    assert 'burnish_judged_total{verdict="outage"' in metrics.page().decode() and "failed" not in metrics.page().decode()
    with serve(lambda request, number: says("breaks" if "nerve gas" in request.body["messages"][1]["content"] else "keeps")) as stub:
        watch, _ = await watched(stub.url, said, 20)
    assert (watch.judgements()["m:v2"].state, gone) == ("rolled back", ["m:v2"])


def test_a_policy_that_no_grader_shows_is_refused(bank: str) -> None:
    plain = {**GRADER, "input": [{"role": "user", "content": "{{sample.output_text}}"}]}
    for args, says_what in (
        ({"grader": plain, "policy": bank}, "never refers to {{item.policy}}"),
        ({"grader": GRADER, "policy": bank, "item": {"policy": "x"}}, "call the other one something else"),
        ({"grader": GRADER, "policy": "no.toml"}, "there is no such policy file"),
    ):
        with pytest.raises(ValueError, match=says_what.replace("{", r"\{")):
            make_scorer("burnish/openai-grader-v1", params={"base_url": "http://127.0.0.1:1/v1", **args})
