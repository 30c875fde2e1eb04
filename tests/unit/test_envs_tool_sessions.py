"""Tools that are methods: an object per episode, in the environment that plays it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import gymnasium
import pytest

from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.envs.remote.service import SessionLimits
from burnish.envs.remote.tool_sessions import MOST_AT_WORK, REMEMBERED_BYTES
from burnish.envs.remote.tools import ToolService
from burnish.envs.spaces import MessagesSpace, UnicodeText
from burnish.envs.tool_calls import MAX_CALLS
from burnish.envs.tool_env import ToolEnv
from burnish.envs.tool_sessions import SessionTools, open_tools
from burnish.envs.tools import ToolContext, ToolSet, tool
from burnish.envs.types import Message, Task
from burnish.rpc.batches import Limits
from burnish.rpc.errors import Status
from burnish.v1.tool_pb2 import SESSION_STEP_CLOSE, SESSION_STEP_OPEN, CallRequest

pytestmark = pytest.mark.unit

CLOSED: list[str] = []


class Shelf:
    """Tools over what is left on a shelf."""

    def __init__(self, context: ToolContext) -> None:
        self.left = dict(context.data["shelf"])
        self.episode = context.episode_id

    @tool
    def take(self, item: str, count: int = 1) -> str:
        """Take some items.

        Args:
            item: bolts or nuts.
        """
        self.left[item] -= count
        return f"{self.left[item]} left"

    @tool
    async def look(self) -> dict[str, int]:
        """What is there."""
        return self.left

    def close(self) -> None:
        CLOSED.append(self.episode)


class Orders(gymnasium.Env[Any, str]):
    observation_space, action_space = MessagesSpace(), UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return (Message("user", "Take two bolts."),), {}

    def step(self, action: str) -> Any:
        return (), 0.0, True, False, {}


def context(episode: str = "e/0") -> ToolContext:
    return ToolContext(episode, 1, {"shelf": {"bolts": 5, "nuts": 2}})


def test_methods_have_schemas_and_every_session_an_object() -> None:
    tools = SessionTools(Shelf)
    assert tools.names == ["take", "look"]
    take = tools.schemas()[0]["function"]
    assert (take["name"], list(take["parameters"]["properties"])) == ("take", ["item", "count"])
    first, second = open_tools(tools, context("a")), open_tools(tools, context("b"))
    assert first.call("take", {"item": "bolts", "count": 2}) == "3 left"
    assert second.call("take", {"item": "bolts"}) == "4 left"
    assert first.call("look", {}) == '{"bolts": 3, "nuts": 2}'
    assert tools.call("look", {}, context()) == '{"bolts": 5, "nuts": 2}'
    assert Shelf(context()).take("nuts") == "1 left", "a method stays one"


def test_an_environment_opens_and_closes_with_the_episode() -> None:
    CLOSED.clear()
    env = ToolEnv(Orders(), SessionTools(Shelf))

    def begin(episode: str) -> None:
        task = Task("t", 1, data={"shelf": {"bolts": 5}})
        env.reset(seed=1, options={"task": task, "episode_id": episode})

    begin("a")
    assert [env.step('take("bolts")')[0][0].text for _ in range(2)] == ["4 left", "3 left"]
    assert CLOSED == []
    begin("b")
    assert CLOSED == ["a"]
    assert env.step('take("bolts")')[0][0].text == "4 left"
    env.close()
    env.close()
    assert CLOSED == ["a", "b"]


def test_an_object_that_cannot_be_made_is_a_failure_of_the_tools() -> None:
    with pytest.raises(EpisodeFailure, match="KeyError: 'shelf'") as caught:
        open_tools(SessionTools(Shelf), ToolContext("e", 1))
    assert (caught.value.failure.kind, caught.value.failure.culprit) == (FailureKind.TOOL_ERROR, "tools Shelf")


def test_what_is_no_class_of_tools_is_refused() -> None:
    class Empty:
        def __init__(self, context: ToolContext) -> None: ...

    class Bare:
        @tool
        def look(self) -> str:
            return ""

    for wrong, says in ((Empty, "has no tools"), (Bare, "made from one argument"), (len, "is no class")):
        with pytest.raises(ValueError, match=says):
            SessionTools(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'look' is a method: give the class to SessionTools"):
        ToolSet([Shelf.look])


class Button:
    """Presses that can be counted, whose answers are as long as asked for."""

    def __init__(self, **limits: Any) -> None:
        self.pressed = 0
        self.sessions = ToolService(ToolSet([tool(self.press)]), **limits)

    async def press(self, chars: int = 0) -> str:
        """Press it."""
        self.pressed += 1
        return f"{self.pressed} ".ljust(chars)

    async def open(self) -> None:
        await self.sessions.answer(CallRequest(session_id="a", session_step=SESSION_STEP_OPEN, episode_id="e"))

    async def call(self, call_id: str, chars: int = 0) -> str:
        request = CallRequest(session_id="a", call_id=call_id, tool="press", arguments_json=f'{{"chars": {chars}}}')
        return (await self.sessions.answer(request)).text.strip()


async def test_all_calls_of_a_turn_may_be_asked_again() -> None:
    """As a client does whose connection broke before it read an answer: 16 answers were kept, and 32 calls ran twice."""
    button = Button()
    await button.open()
    ids = [str(i) for i in range(MAX_CALLS)]
    for asked in ("first", "again"):
        assert [await button.call(one) for one in ids] == [str(i + 1) for i in range(MAX_CALLS)], asked
    assert button.pressed == MAX_CALLS
    button.sessions.close()


async def test_a_call_whose_answer_is_forgotten_is_refused_and_not_run() -> None:
    button = Button()
    await button.open()
    for i in range(MAX_CALLS + 1):
        await button.call(str(i))
    assert await button.call("1") == "2", "the last 32 are kept"
    with pytest.raises(Status, match="call '0' was answered, and its answer is not kept") as caught:
        await button.call("0")
    assert (caught.value.code, button.pressed) == ("FAILED_PRECONDITION", MAX_CALLS + 1)
    button.sessions.close()


async def test_answers_are_kept_up_to_a_mebibyte_and_the_last_one_always() -> None:
    button, half = Button(), REMEMBERED_BYTES // 2
    await button.open()
    for i, chars in enumerate((half, half, 0)):  # with what is around them, two halves are more than the whole
        await button.call(str(i), chars)
    assert [await button.call(one) for one in ("1", "2")] == ["2", "3"]
    with pytest.raises(Status, match="is not kept any more"):
        await button.call("0")
    await button.call("3", 2 * REMEMBERED_BYTES)
    assert await button.call("3") == "4"
    with pytest.raises(Status, match="is not kept any more"):
        await button.call("2")
    assert button.pressed == 4
    button.sessions.close()


async def test_sessions_hold_what_their_data_is_once_it_is_read_and_the_answers_that_they_keep() -> None:
    """A thousand sessions that began with 64 KB of empty lists held a gigabyte, and answers of 20 MB were kept: nothing counted either."""
    button = Button(sessions=SessionLimits(max_bytes=4 << 20))

    async def opened(session_id: str, data: str) -> None:
        await button.sessions.answer(CallRequest(session_id=session_id, session_step=SESSION_STEP_OPEN, task_data_json=data))

    await opened("lists", '{"a":[' + "[]," * 20_000 + "[]]}")
    with pytest.raises(Status, match=r"the sessions that are open hold as many bytes as this server keeps \(4 MiB\)"):
        await opened("more", '{"a":[' + "[]," * 20_000 + "[]]}")
    await button.sessions.answer(CallRequest(session_id="lists", session_step=SESSION_STEP_CLOSE))
    assert button.sessions._sessions._room.held == 0
    await button.open()
    assert await button.call("0", 3 << 20) == "1", "it has its answer"
    assert await button.call("1", 1 << 20) == "2"
    with pytest.raises(Status, match="call '0' was answered, and its answer is not kept any more"):
        await button.call("0")
    assert await button.call("1") == "2" and button.pressed == 2
    with pytest.raises(Status, match="hold as many bytes") as caught:
        await button.sessions.answer(CallRequest(session_id="a", call_id="2", tool="press", arguments_json=" " * (3 << 20)))
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    button.sessions.close()
    assert button.sessions._sessions._room.held == 0


async def test_what_a_call_was_asked_with_is_held_though_nobody_waits_for_it() -> None:
    button = Stuck(sessions=SessionLimits(max_bytes=1 << 20))
    await button.open()
    request = CallRequest(session_id="a", call_id="0", tool="press", arguments_json="{}" + " " * 600_000)
    asked = asyncio.create_task(button.sessions.answer(request))
    while not button.pressed:
        await asyncio.sleep(0)
    asked.cancel()
    await asyncio.wait({asked})
    request.call_id = "1"
    with pytest.raises(Status, match="hold as many bytes"):
        await button.sessions.answer(request)
    button.sessions.close()


class Stuck(Button):
    """A button whose presses do not end by themselves."""

    async def press(self, chars: int = 0) -> str:
        """Press it."""
        self.pressed += 1
        await asyncio.Event().wait()
        return ""

    async def give_up(self, call_id: str) -> None:
        """Call, and be gone before the answer."""
        asked = asyncio.create_task(self.call(call_id))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asked.cancel()
        await asyncio.wait({asked})


async def test_calls_that_nobody_waits_for_are_counted_and_bounded() -> None:
    """A client that asked and gave up 5,000 times left 5,001 tasks, and the server said that it had nothing to do."""
    button, before = Stuck(), len(asyncio.all_tasks())
    await button.open()
    for i in range(MOST_AT_WORK):
        await button.give_up(str(i))
    for again in range(200):
        with pytest.raises(Status, match=f"{MOST_AT_WORK} calls are at work in this session") as caught:
            await button.call(f"more-{again}")
        assert caught.value.code == "RESOURCE_EXHAUSTED"
    await asyncio.sleep(0)
    assert button.sessions.in_flight == button.pressed == MOST_AT_WORK
    assert len(asyncio.all_tasks()) - before == MOST_AT_WORK
    button.sessions.close()
    while button.sessions.in_flight:
        await asyncio.sleep(0)


async def test_calls_of_all_sessions_together_are_bounded() -> None:
    button = Stuck(limits=Limits(max_in_flight=3))
    await button.open()
    for i in range(3):
        await button.give_up(str(i))
    with pytest.raises(Status, match="3 calls are at work on this server"):
        await button.call("3")
    button.sessions.close()


async def test_a_call_has_a_deadline_even_when_nobody_waits_for_it() -> None:
    button = Stuck(limits=Limits(max_deadline_s=0.01))
    await button.open()
    await button.give_up("0")
    while button.sessions.in_flight > 1 or button.sessions._sessions.at_work:
        await asyncio.sleep(0.005)
    with pytest.raises(Status, match=r"no result within 0\.01 s") as caught:
        await button.call("0")
    assert (caught.value.code, button.pressed) == ("DEADLINE_EXCEEDED", 1)
    button.sessions.close()


async def test_what_opens_sessions_is_bounded_in_bytes_and_its_ids_in_characters() -> None:
    """4,096 sessions of 64 MiB each were kept for ten minutes after anybody used them."""
    button = Stuck(sessions=SessionLimits(max_bytes=1 << 20))

    async def opened(session_id: str, size: int) -> None:
        data = json.dumps({"text": "x" * size})
        await button.sessions.answer(CallRequest(session_id=session_id, session_step=SESSION_STEP_OPEN, task_data_json=data))

    for i in range(5):
        await opened(f"large-{i}", 200_000)
    with pytest.raises(Status, match=r"hold as many bytes as this server keeps \(1 MiB\); close some of them") as caught:
        await opened("larger", 200_000)
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    await opened("small", 1000)
    await button.sessions.answer(CallRequest(session_id="large-0", session_step=SESSION_STEP_CLOSE))
    await opened("larger", 200_000)
    for request in (
        CallRequest(session_id="s" * 1025, session_step=SESSION_STEP_OPEN),
        CallRequest(session_id="small", call_id="c" * 1025),
    ):
        with pytest.raises(Status, match="_id has 1025 characters; the limit is 1024"):
            await button.sessions.answer(request)
    with pytest.raises(Status, match=r"s{200}…' is not open here"):
        await button.sessions.answer(CallRequest(session_id="s" * 1000, call_id="c"))
    button.sessions.close()
