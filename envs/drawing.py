"""An environment's own view of an episode, for the pages on which people look at rollouts: the board, the part, the plot.

    @draws("my-team/Riddles-v0")
    def render_rollout(episode: DrawnEpisode) -> str:
        return f"<p>{html.escape(episode.messages[0].text)}</p>"

Found as environments are, by the id of the environment whose episodes it draws; the entry-point group is `burnish.drawings`. A function
returns HTML or SVG as text, or the bytes of a PNG, JPEG, GIF or WebP image, or None for an episode that it has nothing to say of. It is
shown in a frame where no script runs and nothing is fetched; styles and `data:` images are allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar

from .callables import source_of
from .registry import Registry, check_id
from .types import Message, Task


class DrawnEpisode(Protocol):
    """What such a function is given of an episode. Everything in it was said by a model, an environment or a tool: escape it.

    messages: the whole conversation. turns: how often the policy spoke. env_rewards: what the environment gave in its answer to each.
    env_data: what it put into `info["data"]`, the hidden truth. reward: the total, None when the episode failed. parts: unweighted.
    """

    @property
    def task(self) -> Task: ...
    @property
    def messages(self) -> tuple[Message, ...]: ...
    @property
    def turns(self) -> int: ...
    @property
    def env_rewards(self) -> tuple[float, ...]: ...
    @property
    def env_data(self) -> Mapping[str, Any]: ...
    @property
    def reward(self) -> float | None: ...
    @property
    def parts(self) -> Mapping[str, float]: ...
    @property
    def labels(self) -> Mapping[str, str]: ...


Draw: TypeAlias = Callable[[DrawnEpisode], "str | bytes | None"]

DRAWINGS: Registry[Draw] = Registry("drawing", "burnish.drawings")

F = TypeVar("F", bound=Draw)


def draws(id: str) -> Callable[[F], F]:
    """Register a function that draws the episodes of the environment of that id. Raises ValueError on a malformed or taken id."""
    check_id(id, "environment")

    def register(draw: F) -> F:
        DRAWINGS.register(id, draw, source_of(draw))
        return draw

    return register


def find_drawing(environment: str) -> Draw | None:
    """What draws an environment's episodes, None when it has none. The id is looked up among what is installed or registered here,
    and names nothing else. Raises ValueError when the package that brings it cannot be imported."""
    known = {listing.id for listing in DRAWINGS.list()}
    return DRAWINGS.get(environment) if environment in known else None
