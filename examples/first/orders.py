"""Can the order be shipped? An environment, its tool, a reward and a verifier, all in one file."""

import gymnasium

from burnish import Message, RewardInput, Score, ToolContext, ToolRejected, ToolSet, reward, tool, verifier
from burnish.envs import register_env
from burnish.envs.spaces import MessagesSpace, UnicodeText
from burnish.envs.tool_env import ToolEnv

ITEMS = ("bolts", "nuts", "washers")


@tool
def count(item: str, *, context: ToolContext) -> str:
    """Count what is left of an item.

    Args:
        item: bolts, nuts or washers.
    """
    if item not in ITEMS:
        raise ToolRejected(f"there is no shelf for {item!r}, only for {', '.join(ITEMS)}")
    return str(context.data["shelf"][item])


class Orders(gymnasium.Env):
    """Asks whether an order can be shipped. What is on the shelf is known only to the tool."""

    observation_space, action_space = MessagesSpace(), UnicodeText()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.shelf = {item: int(self.np_random.integers(10)) for item in ITEMS}
        item, wanted = str(self.np_random.choice(ITEMS)), int(self.np_random.integers(1, 10))
        answer = "yes" if self.shelf[item] >= wanted else "no"
        prompt = f'Can we ship {wanted} {item}? Write count(item="{item}") to look, then answer yes or no.'
        return (Message("user", prompt),), {"data": {"answer": answer}}

    def step(self, action):
        return (), 0.0, True, False, {}  # any text without a tool call ends the episode; the verifier judges it

    def tool_context(self):
        return {"shelf": self.shelf}


@register_env("first/Orders-v0")
def make():
    return ToolEnv(Orders(), ToolSet([count]))


@reward("first/brief-v1")
def brief(episode: RewardInput) -> float:
    return -0.1 * episode.metrics["tool_calls"]


@verifier("first/shipped-v1")
def shipped(episode: RewardInput) -> Score:
    said = (episode.answer or "").strip().lower().rstrip(".")  # None when it ran out of turns before it answered
    return Score(said == episode.data["answer"], labels={"expected": episode.data["answer"], "predicted": said[:10]})
