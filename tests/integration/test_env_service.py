"""Environments over real sockets: the same as local ones, whatever is asked twice, late, out of order, or of a server that was killed."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from gymnasium.error import ResetNeeded

from burnish.cluster import check_services, services_of
from burnish.envs.checks.environment import CHECKS, check_environment, render
from burnish.envs.contract import ConversationEnv, make_env, read_reset, read_step, with_declared_parts
from burnish.envs.failures import EpisodeFailure, Failure, FailureKind
from burnish.envs.registry import load_plugin
from burnish.envs.remote.env import RemoteEnv
from burnish.envs.remote.service import EnvironmentService, ServedEnvironment, SessionLimits
from burnish.envs.types import Message, Reward, Task
from burnish.hosting.process import ServiceProcess
from burnish.recipe.load import config_from_data
from burnish.recipe.resolve import resolve
from burnish.rewards.rubric import Rubric
from burnish.rollout.config import RolloutConfig
from burnish.rollout.conversation import EpisodeParts
from burnish.rollout.engine.base import GenerateRequest
from burnish.rollout.engine.fake import Reply, ScriptedEngine
from burnish.rollout.episode import run_with_retries
from burnish.rollout.renderers import TemplateRenderer
from burnish.rpc.background import background
from burnish.rpc.client import BatchedClient
from burnish.rpc.errors import CODES, RpcOverloaded, RpcRemoteError, RpcTimeout
from burnish.rpc.methods import EPISODE
from burnish.rpc.server import Server
from burnish.v1 import common_pb2, environment_pb2, environment_pb2_grpc

pytestmark = pytest.mark.integration

TARGETS = Path(__file__).with_name("env_targets.py")
PUPPET = f"{TARGETS}:test/Puppet-v0"
ALLOWED = ("--allow-arg", "file", "--allow-arg", "broken")
WAIT_S = 120.0
REPLIES = {"burnish/FrozenLake-v0": ["down", "right"], "burnish/QualityInspection-v0": ['spec("bore")', "scrap: bore", "scrap bore"]}
SUBJECTS = ("burnish/Arithmetic-v0", "burnish/FrozenLake-v0", "burnish/QualityInspection-v0")


def reset_request(episode_id: str = "", **fields: Any) -> environment_pb2.EpisodeRequest:
    return environment_pb2.EpisodeRequest(reset=environment_pb2.ResetRequest(episode_id=episode_id or uuid.uuid4().hex, **fields))


def step_request(episode_id: str, step_id: int, action: str) -> environment_pb2.EpisodeRequest:
    return environment_pb2.EpisodeRequest(step=environment_pb2.StepRequest(episode_id=episode_id, step_id=step_id, action=action))


def close_request(episode_id: str) -> environment_pb2.EpisodeRequest:
    return environment_pb2.EpisodeRequest(close=environment_pb2.CloseRequest(episode_id=episode_id))


class Caller:
    """Hand-made calls of one episode. Example: `Caller(address).reset().step(0, "hello")`."""

    def __init__(self, address: str, **fields: Any) -> None:
        self.client = BatchedClient(address, EPISODE)
        self.first = reset_request(**fields)
        self.id = self.first.reset.episode_id

    def reset(self, timeout_s: float = WAIT_S) -> environment_pb2.ResetResponse:
        return self.client.call_blocking(self.first, timeout_s).reset

    def step(self, step_id: int, action: str, timeout_s: float = WAIT_S) -> environment_pb2.StepResponse:
        return self.client.call_blocking(step_request(self.id, step_id, action), timeout_s).step

    def close(self) -> None:
        self.client.call_blocking(close_request(self.id), WAIT_S)

    def refused(self, code: str, step_id: int, action: str) -> str:
        with pytest.raises(RpcRemoteError) as caught:
            self.step(step_id, action)
        assert caught.value.code == CODES[code], caught.value
        return caught.value.message


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)


def named(file: Path) -> str:
    """A file as a client may name it to the puppet, which looks below the folder for temporary files: no path that leaves its folder."""
    return os.path.relpath(file, tempfile.gettempdir())


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def failure(env: ConversationEnv, action: str) -> Failure:
    with pytest.raises(EpisodeFailure) as caught:
        env.step(action)
    return caught.value.failure


@contextmanager
def serving(sessions: SessionLimits, inline: bool = False) -> Iterator[str]:
    """A server of the puppet in this process."""
    load_plugin(TARGETS)
    server = Server([EnvironmentService([ServedEnvironment("test/Puppet-v0", allowed=("file",))], sessions, inline=inline)])
    try:
        yield background().run(server.start(), WAIT_S)
    finally:
        assert background().run(server.stop(), WAIT_S)


class Foreign(EnvironmentService):
    """Speaks another contract, and answers what it likes."""

    def __init__(self, answers: list[environment_pb2.EpisodeResponse]) -> None:
        super().__init__([ServedEnvironment("burnish/Arithmetic-v0")])
        self._answers = answers

    async def Describe(self, request: Any, context: Any) -> environment_pb2.DescribeEnvironmentsResponse:
        return environment_pb2.DescribeEnvironmentsResponse(contract="burnish.v9")

    async def _handle(self, request: environment_pb2.EpisodeRequest) -> environment_pb2.EpisodeResponse:
        return self._answers.pop(0) if request.WhichOneof("call") != "close" else await super()._handle(request)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def puppet(logs: Path) -> Iterator[str]:
    with ServiceProcess("environment", PUPPET, logs / "puppet.log", arguments=ALLOWED) as service:
        yield service.address


@pytest.fixture(params=["python", "node"])
def either(request: pytest.FixtureRequest) -> str:
    """The same puppet, in Python and over the files of the Node example."""
    return str(request.getfixturevalue("puppet" if request.param == "python" else "node_puppet"))


# --------------------------------------------------------------------------------------------------- the same as a local one


@pytest.mark.parametrize("id", SUBJECTS)
def test_a_served_environment_keeps_the_contract_and_plays_as_the_local_one(id: str, logs: Path) -> None:
    with ServiceProcess("environment", id, logs / "served.log") as service:
        remote = {"address": service.address}
        report = check_environment("burnish/Remote-v0", remote, seeds=(0, 1, 2), replies=REPLIES.get(id, []))
        assert report.passed, render(report)
        assert [check.name for check in report.checks] == list(CHECKS)
        for seed in range(5):
            here, there = make_env(id), make_env("burnish/Remote-v0", **remote)
            for env in (here, there):
                env.action_space.seed(seed)
            messages, info = read_reset(here.reset(seed=seed), "here")
            assert read_reset(there.reset(seed=seed), "there") == (messages, with_declared_parts(here, "here", info))
            over = False
            for text in (*REPLIES.get(id, ["3"]), "", "what? \ud800"):
                if not over:
                    mine, theirs = read_step(here.step(text), "here"), read_step(there.step(text), "there")
                    assert theirs == mine
                    over = mine.terminated or mine.truncated
            there.close()


def test_task_options_kwargs_and_everything_in_info_cross_the_wire(either: str, tmp_path: Path) -> None:
    env = RemoteEnv(either, kwargs={"file": named(tmp_path / "log")})
    task = Task("train-17", 17, (Message("user", "a prompt"),), {"level": 2, "deep": {"ok": [None, True, 2.5]}})
    messages, info = env.reset(seed=5, options={"task": task, "episode_id": "train-17/0"})
    assert messages == (Message("system", "Do as told."), Message("user", "begin"))
    assert info["data"] == {"seed": 5, "told": "train-17/0", "task": {"id": "train-17", "level": 2, "deep": {"ok": [None, True, 2.5]}}}
    assert info["tools"][0]["function"]["name"] == "measure"
    assert info.keys() == {"data", "tools"}
    messages, reward, terminated, truncated, info = env.step("truncate it")
    assert (messages, reward, terminated, truncated) == ((Message("user", "1: truncate it"),), 0.25, False, True)
    assert info == {"reward_parts": {"steps": 0.25}, "metrics": {"steps": 1.0}, "labels": {"said": "truncate"}}
    with pytest.raises(ResetNeeded, match=f"test/Puppet-v0@{either}"):
        env.step("more")
    env.close()
    assert lines(tmp_path / "log") == ["made", "step 1", "closed"]


def test_a_reset_without_a_seed_draws_one(either: str) -> None:
    env, again = RemoteEnv(either), RemoteEnv(either)
    seeds = [[one.reset(seed=3)[1]["data"]["seed"], *(one.reset()[1]["data"]["seed"] for _ in range(3))] for one in (env, again)]
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == 4
    assert env.reset(options={"task": Task("t", 11)})[1]["data"]["seed"] == 11


def test_unary_and_stream_give_the_same_answers(either: str) -> None:
    streamed = Caller(either, attempt_id="same")
    with grpc.insecure_channel(either) as channel:
        stub = environment_pb2_grpc.EnvironmentServiceStub(channel)
        request = environment_pb2.ResetRequest(episode_id=uuid.uuid4().hex, attempt_id="same")
        assert stub.Reset(request, timeout=WAIT_S) == streamed.reset()
        step = environment_pb2.StepRequest()
        for i, action in enumerate(["a", "b", "end"]):
            step = environment_pb2.StepRequest(episode_id=request.episode_id, step_id=i, action=action)
            assert stub.Step(step, timeout=WAIT_S) == streamed.step(i, action)
        stub.Close(environment_pb2.CloseRequest(episode_id=request.episode_id), timeout=WAIT_S)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Step(step, timeout=WAIT_S)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        described = stub.Describe(environment_pb2.DescribeEnvironmentsRequest(), timeout=WAIT_S)
    assert [(one.id, one.description) for one in described.environments] == [
        ("test/Puppet-v0", "Counts its steps and does what it is told.")
    ]
    assert (described.contract, described.idle_timeout_s, described.max_sessions) == ("burnish.v1", 600.0, 4096)


@pytest.mark.parametrize("inline", [False, True])
def test_many_episodes_share_one_stream(inline: bool) -> None:
    with serving(SessionLimits(), inline) as address:
        client = BatchedClient(address, EPISODE)

        async def play(i: int) -> list[str]:
            first = reset_request(seed=i)
            id, said = first.reset.episode_id, []
            await client.call(first, WAIT_S)
            for turn in range(4):
                answer = await client.call(step_request(id, turn, f"{i}"), WAIT_S)
                said.append(answer.step.messages[0].text)
            await client.call(close_request(id), WAIT_S)
            return said

        async def all_of_them() -> list[list[str]]:
            return await asyncio.gather(*(play(i) for i in range(500)))

        answers = background().run(all_of_them(), WAIT_S)
        assert answers == [[f"{turn}: {i}" for turn in range(1, 5)] for i in range(500)]
        counts = client.counts()
        assert (counts.connections, counts.items_sent) == (1, 3000)
        assert counts.batches_sent < 1000


# ------------------------------------------------------------------------------------------- twice, late, out of order, after


def test_what_is_asked_again_happens_once(either: str, tmp_path: Path) -> None:
    file = tmp_path / "log"
    caller = Caller(either, kwargs_json=f'{{"file": "{named(file)}"}}', seed=4)
    begun = caller.reset()
    assert caller.reset() == begun
    first = caller.step(0, "hello")
    assert caller.step(0, "hello") == first
    assert first.messages[0].text == "1: hello"
    assert caller.reset() == begun, "the reset's answer is kept for as long as the episode is open"
    second = caller.step(1, "end")
    assert caller.step(1, "end") == second and second.terminated
    caller.close()
    caller.close()
    assert lines(file) == ["made", "step 1", "step 2", "closed"]
    Caller(either).close()


def test_what_is_out_of_order_is_refused_and_changes_nothing(either: str) -> None:
    caller = Caller(either)
    assert "is not open here: it never began" in caller.refused("NOT_FOUND", 0, "a")
    caller.reset()
    assert "step 1 is out of order: the next is step 0" in caller.refused("FAILED_PRECONDITION", 1, "a")
    assert "out of order" in caller.refused("FAILED_PRECONDITION", -1, "a")
    caller.step(0, "a")
    caller.step(1, "b")
    assert "step 0 is out of order: the next is step 2" in caller.refused("FAILED_PRECONDITION", 0, "a")
    assert "step 1 was taken already, with another action" in caller.refused("FAILED_PRECONDITION", 1, "c")
    other = reset_request(caller.id, seed=99)
    with pytest.raises(RpcRemoteError, match="is open already, from another reset"):
        caller.client.call_blocking(other, WAIT_S)
    assert caller.step(2, "end").messages[0].text == "3: end"
    assert "the episode ended with step 2" in caller.refused("FAILED_PRECONDITION", 3, "d")
    with pytest.raises(RpcRemoteError, match="episode_id must be set"):
        caller.client.call_blocking(environment_pb2.EpisodeRequest(reset=environment_pb2.ResetRequest()), WAIT_S)
    with pytest.raises(RpcRemoteError, match="a request is a reset, a step or a close"):
        caller.client.call_blocking(environment_pb2.EpisodeRequest(), WAIT_S)


def test_a_step_past_its_deadline_goes_on_and_its_answer_can_be_asked_for(either: str, tmp_path: Path) -> None:
    file = tmp_path / "log"
    caller = Caller(either, kwargs_json=f'{{"file": "{named(file)}"}}')
    caller.reset()
    while "step 1" not in lines(file):  # on a busy machine a call may have passed its deadline before it arrives
        with pytest.raises(RpcTimeout, match=r"within 0\.5 s"):
            caller.step(0, "hold log", timeout_s=0.5)
    assert "step 0 is still at work" in caller.refused("FAILED_PRECONDITION", 1, "b")
    (tmp_path / "log.go").touch()
    assert caller.step(0, "hold log").messages[0].text == "1: hold log"
    assert caller.step(1, "b").messages[0].text == "2: b"
    assert lines(file) == ["made", "step 1", "slept", "step 2"]


def test_two_that_ask_for_the_same_step_at_once_get_one_answer(either: str) -> None:
    caller = Caller(either)
    caller.reset()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: caller.step(0, "sleep 0.3"), range(4)))
    assert answers == [answers[0]] * 4
    assert answers[0].info.metrics["steps"] == 1.0


def test_closing_tells_the_environment_at_work_and_closes_it_afterwards(either: str, tmp_path: Path) -> None:
    file = tmp_path / "log"
    caller = Caller(either, kwargs_json=f'{{"file": "{named(file)}"}}')
    caller.reset()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(caller.refused, "CANCELLED", 0, "sleep 60")
        wait_until(lambda: "step 1" in lines(file), "the step")
        caller.close()
        assert "was closed" in waiting.result(WAIT_S)
    wait_until(lambda: lines(file) == ["made", "step 1", "cancelled", "closed"], "the end of the environment")


def test_a_lost_connection_costs_no_step(either: str, tmp_path: Path) -> None:
    file = tmp_path / "log"
    env = RemoteEnv(either, kwargs={"file": named(file)})
    env.reset(seed=0)
    (connection,) = env._client._replicas(background())._replicas
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(env.step, "hold log")
        wait_until(lambda: "step 1" in lines(file), "the step")
        assert connection._runner is not None
        background().loop.call_soon_threadsafe(connection._runner.cancel)
        (tmp_path / "log.go").touch()
        assert waiting.result(WAIT_S)[4]["metrics"] == {"steps": 1.0}
    assert lines(file) == ["made", "step 1", "slept"]
    assert env._client.counts().connections >= 2


# --------------------------------------------------------------------------------------------------- environments that fail


def test_every_fault_is_a_typed_failure_with_name_and_address(puppet: str) -> None:
    cases = {
        "raise": "step: RuntimeError: the gauge is broken",
        "nan": "step: breaks the environment contract: step: reward must be a finite number",
        "set": 'step: what the environment returned cannot be sent: info["data"]: truth is a set',
    }
    for action, detail in cases.items():
        env = RemoteEnv(puppet)
        env.reset(seed=0)
        found = failure(env, action)
        assert (found.kind, found.culprit) == (FailureKind.ENV_ERROR, f"test/Puppet-v0@{puppet}")
        assert found.detail.startswith(detail)
        with pytest.raises(ResetNeeded):
            env.step("again")
        env.reset(seed=0)
        env.step("again")

    brief = RemoteEnv(puppet, deadline_s=2.0)
    brief.reset(seed=0)
    late = failure(brief, "sleep 60")
    assert (late.kind, late.culprit) == (FailureKind.ENV_TIMEOUT, f"test/Puppet-v0@{puppet}")
    assert re.match(r"step: no (answer|result) within [\d.]+ s$", late.detail)
    brief.close()

    refused: dict[str, dict[str, Any]] = {"'fil' is not for clients to set": {"fil": 1}, "OSError: no bench": {"broken": True}}
    for detail, kwargs in refused.items():
        with pytest.raises(EpisodeFailure, match=detail):
            RemoteEnv(puppet, kwargs=kwargs).reset(seed=0)
    with pytest.raises(EpisodeFailure, match="did you mean 'test/Puppet-v0'"):
        RemoteEnv(puppet, "test/Pupet-v0").reset(seed=0)
    with pytest.raises(EpisodeFailure, match=r"the task cannot be sent: task\.data: truth is a set"):
        RemoteEnv(puppet).reset(options={"task": Task("t", 0, data={"truth": {1}})})
    with pytest.raises(ValueError, match="options 'level' cannot be sent"):
        RemoteEnv(puppet).reset(options={"level": 1})


def test_a_step_that_raised_breaks_the_episode_and_its_error_is_given_again(either: str) -> None:
    caller = Caller(either)
    caller.reset()
    raised = caller.refused("UNKNOWN", 0, "raise")
    assert "Error: the gauge is broken\n" in raised, "the message, and where it was raised"
    assert caller.refused("UNKNOWN", 0, "raise") == raised
    assert "step 0 failed" in caller.refused("FAILED_PRECONDITION", 1, "b")
    nan = Caller(either)
    nan.reset()
    nan.refused("DATA_LOSS", 0, "nan")


def test_a_reset_that_failed_leaves_nothing_behind(either: str) -> None:
    caller = Caller(either, kwargs_json='{"broken": true}')
    for _ in range(2):
        with pytest.raises(RpcRemoteError, match="Error: no bench"):
            caller.reset()
        caller.refused("NOT_FOUND", 0, "a")
    with pytest.raises(RpcRemoteError, match="kwargs_json: must be a JSON object"):
        Caller(either, kwargs_json="[]").reset()


def test_a_service_that_answers_nonsense_is_a_typed_failure() -> None:
    user = common_pb2.Message(role=common_pb2.ROLE_USER, text="begin")
    begun = environment_pb2.EpisodeResponse(reset=environment_pb2.ResetResponse(messages=[user], environment="far/Off-v0"))

    def stepped(**fields: Any) -> environment_pb2.EpisodeResponse:
        return environment_pb2.EpisodeResponse(step=environment_pb2.StepResponse(**fields))

    resets = {
        "it answered reset with nothing": environment_pb2.EpisodeResponse(),
        "it answered reset with close": environment_pb2.EpisodeResponse(close=environment_pb2.CloseResponse()),
        "breaks the environment contract: reset returned no message": environment_pb2.EpisodeResponse(
            reset=environment_pb2.ResetResponse()
        ),
    }
    steps = {
        "it answered step with reset": begun,
        "breaks the environment contract: step: reward must be a finite number, not nan": stepped(reward=float("nan"), terminated=True),
        "breaks the environment contract: step returned no message though the episode goes on": stepped(),
        "its answer to step is unreadable: info.data_json: not valid JSON": stepped(terminated=True, info={"data_json": "{"}),
        "its answer to step is unreadable: messages[0].role is 0": stepped(messages=[common_pb2.Message(text="hi")]),
    }
    answers = [*resets.values(), *(answer for step in steps.values() for answer in (begun, step))]
    server = Server([Foreign(answers)])
    address = background().run(server.start(), WAIT_S)
    env = RemoteEnv(address)
    for detail in resets:
        with pytest.raises(EpisodeFailure) as caught:
            env.reset(seed=0)
        failed = caught.value.failure
        assert (failed.kind, failed.culprit) == (FailureKind.ENV_ERROR, f"environment@{address}")
        assert failed.detail.startswith(detail)
    for detail in steps:
        env.reset(seed=0)
        failed = failure(env, "hello")
        assert (failed.kind, failed.culprit) == (FailureKind.ENV_ERROR, f"far/Off-v0@{address}")
        assert failed.detail.startswith(detail)
    with pytest.raises(ValueError, match=r"speaks 'burnish\.v9'; this burnish speaks 'burnish\.v1'"):
        env.check()
    assert background().run(server.stop(), WAIT_S)


def test_sessions_expire_when_nobody_asks(tmp_path: Path) -> None:
    used, idle = tmp_path / "used", tmp_path / "idle"
    with serving(SessionLimits(idle_s=3.0)) as address:
        kept, left = (Caller(address, kwargs_json=f'{{"file": "{named(file)}"}}') for file in (used, idle))
        kept.reset()
        left.reset()
        kept.step(0, "sleep 4.5")  # someone waits: not idle
        wait_until(lambda: lines(idle) == ["made", "closed"], "the end of the idle episode")
        assert "was idle for more than 3 s" in left.refused("NOT_FOUND", 0, "a")
        assert kept.step(1, "a").messages[0].text == "2: a"
        env = RemoteEnv(address)
        env.reset(seed=0)
        time.sleep(4.5)
        assert failure(env, "a").detail.startswith("step: episode ")
    assert lines(used)[-1] == "closed", "a server that stops closes what is open"


def test_the_number_of_sessions_is_bounded() -> None:
    with serving(SessionLimits(max_sessions=2)) as address:
        first, second, third = (Caller(address) for _ in range(3))
        first.reset()
        second.reset()
        with pytest.raises(RpcOverloaded, match="2 episodes are open, as many as this server takes"):
            third.reset(timeout_s=2.0)
        first.close()
        third.reset()
        brief = RemoteEnv(address, deadline_s=2.0)
        with pytest.raises(EpisodeFailure, match=r"reset: .* 2 episodes are open") as failed:
            brief.reset(seed=0)
        assert failed.value.failure.kind == FailureKind.ENV_TIMEOUT
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(RemoteEnv(address).reset, seed=0)
            time.sleep(0.5)
            assert not waiting.done(), "a full server is waited for"
            second.close()
            assert waiting.result(WAIT_S)[0][1] == Message("user", "begin")
    with pytest.raises(ValueError, match="max_sessions of at least 1"):
        SessionLimits(max_sessions=0)


# ----------------------------------------------------------------------------------------------- servers that come and go


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from burnish.trainer.models.tokenizer import train_tokenizer

    return train_tokenizer(["Do as told. begin", "1: hello", "hello", "end"] * 20, vocab_size=400, max_length=512)


def test_a_killed_server_is_a_failure_and_the_rollout_plays_again(tokenizer: Any, tmp_path: Path) -> None:
    service = ServiceProcess("environment", PUPPET, tmp_path / "log")
    service.start()
    service.port = int(service.address.rpartition(":")[2])
    words = [[*tokenizer.encode(word, add_special_tokens=False), tokenizer.eos_token_id] for word in ("hello", "end")]

    def speak(request: GenerateRequest) -> Reply:
        turn = int(request.request_id.rpartition("/")[2])
        if turn == 1 and "~" not in request.request_id:  # the first attempt: the server dies between two steps and comes back
            assert service.pid is not None
            os.kill(service.pid, signal.SIGKILL)
            service.stop()
            service.start()
        return Reply(words[turn])

    engine = ScriptedEngine(speak, timeout_s=WAIT_S)
    seen: list[Failure] = []
    with ThreadPoolExecutor(4) as threads:
        for retries in (0, 1):
            limits = RolloutConfig(max_turns=4, max_tokens_per_turn=16, retries=retries)
            chat, args = TemplateRenderer(tokenizer), {"address": service.address}
            parts = EpisodeParts("burnish/Remote-v0", args, engine, chat, Rubric([], 1.0), limits, threads, seed=3)
            outcome = asyncio.run(run_with_retries(parts, Task("train-0", 7), 0, 1.0)).outcome
            if isinstance(outcome, Failure):
                seen.append(outcome)
            else:
                assert outcome == Reward(0.5, {"env": 0.5, "env.steps": 0.5})
    service.stop()
    assert [(one.kind, one.culprit) for one in seen] == [(FailureKind.ENV_ERROR, f"test/Puppet-v0@{service.address}")]
    assert "is not open here" in seen[0].detail


def test_a_server_that_is_down_is_named_and_closing_does_not_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ServiceProcess("environment", PUPPET, tmp_path / "log") as service:
        env = RemoteEnv(service.address, deadline_s=5.0)
        env.check()
        env.reset(seed=0)
    down = failure(env, "hello")
    assert down.kind == FailureKind.ENV_ERROR
    assert "could not connect" in down.detail
    with monkeypatch.context() as patch:
        patch.setattr(env._client, "call_blocking", lambda *_: pytest.fail("there is nobody to tell that the episode is over"))
        env.close()
    with pytest.raises(ValueError, match=f"environment service at {service.address} does not answer"):
        env.check(timeout_s=0.3)


def test_stopping_finishes_the_step_at_work(tmp_path: Path) -> None:
    service = ServiceProcess("environment", PUPPET, tmp_path / "log", arguments=ALLOWED)
    env = RemoteEnv(service.start(), kwargs={"file": named(tmp_path / "env")})
    env.reset(seed=0)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(env.step, "sleep 1")
        wait_until(lambda: "step 1" in lines(tmp_path / "env"), "the step")
        service.stop()
        assert waiting.result(WAIT_S)[1] == 0.25
    assert not service.alive
    assert lines(tmp_path / "env") == ["made", "step 1", "slept", "closed"]


def test_check_recognises_the_service(puppet: str) -> None:
    RemoteEnv(puppet).check()
    RemoteEnv(puppet, "test/Puppet-v0").check()
    with pytest.raises(ValueError, match="did you mean 'test/Puppet-v0'"):
        RemoteEnv(puppet, "test/Pupet-v0").check()


def test_wrong_targets_and_arguments_are_one_clear_line(tmp_path: Path) -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("burnish/Arithmetic-v0", {"size": 3}, "did not start: environment 'burnish/Arithmetic-v0' has no kwarg 'size'"),
        ("burnish/Arithmetic-v0", {"max_operand": 0}, "did not start: burnish/Arithmetic-v0: max_operand must be at least 1"),
        (f"{TARGETS}:test/Pupet-v0", {}, "did you mean 'test/Puppet-v0'"),
        (PUPPET, {"broken": True}, "did not start: environment 'test/Puppet-v0' cannot be made: OSError: no bench"),
        ("arithmetic", {}, "names no environment; give namespace/Name-v0"),
    ]
    for target, kwargs, says in cases:
        with pytest.raises(ValueError, match=says):
            ServiceProcess("environment", target, tmp_path / "log", kwargs=kwargs).start()


def test_the_command_serves_until_it_is_stopped() -> None:
    command = [sys.executable, "-m", "burnish.cli.main", "serve-env", PUPPET, "--idle-s", "30", "--max-sessions", "8", "--threads", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert '"services": ["burnish.v1.EnvironmentService"]' in process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=WAIT_S)
            assert (process.returncode, err) == (0, "")
        finally:
            process.kill()


def test_a_recipe_starts_and_checks_its_environment_service(tmp_path: Path) -> None:
    recipe = {
        "name": "sums",
        "model": "nano",
        "environment": "burnish/Remote-v0",
        "environment_args": {"address": "service:sums"},
        "services": {"sums": {"environment": "burnish/Arithmetic-v0", "kwargs": {"max_operand": 20}}},
    }
    run = resolve(config_from_data(recipe))
    with services_of(run.services, tmp_path) as addresses:
        check_services(run, addresses)
        asked = [RemoteEnv(addresses["sums"]).reset(seed=seed)[0][0].text for seed in range(20)]
    assert any(len(number) == 2 for text in asked for number in text.split()), "the kwargs of the service count"
    wrong = resolve(config_from_data({**recipe, "environment_args": {"address": "service:sums", "environment": "burnish/Sums-v0"}}))
    with services_of(wrong.services, tmp_path) as addresses, pytest.raises(ValueError, match="has no environment 'burnish/Sums-v0'"):
        check_services(wrong, addresses)
