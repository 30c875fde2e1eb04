"""RLlib's view of a rollout worker: `LLMEnvRunner`, one Ray actor per engine. All logic is in `worker.py`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import ray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner

from ..envs.named import look_in
from ..envs.spaces import MessagesSpace, UnicodeText
from ..envs.types import EpisodeGroup, Float32, Task
from ..rpc.run_logs import link_actor
from .observe import RolloutMetrics
from .sent_files import with_files
from .transport.adapters import Base
from .transport.shipment import Receiver, Shipment
from .weights import SyncReceipt
from .worker import Progress, RolloutWorker, WorkerSetup


class LLMEnvRunner(EnvRunner):  # type: ignore[misc]  # RLlib is untyped
    """Runs episodes of a language-model policy. `config.worker_setup` is a `WorkerSetup`.

    Weights do not travel through `set_state`: `update_weights` takes a shipment in and proves its receipt.
    """

    def __init__(self, *, config: Any, worker_index: int = 0, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        setup: WorkerSetup = config.worker_setup
        if not setup.success:
            setup = replace(setup, success=config.success_part)
        setup = with_files(setup)
        look_in(setup.folder)
        self.worker_index = worker_index
        self.observer = RolloutMetrics(f"rollout-{worker_index}")
        here = ray.get_runtime_context()
        link_actor(here.namespace, f"rollout-{worker_index}")
        actor, node = here.get_actor_id() or "", here.get_node_id()
        self.worker = RolloutWorker(setup, f"rollout-{worker_index}", self.observer.episode, actor=actor, node=node)
        self.receiver = Receiver(node, Base(setup.model, setup.engine.resolved_dtype))

    def submit(
        self, tasks: Sequence[Task], group_size: int, temperature: float, version: int | None = None, life: str | None = None
    ) -> None:
        """See `RolloutWorker.submit`."""
        self.worker.submit(tasks, group_size, temperature, version, life)

    def sample(self, wait_s: float = 1.0, life: str | None = None, **kwargs: Any) -> list[EpisodeGroup]:
        """Groups finished since the last call; see `RolloutWorker.sample`."""
        return self.worker.sample(wait_s, life)

    def cancel(self) -> None:
        self.worker.cancel()

    def update_weights(self, shipment: Shipment, timeout_s: float) -> SyncReceipt:
        with self.receiver.taking(shipment, partial(ray.get, timeout=timeout_s)) as weights:
            receipt = self.worker.update_weights(weights, timeout_s)
        self.observer.synced(receipt)
        return replace(receipt, node=self.receiver.node)

    def score(self, sequences: Sequence[Sequence[int]], version: int | None = None, life: str | None = None) -> list[Float32]:
        """See `RolloutWorker.score`."""
        return self.worker.score(sequences, version, life)

    def weight_version(self) -> int:
        return self.worker.weight_version

    def progress(self) -> Progress:
        return self.worker.progress

    def assert_healthy(self) -> None:
        assert self.worker.engine is not None

    def get_spaces(self) -> dict[str, tuple[gymnasium.Space[Any], gymnasium.Space[Any]]]:
        spaces = (MessagesSpace(), UnicodeText())
        return {INPUT_ENV_SPACES: spaces, DEFAULT_MODULE_ID: spaces}

    def get_metrics(self) -> dict[str, Any]:
        return {}

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing to take over: the runner's only state is its engine's weights."""

    def stop(self) -> None:
        self.worker.close()

    def pid(self) -> int:
        """Of the process, which a restart changes."""
        return os.getpid()

    def ping(self) -> str:
        return "pong"

    def __repr__(self) -> str:
        return f"LLMEnvRunner(rollout-{self.worker_index})"
