"""What a recipe says about the machines that it runs on."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ResourcesConfig(BaseModel):
    """The `[resources]` table: the Ray cluster that the run uses, and what each role takes of it. GPUs are for platform gpu only.

    env_runners: processes that generate episodes, each with an engine of its own, at the start of the run. min_env_runners: how many of
    them a run goes on with where others are lost with their nodes; left out, it waits for those. max_env_runners: how many it comes to
    have where nodes have room for more of them, those that join the cluster included. ray_address: a cluster that runs already ("auto"
    finds it); left out, one is started on this machine and ends with the run. cpus: of the one that is started, all when left out.
    object_store_mb: shared memory of the one that is started; weights pass through it.
    engine_resources: further Ray resources that each engine takes. On nodes started with `--resources='{"engine_slot": 2}'`,
    `engine_resources = { engine_slot = 1 }` keeps engines to two a node, and to these nodes.
    worker_niceness: of the processes on the cluster that is started, from 0 to 19; beside other work on the machine, a lower one gets them
    more of it. Left out, it is Ray's own, 15, or what the environment variable RAY_worker_niceness says.
    shared_folder: whether every node has the folder that the run is started in, under the same path. Where it is false, engines on other
    nodes are sent the model, plug-ins and modules, and the learners are on the node of the run. send: files and folders in that folder
    that environments and rewards read beside them, by their paths from there; they are sent, too.
    watch: deployment files (`.toml`) and addresses (`http://host:port` of a chat service, `host:port` of a verifier, tools or an
    environment) that the console in the dashboard of the cluster that is started shows, with their health, beside the recipe's services.

    learners: processes that share the policy, each with a slice of weights and optimizer, and on GPUs with one of its own. A group of a
    batch is computed by one of them, so more of them than groups per step are of no use. trusted_network: that only the nodes themselves
    reach each other. Learners on more than one node meet over it without authentication or encryption, which gloo and nccl do not have; a
    run whose learners are not all on one node is refused unless this says so.
    learner_gpus: the share of a GPU that the learner takes, a whole one when left out. engine_gpus: the share that each engine
    takes; left out, as many whole GPUs as `engine.tensor_parallel`, all on one node. Where both are left out and this machine has a single
    GPU, they share it, one half for the learner. Shares below 1 put learner and engines on one GPU, where an engine takes nine tenths of
    its share of the memory unless `engine.gpu_memory_fraction` says otherwise.
    """

    model_config = STRICT

    env_runners: int = Field(default=1, ge=1)
    min_env_runners: int | None = Field(default=None, ge=1)
    max_env_runners: int | None = Field(default=None, ge=1)
    ray_address: str | None = None
    cpus: int | None = Field(default=None, ge=1)
    object_store_mb: int = Field(default=1024, ge=128)
    worker_niceness: int | None = Field(default=None, ge=0, le=19)
    engine_resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    learners: int = Field(default=1, ge=1)
    trusted_network: bool = False
    learner_gpus: float | None = Field(default=None, gt=0, le=1)
    engine_gpus: float | None = Field(default=None, gt=0, le=1)
    shared_folder: bool = True
    send: tuple[str, ...] = ()
    watch: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _local_or_cluster(self) -> ResourcesConfig:
        idle = [key for key in ("cpus", "object_store_mb", "worker_niceness", "watch") if key in self.model_fields_set]
        if self.ray_address is not None and idle:
            raise ValueError(f"{' and '.join(idle)} has no effect with ray_address: the running cluster has its own; remove one of them")
        for key in ("min_env_runners", "max_env_runners"):
            if self.ray_address is None and getattr(self, key) is not None:
                raise ValueError(
                    f"{key} has no effect without ray_address: no node joins or leaves a cluster that is started here; remove it"
                )
        least, most = self.min_env_runners or self.env_runners, self.max_env_runners or self.env_runners
        if not least <= self.env_runners <= most:
            raise ValueError(f"env_runners = {self.env_runners} is not between min_env_runners and max_env_runners, {least} and {most}")
        if self.ray_address is None and self.engine_resources:
            raise ValueError("engine_resources: a cluster that is started here offers none; say which cluster does in ray_address")
        if not self.shared_folder and self.ray_address is None:
            raise ValueError("shared_folder has no effect without ray_address: a cluster that is started here is this machine; remove it")
        if self.send and self.shared_folder:
            raise ValueError("send has no effect where every node has the folder; remove it, or write shared_folder = false")
        if self.trusted_network and not self.shared_folder:
            raise ValueError("trusted_network has no effect with shared_folder = false: all learners are on the node of the run; remove it")
        if self.trusted_network and (self.learners == 1 or self.ray_address is None):
            alone = "a single learner meets nobody" if self.learners == 1 else "without ray_address all learners are on this machine"
            raise ValueError(f"trusted_network has no effect: {alone}; remove it")
        if self.learners > 1 and self.learner_gpus is not None and self.learner_gpus < 1:
            raise ValueError(f"learner_gpus = {self.learner_gpus:g} does not fit learners = {self.learners}: each needs a GPU of its own")
        return self
