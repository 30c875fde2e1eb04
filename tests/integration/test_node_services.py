"""The Node example keeps the same contract as the services in Python; more of its environments is in test_env_service.py."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from burnish.envs.checks.environment import CHECKS, check_environment, render
from burnish.envs.checks.tool_service import check_tool_service
from burnish.envs.checks.tools import Call
from burnish.envs.failures import EpisodeFailure, Failure, FailureKind
from burnish.envs.remote.env import RemoteEnv
from burnish.envs.remote.tools import RemoteToolSet
from burnish.envs.tool_calls import MAX_CALLS
from burnish.envs.tools import ToolContext, ToolRejected
from burnish.envs.types import Message, Task, TextPart
from burnish.rewards.checks.verifier import check_verifier_service
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.remote.wire import to_request
from burnish.rewards.types import RewardInput, Score
from burnish.rpc.background import background
from burnish.rpc.client import BatchedClient
from burnish.rpc.errors import CODES
from burnish.rpc.methods import VERIFY
from burnish.v1 import common_pb2, tool_pb2, tool_pb2_grpc, verifier_pb2, verifier_pb2_grpc

pytestmark = pytest.mark.integration

WAIT_S = 120.0
StartNode = Callable[[str], tuple[str, "subprocess.Popen[str]"]]


def episode(reward: float = 1.0, reply: str = "pass", **data: Any) -> RewardInput:
    messages = (Message("user", (TextPart("h"), TextPart("i"))), Message("assistant", reply))
    return RewardInput(f"e{reward:g}/0", Task("e", -17), messages, reward, data=data)


def verify(remote: RemoteVerifier, item: RewardInput) -> Score:
    return asyncio.run(remote.score(item))


def failure(remote: RemoteVerifier, item: RewardInput) -> Failure:
    with pytest.raises(EpisodeFailure) as caught:
        verify(remote, item)
    return caught.value.failure


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)


# ----------------------------------------------------------------------------------------------------------- the two examples


def test_the_environment_passes_the_conformance_checks(start_node: StartNode) -> None:
    address, _ = start_node("environment.js")
    RemoteEnv(address, "node-example/Guess-v0").check()
    report = check_environment("burnish/Remote-v0", {"address": address}, replies=["10", "it is 5 or 15"])
    assert report.passed, render(report)
    assert [check.name for check in report.checks] == list(CHECKS)


def test_the_environment_plays_by_its_rules(start_node: StartNode) -> None:
    address, _ = start_node("environment.js")
    env = RemoteEnv(address, kwargs={"highest": 100, "guesses": 7})
    seen = set()
    for seed in range(20):
        messages, info = env.reset(seed=seed)
        assert messages == (Message("user", "I think of a whole number from 1 to 100. Guess it; you have 7 guesses."),)
        low, high, guess, over, rewards, number = 1, 100, 0, False, 0.0, info["data"]["number"]
        while not over:
            guess = (low + high) // 2
            messages, reward, over, truncated, info = env.step(f"Is it {guess}.0?")
            assert not truncated, "halving finds one of a hundred within seven guesses"
            rewards += reward
            if not over:
                low, high = (guess + 1, high) if messages[0].text == "Higher." else (low, guess - 1)
        assert (guess, rewards) == (number, 1.0)
        seen.add(number)
    assert len(seen) > 10, "numbers differ between seeds"
    env.reset(seed=0)
    ends = [env.step("no idea")[2:4] for _ in range(7)]
    assert ends == [(False, False)] * 6 + [(False, True)]
    for name in ("lowest", "toString", "__proto__"):
        with pytest.raises(EpisodeFailure, match=f"has no kwarg '{name}'"):
            RemoteEnv(address, kwargs={name: 3}).reset(seed=0)
    with pytest.raises(EpisodeFailure, match="highest must be above 1"):
        RemoteEnv(address, kwargs={"highest": "many"}).reset(seed=0)


def test_the_verifier_judges(start_node: StartNode) -> None:
    address, _ = start_node("verifier.js")
    remote = RemoteVerifier("answer", address)
    remote.check()
    labels = {"expected": "7", "predicted": "7"}
    assert verify(remote, episode(reply="it is 7", answer=7)) == Score(1.0, {"brief": 1.0}, labels)
    assert verify(remote, episode(reply="it is 07.0.", answer=7)) == Score(1.0, {"brief": 1.0}, labels)
    assert verify(remote, episode(reply="7.5", answer=7)).value == 0 == verify(remote, episode(reply="1,007", answer=7)).value
    assert verify(remote, episode(reply="1,000", answer=1000)).value == 1
    assert verify(remote, episode(reply="6, no, 7", answer=7)) == Score(1.0, {"brief": 0.0}, labels)
    assert verify(remote, episode(reply="6, no, 7", answer=7)).explanation == "the last number is 7"
    assert verify(remote, episode(reply="?", answer=7)) == Score(0.0, {"brief": 0.0}, {"expected": "7", "predicted": "none"})
    only_the_tool = (Message("user", "3 + 4?"), Message("assistant", "add(3, 4)"), Message("tool", "7"))
    cut = replace(episode(answer=7), messages=only_the_tool, truncation="max_turns")
    assert verify(remote, cut) == Score(0.0, {"brief": 0.0}, {"expected": "7", "predicted": "none"})
    missing = failure(remote, episode(reply="7"))
    assert (missing.kind, missing.culprit) == (FailureKind.VERIFIER_ERROR, f"answer@{address}")
    assert missing.detail.startswith("TypeError: data.answer must be a whole number") and "verifier.js" in missing.detail


# ------------------------------------------------------------------------------------------------- the files they are made of


def test_the_tools_pass_the_conformance_checks(start_node: StartNode) -> None:
    address, _ = start_node("tool.js")
    calls: list[Call] = [("count", {"item": "bolts"}), ("take", {"item": "bolts", "count": 1})]
    report = check_tool_service(address, {"shelf": {"bolts": 3, "nuts": 0}}, calls)
    assert report.passed, render(report)
    assert {check.status for check in report.checks} == {"pass"}, render(report)


def test_the_verifier_passes_the_conformance_checks(start_node: StartNode) -> None:
    address, _ = start_node("verifier.js")
    report = check_verifier_service(address)
    assert report.passed, render(report)


def test_the_tools_keep_what_an_episode_did(start_node: StartNode) -> None:
    address, _ = start_node("tool.js")
    tools = RemoteToolSet(address)
    mine, other = (tools.open(ToolContext(f"t/{i}", 7, {"shelf": {"bolts": 3}})) for i in range(2))
    assert mine.call("take", {"item": "bolts", "count": 2}) == "1 left"
    with pytest.raises(ToolRejected, match="there are only 1 bolts"):
        mine.call("take", {"item": "bolts", "count": 2})
    assert (mine.call("count", {"item": "bolts"}), other.call("count", {"item": "bolts"})) == ('{"bolts": 1}', '{"bolts": 3}')
    for session in (mine, other):
        session.close()


def test_calls_of_a_turn_may_be_asked_again_and_older_ones_are_refused(start_node: StartNode) -> None:
    address, _ = start_node("tool.js")
    with grpc.insecure_channel(address) as channel:
        stub = tool_pb2_grpc.ToolServiceStub(channel)

        def take(call_id: int) -> str:
            one = '{"item": "bolts", "count": 1}'
            request = tool_pb2.CallRequest(session_id="s", call_id=str(call_id), tool="take", arguments_json=one)
            return stub.Call(request, timeout=WAIT_S).text

        opening = tool_pb2.CallRequest(
            session_id="s", session_step=tool_pb2.SESSION_STEP_OPEN, episode_id="e/0", task_data_json='{"shelf": {"bolts": 100}}'
        )
        stub.Call(opening, timeout=WAIT_S)
        for asked in ("first", "again"):
            assert [take(i) for i in range(MAX_CALLS)] == [f"{99 - i} left" for i in range(MAX_CALLS)], asked
        assert take(MAX_CALLS) == f"{99 - MAX_CALLS} left"
        assert take(1) == "98 left", "the last 32 are kept"
        with pytest.raises(grpc.RpcError, match="call '0' was answered long ago") as caught:
            take(0)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert take(MAX_CALLS + 1) == f"{98 - MAX_CALLS} left", "nothing ran in between"


def test_unary_and_stream_give_the_same_answers(node_puppet: str) -> None:
    requests = [to_request(episode(i / 8)) for i in range(5)]
    client = BatchedClient(node_puppet, VERIFY)
    with grpc.insecure_channel(node_puppet) as channel:
        stub = verifier_pb2_grpc.VerifierServiceStub(channel)
        unary = [stub.Verify(request, timeout=WAIT_S) for request in requests]
    assert [client.call_blocking(request, WAIT_S) for request in requests] == unary
    assert verify(RemoteVerifier("puppet", node_puppet), episode(0.5)) == Score(0.5, {"messages": 2}, {"expected": "e"})


def test_what_is_ready_together_travels_together(node_puppet: str) -> None:
    client = BatchedClient(node_puppet, VERIFY)
    client.call_blocking(to_request(episode()), WAIT_S)
    batches = client.counts().batches_received

    async def together() -> list[float]:
        answers = await asyncio.gather(*(client.call(to_request(episode(float(i))), WAIT_S) for i in range(1000)))
        return [answer.score for answer in answers]

    assert background().run(together(), WAIT_S) == [float(i) for i in range(1000)]
    assert client.counts().batches_received - batches < 50


def test_every_item_of_a_raw_stream_gets_one_typed_result(node_puppet: str, tmp_path: Path) -> None:
    sleep = to_request(episode(do="sleep", s=60, file=str(tmp_path / "a")))
    items = [
        verifier_pb2.VerifyItem(request_id="late", timeout_s=0.2, request=sleep),
        verifier_pb2.VerifyItem(request_id="withdrawn", timeout_s=60, request=sleep),
        verifier_pb2.VerifyItem(request_id="withdrawn", cancel=common_pb2.Cancel()),
        verifier_pb2.VerifyItem(request_id="unheard of", cancel=common_pb2.Cancel()),
        verifier_pb2.VerifyItem(request_id="good", request=to_request(episode(0.5))),
        verifier_pb2.VerifyItem(request_id="bad", request=to_request(episode(do="raise"))),
        verifier_pb2.VerifyItem(request_id="no role", request=verifier_pb2.VerifyRequest(messages=[common_pb2.Message(text="hi")])),
        verifier_pb2.VerifyItem(request_id="", request=to_request(episode())),
        verifier_pb2.VerifyItem(request_id="empty"),
    ]
    with grpc.insecure_channel(node_puppet) as channel:
        stub = verifier_pb2_grpc.VerifierServiceStub(channel)
        stream = stub.VerifyStream(iter([verifier_pb2.VerifyStreamRequest(items=items)]), timeout=WAIT_S)
        results = [result for batch in stream for result in batch.results]
    assert {one.request_id: one.error.code for one in results} == {
        "late": CODES["DEADLINE_EXCEEDED"],
        "withdrawn": CODES["CANCELLED"],
        "good": 0,
        "bad": CODES["UNKNOWN"],
        "no role": CODES["INVALID_ARGUMENT"],
        "": CODES["INVALID_ARGUMENT"],
        "empty": CODES["INVALID_ARGUMENT"],
    }
    assert len(results) == 7


def test_every_fault_of_a_verifier_is_a_typed_failure_with_its_name(node_puppet: str, tmp_path: Path) -> None:
    remote = RemoteVerifier("verdict", node_puppet, deadline_s=WAIT_S)
    brief = RemoteVerifier("verdict", node_puppet, deadline_s=2.0)
    raised = failure(remote, episode(do="raise"))
    assert (raised.kind, raised.culprit) == (FailureKind.VERIFIER_ERROR, f"verdict@{node_puppet}")
    assert raised.detail.startswith("RangeError: no verdict") and "node_puppet.js" in raised.detail
    assert failure(remote, episode(do="nan")).kind == FailureKind.VERIFIER_INVALID
    assert failure(remote, episode(do="word")).kind == FailureKind.VERIFIER_INVALID
    assert failure(brief, episode(do="sleep", s=60, file=str(tmp_path / "s"))).kind == FailureKind.VERIFIER_TIMEOUT
    unknown = failure(RemoteVerifier("verdict", node_puppet, verifier="a/b-v1"), episode())
    assert unknown.kind == FailureKind.VERIFIER_ERROR and "not served here, only test/puppet-v1" in unknown.detail
    assert verify(remote, episode(do="half")).labels == {"said": "\ufffd"}
    with pytest.raises(ValueError, match="did you mean 'test/puppet-v1'"):
        RemoteVerifier("verdict", node_puppet, verifier="test/pupet-v1").check()


@pytest.mark.parametrize("cause", ["deadline", "cancel"])
def test_giving_up_reaches_user_code(cause: str, node_puppet: str, tmp_path: Path) -> None:
    file = tmp_path / "state"
    file.write_text("")
    remote = RemoteVerifier("verdict", node_puppet, deadline_s=3.0 if cause == "deadline" else WAIT_S)

    async def run() -> None:
        task = asyncio.create_task(remote.score(episode(do="sleep", s=60, file=str(file))))
        while file.read_text() != "started":
            await asyncio.sleep(0.02)
        if cause == "cancel":
            task.cancel()
        await asyncio.wait({task})
        assert task.cancelled() == (cause == "cancel")

    asyncio.run(asyncio.wait_for(run(), WAIT_S))
    wait_until(lambda: file.read_text() == "cancelled", "cancellation of user code")


def test_unary_calls_fail_with_statuses_and_keep_their_deadline(node_puppet: str, tmp_path: Path) -> None:
    file = tmp_path / "state"
    with grpc.insecure_channel(node_puppet) as channel:
        stub = verifier_pb2_grpc.VerifierServiceStub(channel)
        cases = {
            grpc.StatusCode.UNKNOWN: to_request(episode(do="raise")),
            grpc.StatusCode.DATA_LOSS: to_request(episode(do="nan")),
            grpc.StatusCode.NOT_FOUND: to_request(episode(), verifier="test/pupet-v1"),
            grpc.StatusCode.INVALID_ARGUMENT: verifier_pb2.VerifyRequest(data_json="[]"),
        }
        for code, request in cases.items():
            with pytest.raises(grpc.RpcError) as caught:
                stub.Verify(request, timeout=WAIT_S)
            assert caught.value.code() == code, caught.value.details()
        with pytest.raises(grpc.RpcError) as late:
            stub.Verify(to_request(episode(do="sleep", s=60, file=str(file))), timeout=3.0)
        assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: file.read_text() == "cancelled", "cancellation of user code")


def test_health_answers(node_puppet: str) -> None:
    with grpc.insecure_channel(node_puppet) as channel:
        for service in ("", "burnish.v1.VerifierService", "burnish.v1.EnvironmentService"):
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_stopping_finishes_what_is_at_work_and_a_killed_server_is_unavailable(start_node: StartNode, tmp_path: Path) -> None:
    for stop, killed in ((signal.SIGTERM, False), (signal.SIGKILL, True)):
        file = tmp_path / stop.name
        file.write_text("")
        address, process = start_node("node_puppet.js")
        remote = RemoteVerifier("verdict", address, deadline_s=WAIT_S)

        async def run(remote: RemoteVerifier, file: Path, process: subprocess.Popen[str], stop: signal.Signals) -> Any:
            task = asyncio.create_task(remote.score(episode(0.5, do="sleep", s=1, file=str(file))))
            while file.read_text() != "started":
                await asyncio.sleep(0.02)
            process.send_signal(stop)
            return (await asyncio.gather(task, return_exceptions=True))[0]

        outcome = asyncio.run(asyncio.wait_for(run(remote, file, process, stop), WAIT_S))
        if killed:
            assert isinstance(outcome, EpisodeFailure) and outcome.failure.kind == FailureKind.VERIFIER_UNAVAILABLE
        else:
            assert outcome == Score(0.5, {"messages": 2}, {"expected": "e"})
            assert process.wait(WAIT_S) == 0


def test_the_lock_file_names_no_place() -> None:
    lock = Path(__file__).resolve().parents[2] / "examples" / "node" / "package-lock.json"
    assert '"resolved"' not in lock.read_text()
