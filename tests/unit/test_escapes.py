"""Code of users that exits, or is cancelled by nobody: a failure of its own, here and on servers, and the end of nothing else."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import pytest

from burnish.envs.contract import ENVS, register_env
from burnish.envs.failures import EpisodeFailure, Failure, FailureKind, boundary, fit, shown
from burnish.envs.remote.service import EnvironmentService, ServedEnvironment
from burnish.envs.remote.tools import ToolService
from burnish.envs.spaces import MessagesSpace, UnicodeText
from burnish.envs.tool_sessions import SessionTools
from burnish.envs.tools import ToolContext, ToolSet, tool
from burnish.envs.types import Message, Task
from burnish.rewards.calling.caller import Caller, Fault
from burnish.rewards.remote.service import Verifier, VerifierService
from burnish.rewards.remote.wire import to_request
from burnish.rewards.types import RewardInput
from burnish.rpc.errors import Status
from burnish.v1 import environment_pb2, tool_pb2

pytestmark = pytest.mark.unit

CONTEXT = ToolContext("e/0", 1)
EPISODE = RewardInput("e/0", Task("e", 1), (Message("user", "?"), Message("assistant", "!")), 0.0, {}, {}, {}, None)


class Harsh:
    """What a server's functions do here."""

    @staticmethod
    def exits(_: Any = None) -> Any:
        sys.exit(3)

    @staticmethod
    def cancels(_: Any = None) -> Any:
        raise asyncio.CancelledError

    @staticmethod
    def interrupts(_: Any = None) -> Any:
        raise KeyboardInterrupt

    @staticmethod
    async def exits_later(_: Any = None) -> Any:
        sys.exit(3)

    @staticmethod
    async def cancels_later(_: Any = None) -> Any:
        raise asyncio.CancelledError

    @staticmethod
    async def interrupts_later(_: Any = None) -> Any:
        raise KeyboardInterrupt


HARSH = [getattr(Harsh, name) for name in vars(Harsh) if not name.startswith("_")]
NAMES = {"exits": "SystemExit", "cancels": "CancelledError", "interrupts": "KeyboardInterrupt", "closes": "GeneratorExit"}


def named(function: Callable[..., Any]) -> str:
    return NAMES[function.__name__.partition("_")[0]]


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


@pytest.mark.parametrize("function", HARSH)
def test_a_verifier_is_answered_for(function: Callable[..., Any]) -> None:
    async def verify() -> Status:
        service = VerifierService([Verifier("tests/harsh-v1", function)])
        outcome = await service._handler.settle(to_request(EPISODE), "r")
        service.close()
        assert isinstance(outcome, Status)
        return outcome

    status = run(verify())
    assert status.code == "UNKNOWN" and named(function) in status.message


async def closes_later(_: Any = None) -> Any:
    raise GeneratorExit


@pytest.mark.parametrize("function", [*HARSH, closes_later])
def test_a_reward_is_answered_for(function: Callable[..., Any]) -> None:
    with pytest.raises(Fault) as fault:
        run(Caller("tests/harsh-v1", function, {}, 60.0, 1).call(EPISODE))
    assert fault.value.kind is FailureKind.REWARD_ERROR
    assert named(function) in str(fault.value) or "cancelled itself" in str(fault.value)


def harsh_tool(function: Callable[..., Any]) -> Any:
    async def later() -> str:
        """Work."""
        await function()
        return ""

    def at_once() -> str:
        """Work."""
        function()
        return ""

    chosen: Any = later if asyncio.iscoroutinefunction(function) else at_once
    chosen.__name__ = "work"
    return tool(chosen)


@pytest.mark.parametrize("function", HARSH)
def test_a_tool_is_answered_for_here_and_on_a_server(function: Callable[..., Any]) -> None:
    tools = ToolSet([harsh_tool(function)])
    if function is not Harsh.interrupts:  # on this thread, the main one, it is Ctrl-C
        with pytest.raises(EpisodeFailure) as failed:
            tools.call("work", {}, CONTEXT)
        assert failed.value.failure.kind is FailureKind.TOOL_ERROR and named(function) in failed.value.failure.detail

    async def call(session: str) -> Any:
        service = ToolService(tools)
        request = tool_pb2.CallRequest(tool="work", episode_id="e/0")
        outcome = await service._handler.settle(request, "r")
        service.close()
        return outcome

    status = run(call(""))
    assert isinstance(status, Status) and status.code == "UNKNOWN" and named(function) in status.message


class Door:
    """A class of tools that does not even open."""

    def __init__(self, context: ToolContext) -> None:
        sys.exit(4)

    @tool
    def knock(self) -> str:
        """Knock."""
        return "who is there?"


def test_tools_of_an_episode_that_cannot_be_made_are_answered_for() -> None:
    with pytest.raises(EpisodeFailure, match="SystemExit: 4"):
        SessionTools(Door).open(CONTEXT)


class Leaves(gymnasium.Env[Any, str]):
    """Exits when it is stepped, or made."""

    observation_space, action_space = MessagesSpace(), UnicodeText()

    def __init__(self, at_once: bool = False) -> None:
        if at_once:
            sys.exit(5)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return (Message("user", "go on"),), {}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        sys.exit(6)


@pytest.mark.parametrize("inline", [False, True])
def test_an_environment_on_a_server_is_answered_for(inline: bool) -> None:
    if ENVS.loaded("tests/Leaves-v0") is None:
        register_env("tests/Leaves-v0", Leaves)

    async def play() -> tuple[Any, Any, Any]:
        service = EnvironmentService([ServedEnvironment("tests/Leaves-v0", {}, allowed=("at_once",))], inline=inline)
        reset, step = environment_pb2.ResetRequest, environment_pb2.StepRequest
        asked = (
            environment_pb2.EpisodeRequest(reset=reset(episode_id="a")),
            environment_pb2.EpisodeRequest(step=step(episode_id="a", action="x")),
            environment_pb2.EpisodeRequest(reset=reset(episode_id="b", kwargs_json='{"at_once": true}')),
        )
        first, second, third = [await service._handler.settle(one, "r") for one in asked]
        service.close()
        return first, second, third

    began, stepped, made = run(play())
    assert began.reset.messages[0].text == "go on"
    assert isinstance(stepped, Status) and stepped.code == "UNKNOWN" and "SystemExit: 6" in stepped.message
    assert isinstance(made, Status) and made.code == "UNKNOWN" and "SystemExit: 5" in made.message


def test_ctrl_c_and_a_cancellation_that_was_asked_for_pass_through() -> None:
    with pytest.raises(KeyboardInterrupt), boundary(FailureKind.ENV_ERROR, "e"):
        raise KeyboardInterrupt

    async def waits() -> None:
        with boundary(FailureKind.ENV_ERROR, "e"):
            await asyncio.sleep(600)

    async def cancelled() -> None:
        task = asyncio.create_task(waits())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(cancelled())


def test_a_failure_is_fit_to_be_stored() -> None:
    failure = Failure(FailureKind.ENV_ERROR, "e" * 9000, "https://me:" + "p" * 9000 + "@host/ is down")
    assert len(failure.culprit) == 2000 and failure.detail == "https://…"
    assert fit("one\ntwo\x07") == "one\ntwo\\x07"


def test_a_value_is_shown_whatever_its_repr_does() -> None:
    class Shy:
        def __repr__(self) -> str:
            raise ValueError("no")

    assert shown(Shy()) == "a Shy (its repr cannot be read: ValueError)"
    assert shown(10**5000) == "a int (its repr cannot be read: ValueError)"
    assert shown([1, 2]) == "[1, 2]"


@pytest.mark.timeout(120)
def test_a_url_that_is_cut_shows_nothing_and_is_looked_for_in_one_pass() -> None:
    assert fit("see a://b 'http://me:secret-and-more", 15) == "see a://b 'htt…"
    assert fit("https://me:secret" + "x" * 100, 20) == "https://…"
    assert fit("at a://b, c://d" + "x" * 100, 20) == "at a://b, c://…"
    assert fit("at a://b c d" + "x" * 100, 20) == "at a://b c dxxxxxxx…"
    slashes = "://" * 1_000_000  # what takes the square of its length takes an hour here
    assert fit(f"{slashes} {'x' * 4_000_000}", 2_000_000).startswith(slashes[:100])
