"""Which process of a run takes which share of a cluster: the requests that go to Ray, and whether they can be met."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from burnish.recipe.config import RunConfig
from burnish.recipe.machine import Machine
from burnish.recipe.platforms import Platform
from burnish.trainer.learner.config import NOT_TRUSTED

SHARE_FOR_VLLM = 0.9
"""Of the memory of its share of a GPU, what an engine takes: vLLM's own default for a whole one."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the processes of a run go, and what each asks of Ray.

    ray_address: a running cluster, None for one of our own with `cpus` CPUs (None: all), an object store of `object_store_mb`, and worker
    processes of a niceness (None: Ray's own).
    engines: env runners, each with an engine, at the start; min_engines: how many the run goes on with where others are lost, max_engines:
    how many it has where there is room, None for as many as at the start. learners: processes that share the policy. learner_gpus,
    engine_gpus: GPUs of each learner and of each engine; a fraction is a share of one GPU, more than one are those of one node over which
    `tensor_parallel` spreads the model. engine_resources: further Ray resources of each engine. trusted_network: whether learners may be
    on more than one node. shared_folder: whether other nodes have the run's folder; where they have not, they are sent the model, code, and
    `send`, files and folders by their paths from there. watch: deployment files and addresses for the console of the dashboard.

    Example: `Placement("gpu", engines=2, learner_gpus=1.0, engine_gpus=2.0, tensor_parallel=2).gpus == 5.0`.
    """

    platform: Platform
    ray_address: str | None = None
    cpus: int | None = None
    object_store_mb: int = 1024
    worker_niceness: int | None = None
    engines: int = 1
    min_engines: int | None = None
    max_engines: int | None = None
    learner_gpus: float = 0.0
    engine_gpus: float = 0.0
    tensor_parallel: int = 1
    engine_resources: Mapping[str, float] = field(default_factory=dict)
    learners: int = 1
    trusted_network: bool = False
    shared_folder: bool = True
    send: tuple[str, ...] = ()
    watch: tuple[str, ...] = ()

    @property
    def gpus(self) -> float:
        """Of all processes together."""
        return self.learners * self.learner_gpus + self.engines * self.engine_gpus

    @property
    def runners_line(self) -> str:
        """How many env runners there are. Example: "2 env runner(s), 1 to 4 as nodes come and go"."""
        least, most = self.min_engines or self.engines, self.max_engines or self.engines
        return f"{self.engines} env runner(s)" + (f", {least} to {most} as nodes come and go" if least < most else "")

    def lines(self) -> list[str]:
        """Who gets which GPU, a role a line; empty on CPUs."""
        if self.platform == "cpu":
            return []
        each = " each" if self.engines > 1 else ""
        spread = f"{' of one node' if self.tensor_parallel > 1 else ''}, tensor parallel {self.tensor_parallel}"
        also = "".join(f", {amount:g} {name}" for name, amount in self.engine_resources.items())
        return [
            f"learner: {_gpus(self.learner_gpus)}" if self.learners == 1 else f"{self.learners} learners: {_gpus(self.learner_gpus)} each",
            f"{self.engines} engine{'s' if self.engines > 1 else ''}: {_gpus(self.engine_gpus)}{each}{spread}{also}",
        ]


def placement_of(config: RunConfig, machine: Machine) -> Placement:
    """The placement of a config whose platform is chosen.

    What the config leaves open are whole GPUs, unless the run starts its own Ray on a machine with a single one: then the learner has half
    of it, and the engines the other half between them.
    """
    assert config.platform != "auto", "the platform is chosen where a config is read"
    resources = config.resources
    learner_gpus, engine_gpus = resources.learner_gpus, resources.engine_gpus
    alone = machine.gpus == 1 and resources.ray_address is None and config.engine.gpus == 1 and resources.learners == 1
    if config.platform == "cpu":
        learner_gpus = engine_gpus = 0.0
    elif alone and learner_gpus is None and engine_gpus is None:
        learner_gpus, engine_gpus = 0.5, round(0.5 / resources.env_runners, 4)
    return Placement(
        config.platform,
        resources.ray_address,
        resources.cpus,
        resources.object_store_mb,
        resources.worker_niceness,
        resources.env_runners,
        resources.min_env_runners,
        resources.max_env_runners,
        learner_gpus=1.0 if learner_gpus is None else learner_gpus,
        engine_gpus=float(config.engine.gpus) if engine_gpus is None else engine_gpus,
        tensor_parallel=config.engine.gpus,
        engine_resources=resources.engine_resources,
        learners=resources.learners,
        trusted_network=resources.trusted_network,
        shared_folder=resources.shared_folder,
        send=resources.send,
        watch=resources.watch,
    )


def machine_problems(placement: Placement, machine: Machine) -> Iterator[str]:
    """Why a run that starts its own Ray cannot run on this machine."""
    if placement.ray_address is not None or placement.platform == "cpu":
        return
    if machine.gpus == 0:
        yield (
            "platform: gpu, but torch sees no GPU on this machine; choose --platform cpu, or name a cluster that has some in "
            "resources.ray_address"
        )
    elif not fits(placement, [float(machine.gpus)]):
        yield (
            f"resources: {'; '.join(placement.lines())}: this machine has {machine.gpus} GPU{'s' if machine.gpus > 1 else ''}; lower "
            f"{'learners, ' if placement.learners > 1 else ''}env_runners or engine.tensor_parallel, share GPUs with learner_gpus and "
            "engine_gpus below 1, or name a cluster in ray_address"
        )


def cluster_problem(placement: Placement, nodes: Sequence[float]) -> str | None:
    """Why a running cluster with so many GPUs on each node cannot hold a run, or None when it can."""
    if placement.platform == "cpu":
        return None
    if fits(placement, nodes):
        together = replace(placement, engines=0)
        apart = placement.learners > 1 and not placement.trusted_network and not any(fits(together, [gpus]) for gpus in nodes)
        return NOT_TRUSTED if apart else None
    where = f"the cluster at {placement.ray_address}" if placement.ray_address is not None else "the Ray started here"
    has = ", ".join(f"{gpus:g}" for gpus in nodes) or "none"
    return f"resources: {'; '.join(placement.lines())}: {where} has no room, GPUs by node: {has}"


def may_hold_engine(placement: Placement, resources: Mapping[str, float]) -> bool:
    """Whether a node of these resources, as Ray counts them, could hold an engine when nothing else is on it.

    Example: `may_hold_engine(Placement("cpu"), {"CPU": 4.0})`, and not with `engine_resources={"engine_slot": 1}`.
    """
    asked = {"CPU": 1.0, "GPU": placement.engine_gpus, **placement.engine_resources}
    return all(resources.get(name, 0.0) >= amount for name, amount in asked.items())


def fits(placement: Placement, nodes: Sequence[float]) -> bool:
    """Whether nodes with so many GPUs hold every learner and every engine: whole GPUs of one node, or a share of a single one.

    Example: one GPU holds a learner of 0.5 and one engine of 0.5, but not two engines of 0.6.
    """
    free = [[1.0] * int(gpus) for gpus in nodes]
    asked = sorted([*[placement.learner_gpus] * placement.learners, *[placement.engine_gpus] * placement.engines], reverse=True)
    return all(_take(free, gpus) for gpus in asked)


def _take(free: list[list[float]], gpus: float) -> bool:
    if gpus >= 1:
        for node in free:
            whole = [i for i, left in enumerate(node) if left == 1.0][: int(gpus)]
            if len(whole) == int(gpus):
                for i in whole:
                    node[i] = 0.0
                return True
        return False
    for node in free:
        for i, left in enumerate(node):
            if left + 1e-9 >= gpus:
                node[i] = left - gpus
                return True
    return False


def _gpus(count: float) -> str:
    return f"{count:g} of a GPU" if count < 1 else f"{count:g} GPU{'s' if count > 1 else ''}"
