"""Tools that are methods: an object per episode, in the environment that plays it."""

from __future__ import annotations

from typing import Any

import gymnasium
import pytest

from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.envs.spaces import MessagesSpace, UnicodeText
from burnish.envs.tool_env import ToolEnv
from burnish.envs.tool_sessions import SessionTools, open_tools
from burnish.envs.tools import ToolContext, ToolSet, tool
from burnish.envs.types import Message, Task

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
