"""The learner group: Ray actors around `Learner`, behind the interface that RLlib's `Algorithm` expects of one.

There is one learner actor. Sharding a policy over several (FSDP2) is a matter of this file and of `Learner`'s process group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray

from ...envs.registry import load_plugin
from ...rollout.weights import WeightSnapshot
from ..batch import TokenBatch
from ..objectives.measures import Measured
from ..objectives.objective import Objective
from .config import LearnerConfig, OptimizerConfig

T = TypeVar("T")


class LearnerLost(RuntimeError):
    """The learner died, or did not answer in time. What it held is gone with it; another can go on from a checkpoint."""


class LearnerActor:
    """`Learner` in a process of its own: vLLM patches torch globally, so engine and learner never share one."""

    def __init__(self, model: str, config: LearnerConfig, seed: int, plugins: Sequence[str]) -> None:
        from .learner import Learner

        for plugin in plugins:
            load_plugin(plugin)
        self._learner = Learner(Path(model), config, seed)

    def begin_phase(self, optimizer: OptimizerConfig) -> None:
        self._learner.begin_phase(optimizer)

    def forward_backward(self, batch: TokenBatch, objective: Objective) -> Measured:
        return self._learner.forward_backward(batch, objective)

    def score(self, batch: TokenBatch, temperature: float, reference: bool) -> Measured:
        return self._learner.score(batch, temperature, reference)

    def step(self) -> dict[str, float]:
        return self._learner.step()

    def discard(self) -> None:
        self._learner.discard()

    def snapshot(self) -> WeightSnapshot:
        return self._learner.snapshot()

    def save(self, folder: str) -> None:
        self._learner.save(Path(folder))

    def restore(self, folder: str) -> None:
        self._learner.restore(Path(folder))

    def version(self) -> int:
        return self._learner.version

    def apply(self, function: Callable[..., T]) -> T:
        return function(self._learner)

    def __repr__(self) -> str:
        return "Learner"


class LearnerGroup:
    """Drives the learner actor through the primitives of `Learner`; every call has a deadline and names the learner when it passes.

    plugins: files whose decorators register losses. timeout_s: seconds one call may take, its start included.
    Raises LearnerLost when it dies or does not answer in time, or the learner's own error.
    """

    is_remote = True

    def __init__(
        self, model: Path, config: LearnerConfig, seed: int, num_gpus: float, timeout_s: float, plugins: Sequence[str] = ()
    ) -> None:
        self._timeout_s = timeout_s
        threads = {"OMP_NUM_THREADS": str(config.threads)}
        options = {"num_cpus": 1, "num_gpus": num_gpus, "runtime_env": {"env_vars": threads}}
        self._actor = ray.remote(LearnerActor).options(**options).remote(str(model), config, seed, tuple(plugins))
        self.version = self._get(self._actor.version.options(name="learner.start").remote())

    def begin_phase(self, optimizer: OptimizerConfig) -> None:
        self._get(self._actor.begin_phase.remote(optimizer))

    def forward_backward(self, batch: TokenBatch, objective: Objective) -> Measured:
        """See `Learner.forward_backward`."""
        call = self._actor.forward_backward.options(name="learner.forward_backward")
        measured: Measured = self._get(call.remote(batch, objective))
        return measured

    def score(self, batch: TokenBatch, temperature: float = 1.0, reference: bool = False) -> Measured:
        """See `Learner.score`."""
        measured: Measured = self._get(self._actor.score.options(name="learner.score").remote(batch, temperature, reference))
        return measured

    def step(self) -> dict[str, float]:
        """See `Learner.step`."""
        metrics: dict[str, float] = self._get(self._actor.step.options(name="learner.step").remote())
        self.version += 1
        return metrics

    def discard(self) -> None:
        """See `Learner.discard`."""
        self._get(self._actor.discard.remote())

    def snapshot(self) -> Any:
        """A reference to a `WeightSnapshot` of the current weights in Ray's object store, where it is when this returns."""
        reference = self._actor.snapshot.options(name="learner.snapshot").remote()
        self._get(self._actor.version.remote())  # in order, so it is made: a learner that does not make it is not taken for its engines
        return reference

    def save_to_path(self, path: str | Path | None = None, **rllib: Any) -> str:
        """Save the learner's whole state under `path`, which must be new or empty.

        RLlib's own options (a file system, a pickle or msgpack format) do not apply: the state is safetensors and JSON on this node.
        """
        assert path is not None
        self._get(self._actor.save.remote(str(path)))
        return str(path)

    def restore_from_path(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        """Take over the state that `save_to_path` wrote."""
        self._get(self._actor.restore.remote(str(path)))
        self.version = self._get(self._actor.version.remote())

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib asks for weights to push to its runners; ours travel as snapshots instead."""
        return {"learner": {}}

    def set_state(self, state: dict[str, Any]) -> None:
        """See `get_state`."""

    def foreach_learner(self, func: Callable[..., T], **kwargs: Any) -> list[T]:
        return [self._get(self._actor.apply.remote(func))]

    def load_module_state(self, **kwargs: Any) -> None:
        raise ValueError("a burnish policy is loaded from the model folder of the config, not from an RLModule checkpoint")

    def shutdown(self) -> None:
        ray.kill(self._actor)

    def _get(self, reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=self._timeout_s)
        except ray.exceptions.GetTimeoutError as error:
            raise LearnerLost(f"the learner did not answer within {self._timeout_s:g} s") from error
        except ray.exceptions.RayActorError as error:
            raise LearnerLost(f"the learner died: {_why_dead(error)}") from error
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error


def _why_dead(error: ray.exceptions.RayActorError) -> str:
    """What Ray says of a dead actor in a few words: a paragraph of guesses where its process ended, a traceback where it raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ended = "worker process has died" in str(error) or not lines
    return "its process ended; it was killed, perhaps for want of memory" if ended else lines[-1]
