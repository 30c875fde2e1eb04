"""What a recipe says about trackers: where a run's numbers go beside its folder, and what a tracker is.

    @tracker("my-team/printer-v1")
    class Printer:
        def __init__(self, run: TrackedRun, *, prefix: str = "") -> None: ...
        def metrics(self, phase: str, step: int, values: Mapping[str, float]) -> None: ...
        def evaluation(self, record: EvaluationRecord) -> None: ...
        def alarm(self, row: AlarmRow) -> None: ...
        def close(self) -> None: ...

One that takes conversations, too, has further `traces`, how many of each step, and `episodes` (`EpisodeTracker`). What keeps one from
starting is known before a run begins, and in its dry run, by its annotations and by a static method `check_start(**options)`, which raises
ValueError and starts nothing.

Found by id, as rewards are: registered by the decorator in a plug-in, or listed by a distribution under `burnish.trackers`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict

from burnish.envs.registry import Registry, check_id
from burnish.envs.types import Episode
from burnish.rewards.options import check_options
from burnish.rollout.store.moments import Moment
from burnish.rollout.store.records import AlarmRow, EvaluationRecord, EvaluationResult


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker is told of the run: its name and folder, its config as plain JSON data, and whether it goes on from a checkpoint."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    resumed: bool


class Tracker(Protocol):
    """Takes what a run measures, in its order, on a thread of its own. What it raises once it has started ends the tracker, not the run."""

    def metrics(self, phase: str, step: int, values: Mapping[str, float]) -> None: ...
    def evaluation(self, record: EvaluationRecord) -> None: ...
    def alarm(self, row: AlarmRow) -> None: ...
    def close(self) -> None: ...


@runtime_checkable
class EpisodeTracker(Protocol):
    """What a tracker has beside the rest that takes conversations, too. traces: how many of each step and of each evaluation, the first of
    them, which are the attempts at its first tasks; it is read once, as the run begins."""

    traces: int

    def episodes(self, at: Moment, episodes: Sequence[Episode]) -> None: ...


def check_traces(traces: object) -> None:
    """Raise ValueError when this is not how many episodes a tracker takes."""
    if isinstance(traces, bool) or not isinstance(traces, int) or traces < 0:
        raise ValueError(f"traces must be a number of episodes, 0 for none, not {traces!r}")


def evaluation_metrics(result: EvaluationResult) -> dict[str, float]:
    """What trackers keep of an evaluation as metrics of its step. Example: `{"heldout/greedy/success": 0.8, …}`."""
    measured = {"success": result.success, "success_low": result.success_low, "success_high": result.success_high}
    measured |= {"reward": result.reward, **{f"part/{name}": value for name, value in result.parts.items()}}
    return {f"heldout/{result.mode}/{name}": value for name, value in measured.items()}


TrackerFactory = Callable[..., Tracker]
"""Makes a tracker of a `TrackedRun`; further parameters are its options. What it raises stops the run before it begins."""
TRACKERS: Registry[TrackerFactory] = Registry("tracker", "burnish.trackers")

F = TypeVar("F", bound=TrackerFactory)


def tracker(id: str) -> Callable[[F], F]:
    """Register a class or function as the tracker `id`. Raises ValueError on a malformed or taken id."""
    check_id(id, TRACKERS.kind)

    def register(factory: F) -> F:
        TRACKERS.register(id, factory, source=factory.__module__)
        return factory

    return register


class TrackingConfig(BaseModel):
    """The `[tracking]` table: trackers that get a run's metrics, evaluations and alarms, beside its folder. A run may resume with others.

    use: ids of trackers; `burnish/tensorboard-v1` writes TensorBoard's event files. args: options of each, by its id
    (`{ "burnish/tensorboard-v1" = { folder = "boards" } }`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    use: tuple[str, ...] = ()
    args: dict[str, dict[str, Any]] = {}

    def problems(self) -> Iterator[str]:
        """Trackers that are unknown or cannot start here, options that they do not take, and options of trackers that are not used."""
        for id in self.use:
            try:
                factory = TRACKERS.get(id)
            except ValueError as error:
                yield f"tracking.use: {error}"
                continue
            try:
                getattr(factory, "check_start", _nothing)(**self.options(id))
            except ValueError as error:
                yield f"tracking: {error}"
        for id in self.args.keys() - set(self.use):
            yield f"tracking.args.{id}: has no effect without {id!r} in tracking.use"

    def options(self, id: str) -> dict[str, Any]:
        """What a tracker is started with, as its annotations want it. Raises ValueError naming the option that is unfit."""
        factory, given = TRACKERS.get(id), self.args.get(id, {})
        if any(one.kind is one.VAR_KEYWORD for one in inspect.signature(factory).parameters.values()):
            return given  # it says itself what it takes
        return check_options(f"tracker {id!r}", factory, "run: TrackedRun", given)


def _nothing(**_: Any) -> None:
    pass
