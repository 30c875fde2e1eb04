"""The learner group: Ray actors around `Learner`, behind the interface that RLlib's `Algorithm` expects of one.

One actor has the policy alone; several share it (`ranks.py`), and a batch is split between them by whole groups (`shares.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.util.placement_group import PlacementGroup, get_current_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ...envs.named import look_in
from ...envs.registry import load_plugin
from ...envs.types import Float32
from ...rollout.transport.adapters import Frozen
from ...rollout.transport.buckets import Bucket
from ...rollout.transport.delta import Delta, delta_of
from ...rollout.transport.shipment import BucketRef, Form, Sender, Shipment
from ...rpc.run_logs import link_actor
from ..batch import TokenBatch
from ..nodes import lost_node
from ..objectives.measures import Measured
from ..objectives.objective import Objective
from .config import NOT_HERE, NOT_TRUSTED, CriticConfig, LearnerConfig, LoRAConfig, OptimizerConfig
from .shares import check_trainable, merged, shares

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

    from .learner import Learner

T = TypeVar("T")

TOGETHER_S = 15.0
"""Seconds that learners wait for room on one node that could hold them all, before they take what there is on several."""


@dataclass(frozen=True, slots=True)
class LearnerLimits:
    """What learners may take, in seconds, and where. call_s: for one call, the start included. place_s: for the cluster to make room for
    them. follow_s: for the others to answer once one of them has failed, since what fails at one alone leaves them waiting for it in a
    pass. apart: whether several may be on more than one node, where they meet without authentication. node: the id of the one that they
    must be on, since no other has the files; "" where any will do. room: for them, where it was made before (`learner_room`); it is theirs
    to give back.

    Example: `LearnerLimits(call_s=600)`.
    """

    call_s: float = 3600.0
    place_s: float = 600.0
    follow_s: float = 60.0
    apart: bool = False
    node: str = ""
    room: PlacementGroup | None = None


class LearnerLost(RuntimeError):
    """The learner died, or did not answer in time. What it held is gone with it; another can go on from a checkpoint."""


@dataclass(frozen=True, slots=True)
class Packed:
    """What there is to know of a bucket without fetching it: the checksums of its tensors, and whether a delta leads to it."""

    manifest: Mapping[str, str]
    delta: bool


class LearnerActor:
    """`Learner` in a process of its own: vLLM patches torch globally, so engine and learner never share one."""

    def __init__(self, rank: int, ranks: int, timeout_s: float) -> None:
        self._rank, self._ranks, self._timeout_s = rank, ranks, timeout_s
        link_actor(ray.get_runtime_context().namespace, f"learner-{rank}")
        self._store: TCPStore | None = None
        self._learner: Learner  # once started
        self._buckets: Iterator[Bucket] = iter(())

    def listen(self, alone: bool) -> tuple[str, int]:
        """Open the meeting point of all ranks, for this machine alone or on the address that Ray uses: host and port."""
        from .ranks import listen

        host = "127.0.0.1" if alone else ray.util.get_node_ip_address()
        self._store = listen(host, self._ranks, self._timeout_s)
        return host, self._store.port

    def start(
        self, folder: str, model: str, config: LearnerConfig, seed: int, plugins: Sequence[str], meeting: tuple[str, int] | None
    ) -> int:
        """Load the model, with the other ranks where there are any; the learner's version. folder: where relative paths begin."""
        from .learner import Learner
        from .ranks import Ranks, join

        look_in(folder)
        for plugin in plugins:
            load_plugin(plugin)
        ranks = Ranks()
        if meeting is not None:
            ranks = join(*meeting, self._rank, self._ranks, config.device, self._timeout_s, self._store)
        self._learner = Learner(Path(model), config, seed, ranks)
        return self._learner.version

    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def rebase(self, model: str, lora: LoRAConfig | None) -> None:
        self._learner.rebase(Path(model), lora)

    def begin_phase(self, optimizer: OptimizerConfig, critic: CriticConfig | None) -> None:
        self._learner.begin_phase(optimizer, critic)

    def forward_backward(self, batch: TokenBatch, objective: Objective) -> Measured:
        return self._learner.forward_backward(batch, objective)

    def score(self, batch: TokenBatch, temperature: float, reference: bool) -> Measured:
        return self._learner.score(batch, temperature, reference)

    def step(self, scale: float, phase_step: int | None) -> dict[str, float]:
        return self._learner.step(scale, phase_step)

    def discard(self) -> None:
        self._learner.discard()

    def weights(self) -> dict[str, Float32]:
        return self._learner.weights()

    def bucket(self, number: int, form: Form, before: Sequence[Any]) -> tuple[Bucket | None, Delta | None, Packed | None]:
        """The next bucket, what changed since the one `before` where that is given, and what there is to know of both; None of all after
        the last. Those of one version are asked for one after the other."""
        if number == 0:
            learner, limit = self._learner, form.bucket_bytes
            self._buckets = learner.adapters(limit) if form.adapters else learner.buckets(form.dtype, limit)
        bucket = next(self._buckets, None)
        if bucket is None:
            return None, None, None
        delta = None
        if before and self._rank == 0:
            earlier: Bucket = ray.get(before[0], timeout=self._timeout_s)
            delta = delta_of(earlier.data, bucket.data) if earlier.spans == bucket.spans else None
        return bucket, delta, Packed(bucket.manifest(), delta is not None)

    def frozen(self) -> Frozen:
        return self._learner.frozen()

    def save(self, folder: str) -> None:
        self._learner.save(Path(folder))

    def restore(self, folder: str) -> None:
        self._learner.restore(Path(folder))

    def version(self) -> int:
        return self._learner.version

    def apply(self, function: Callable[..., T]) -> T:
        return function(self._learner)

    def __repr__(self) -> str:
        return "Learner" if self._ranks == 1 else f"Learner {self._rank}"


class LearnerGroup:
    """Drives the learners through the primitives of `Learner`; every call has a deadline and names the learner when it passes.

    num_gpus: of each learner. limits: how long they may take. plugins: files whose decorators register losses.
    learners: processes that share the policy, placed together. folder: where relative paths begin; empty is where this process runs.
    Raises ValueError when they would be on more than one node and may not, or on another than they must.
    Raises LearnerLost when one dies or does not answer in time, and from then on at once, whatever is called; or a learner's own error.
    When one of several fails alone, all are ended, because the others wait for it: after its own error, they are lost.
    """

    is_remote = True

    def __init__(
        self,
        model: Path,
        config: LearnerConfig,
        seed: int,
        num_gpus: float,
        limits: LearnerLimits,
        plugins: Sequence[str] = (),
        learners: int = 1,
        folder: str = "",
    ) -> None:
        self._timeout_s, self._follow_s = limits.call_s, limits.follow_s
        self._lost = ""  # why, once a learner is
        self._nodes = list[str]()  # by rank
        self._model, self._wanted = model, Form()
        self._sender = Sender(self._wanted)
        self._frozen: Frozen | None = None
        self._group = limits.room or learner_room(learners, num_gpus, limits.place_s, limits.node)
        threads = {"OMP_NUM_THREADS": str(config.threads)}
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": num_gpus, "runtime_env": {"env_vars": threads}}
        if self._group is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self._group)
        actor = ray.remote(LearnerActor).options(**options)
        self._actors = [actor.remote(rank, learners, limits.call_s) for rank in range(learners)]
        try:
            meeting = self._meet(limits.apart, plugins) if learners > 1 else None
            self._nodes = self._all("node")
            if limits.node and set(self._nodes) != {limits.node}:
                raise ValueError(NOT_HERE)
            self.version: int = self._all("start", folder or os.getcwd(), str(model), config, seed, tuple(plugins), meeting)[0]
        except BaseException:
            self.shutdown()  # nobody else can: what they took of the cluster would stay taken
            raise

    def _meet(self, apart: bool, plugins: Sequence[str]) -> tuple[str, int]:
        """Where the learners meet. Raises ValueError when they are on more than one node, and may not be."""
        for plugin in plugins:  # an objective's averaging is asked for here, before the batch is split
            load_plugin(plugin)
        alone = len(set(self._all("node"))) == 1
        if not alone and not apart:
            raise ValueError(NOT_TRUSTED)
        place: tuple[str, int] = self._get([self._there[0].listen.remote(alone)])[0]
        return place

    def send_as(self, form: Form) -> None:
        """In which form engines get the weights from now on; at first, in float32."""
        self._sender, self._wanted, self._frozen = Sender(form), form, None

    def rebase(self, model: Path, lora: LoRAConfig | None) -> None:
        """See `Learner.rebase`. Engines get adapters alone only over the model that these learners were started with, which is theirs."""
        self._all("rebase", str(model), lora)
        alone = self._wanted.adapters and lora is not None and model == self._model
        self._sender.form, self._frozen = replace(self._wanted, adapters=alone), None

    def begin_phase(self, optimizer: OptimizerConfig, critic: CriticConfig | None = None) -> None:
        """See `Learner.begin_phase`."""
        self._all("begin_phase", optimizer, critic)

    def forward_backward(self, batch: TokenBatch, objective: Objective) -> Measured:
        """See `Learner.forward_backward`."""
        return self._measured("forward_backward", batch if len(self._actors) == 1 else objective.with_scale(batch), objective)

    def score(self, batch: TokenBatch, temperature: float = 1.0, reference: bool = False) -> Measured:
        """See `Learner.score`."""
        found = self._measured("score", batch, temperature, reference)
        return replace(found, terms={"loss": -float(found.logprobs[batch.mask].mean())})

    def step(self, scale: float = 1.0, phase_step: int | None = None) -> dict[str, float]:
        """See `Learner.step`."""
        metrics: dict[str, float] = self._all("step", scale, phase_step)[0]
        self.version += 1
        return metrics

    def discard(self) -> None:
        """See `Learner.discard`. Of a learner that was lost they are gone with it: why it was is said by what was called before."""
        if not self._lost:
            self._all("discard")

    def weights(self) -> dict[str, Float32]:
        """See `Learner.weights`."""
        found: dict[str, Float32] = self._all("weights")[0]
        return found

    def snapshot(self) -> Shipment:
        """The current weights in Ray's object store, for engines, one bucket after the other. The shipment before gives up its own first:
        at once, or, where engines on other nodes are to get what changed, as each bucket is compared."""
        apart = any(node["Alive"] and node["NodeID"] != self._nodes[0] for node in ray.nodes())
        before = self._sender.begin(apart)
        parts, manifest, compared = list[BucketRef](), dict[str, str](), bool(before)
        while (packed := self._pack(before, parts)) is not None:
            manifest |= packed.manifest
        if self._sender.form.adapters and self._frozen is None:
            self._frozen = self._all("frozen")[0]
        return self._sender.finish(self.version, manifest, parts, self._nodes[0], apart, compared, self._frozen)

    def _pack(self, before: list[Any], parts: list[BucketRef]) -> Packed | None:
        """Have the next bucket made and add it to `parts`; the one in its place before is given up."""
        asked = (len(parts), self._sender.form, before[:1])
        calls = [actor.bucket.options(name="learner.bucket", num_returns=3).remote(*asked) for actor in self._there]
        packed: Packed | None = self._get([about for _, _, about in calls])[0]
        del before[:1]
        if packed is not None:
            bucket, delta, _ = calls[0]
            parts.append(BucketRef(bucket, delta if packed.delta else None))
        return packed

    def save_to_path(self, path: str | Path | None = None, **rllib: Any) -> str:
        """Save the learner's whole state under `path`, which must be new or empty.

        RLlib's own options (a file system, a pickle or msgpack format) do not apply: the state is safetensors and JSON on the first
        learner's node.
        """
        assert path is not None
        self._all("save", str(path))
        return str(path)

    def restore_from_path(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        """Take over the state that `save_to_path` wrote, with any number of learners. Each of them reads the folder."""
        self._all("restore", str(path))
        self.version = self._all("version")[0]

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib asks for weights to push to its runners; ours travel as snapshots instead."""
        return {"learner": {}}

    def set_state(self, state: dict[str, Any]) -> None:
        """See `get_state`."""

    def foreach_learner(self, func: Callable[..., T], **kwargs: Any) -> list[T]:
        """What `func` gives of each learner. It is called on all at once, so it may use the learner's passes, with the same batch."""
        return self._all("apply", func)

    def load_module_state(self, **kwargs: Any) -> None:
        raise ValueError("a burnish policy is loaded from the model folder of the config, not from an RLModule checkpoint")

    def shutdown(self) -> None:
        """End the learners and give back what they took of the cluster."""
        for actor in self._actors:
            ray.kill(actor)
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    def _measured(self, method: str, batch: TokenBatch, *arguments: Any) -> Measured:
        """A pass over the batch: split, computed by each learner, and put together again."""
        if len(self._actors) == 1:
            alone: Measured = self._all(method, batch, *arguments)[0]
            return alone
        check_trainable(batch)
        parts = shares(batch, len(self._actors))
        named = f"learner.{method}"
        calls = [
            getattr(actor, method).options(name=named).remote(batch.select(part), *arguments)
            for actor, part in zip(self._there, parts, strict=True)
        ]
        return merged(batch, parts, self._get(calls))

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        return self._get(self._call(method, *arguments))

    def _call(self, method: str, *arguments: Any) -> list[Any]:
        return [getattr(actor, method).options(name=f"learner.{method}").remote(*arguments) for actor in self._there]

    @property
    def _there(self) -> list[Any]:
        """The learners, to call them. Raises LearnerLost at once where one was lost before: what hangs would be waited for once more by all
        that follows, be it only to drop the gradients of the pass that hung."""
        if self._lost:
            raise LearnerLost(self._lost)
        return self._actors

    def _get(self, calls: Sequence[Any]) -> list[Any]:
        """Every answer, or the first error, where a death counts before what the others say of it. Learners that do not answer soon after
        an error are ended with the rest: they wait for the one that failed."""
        deadline, waiting, errors = time.monotonic() + self._timeout_s, list(calls), list[Exception]()
        while waiting:
            done, waiting = ray.wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                break
            try:
                ray.get(done)
            except ray.exceptions.RayError as error:
                errors.append(error)
                deadline = min(deadline, time.monotonic() + self._follow_s)
        if errors and waiting:
            self.shutdown()
            self._lost = "all learners were ended: one had failed alone, and the others waited for it"
        for first in sorted(errors, key=lambda error: not isinstance(error, ray.exceptions.RayActorError)):
            if isinstance(first, ray.exceptions.RayActorError):
                gone = next(filter(None, map(lost_node, self._nodes)), "")
                self._lost = f"the learner died: {gone or _why_dead(first)}"
                raise LearnerLost(self._lost) from first
            raise (first.cause if isinstance(first, ray.exceptions.RayTaskError) else first) from first
        if waiting:
            self._lost = f"the learner did not answer within {self._timeout_s:g} s"
            raise LearnerLost(self._lost)
        answers: list[Any] = ray.get(list(calls))
        return answers


def learner_room(learners: int, num_gpus: float, place_s: float, node: str = "") -> PlacementGroup | None:
    """Room for all learners at once: on one node where one could hold them all and has room within `TOGETHER_S`, else close together; on
    the node with the id `node`, where one is given. None where a group of the caller's has it (Ray Tune).

    Raises TimeoutError when the cluster does not have it, ValueError when the node never could.
    """
    if get_current_placement_group() is not None:
        return None
    each = {"CPU": 1.0} | ({"GPU": num_gpus} if num_gpus else {})
    deadline = time.monotonic() + place_s
    group = None
    if node:
        if not _one_node_could(each, learners, node):
            raise ValueError(NOT_HERE)
        group = _room(each, learners, "STRICT_PACK", place_s, node)
    elif _one_node_could(each, learners):
        group = _room(each, learners, "STRICT_PACK", min(TOGETHER_S, place_s / 2))
        if group is not None:
            return group
    if not node:
        group = _room(each, learners, "PACK", max(0.0, deadline - time.monotonic()))
    if group is None:
        asked = ", ".join(f"{amount:g} {name}" for name, amount in each.items())
        who = f"a learner of {asked}" if learners == 1 else f"{learners} learners of {asked} each"
        or_else = "wait for whoever has the rest" if learners == 1 else "lower resources.learners"
        raise TimeoutError(f"the cluster had no room for {who} within limits.place_s = {place_s:g} s; {or_else}")
    return group


def _one_node_could(each: Mapping[str, float], learners: int, node: str = "") -> bool:
    """Whether a node of the cluster, or that one, has so much, free or not."""
    nodes = (one["Resources"] for one in ray.nodes() if one["Alive"] and node in ("", one["NodeID"]))
    return any(all(has.get(name, 0.0) >= amount * learners for name, amount in each.items()) for has in nodes)


def _room(each: Mapping[str, float], learners: int, strategy: str, wait_s: float, node: str = "") -> PlacementGroup | None:
    """A placement group, None when there is no room for it in time."""
    there = [{"ray.io/node-id": node}] * learners if node else None
    group = placement_group([dict(each)] * learners, strategy=strategy, name="learners", bundle_label_selector=there)
    try:
        ray.get(group.ready(), timeout=wait_s)
    except ray.exceptions.GetTimeoutError:
        remove_placement_group(group)
        return None
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def _why_dead(error: ray.exceptions.RayActorError) -> str:
    """What Ray says of a dead actor in a few words: a paragraph of guesses where its process ended, a traceback where it raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ended = "worker process has died" in str(error) or not lines
    return "its process ended; it was killed, perhaps for want of memory" if ended else lines[-1]
