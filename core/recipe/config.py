"""The config of a run: one TOML file, composed from the configs that each component owns.

    name = "quality-inspection"
    model = "nano"
    environment = "burnish/QualityInspection-v0"
    reward_function = "burnish/inspection-cost-v1"
    multi_turn_rollouts = true

is a whole recipe; every table below has defaults. Relative paths are relative to the folder that burnish is started in.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from burnish.envs.registry import ID_PATTERN
from burnish.recipe.checks import cross_problems, file_problems
from burnish.recipe.overrides import Override, parse_override, problem_lines, without_defaults
from burnish.rewards.config import RewardConfig
from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.config import EngineConfig
from burnish.rpc.address import Endpoint
from burnish.rpc.security import ClientSecurity
from burnish.trainer.learner.config import LearnerConfig
from burnish.trainer.phases.config import (
    PHASES,
    CPTConfig,
    EvaluationConfig,
    Phase,
    RFTPhaseConfig,
    SeedRange,
    SFTConfig,
    SupervisedConfig,
    TasksConfig,
    phase_optimizer,
)

MULTI_TURN_DEFAULT = 8

STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_MODULE = r"([^\s:]+|\S[^:\n]*\.py)"
"""A module's name, or the path of a `.py` file, which may hold spaces."""


class TlsConfig(BaseModel):
    """How a client makes sure of a service, and proves who it is: paths of PEM files.

    ca: the authority that signed the service's certificate; without it the system's authorities count. cert, key: this client's own
    (mutual TLS). server_name: the name in the service's certificate, when it is not the host of the address.
    """

    model_config = STRICT

    ca: str = ""
    cert: str = ""
    key: str = ""
    server_name: str = ""


class ServiceConfig(BaseModel):
    """A `[services.NAME]` table, referred to as `service:NAME`.

    tools: a module of `@tool` functions, verifier: a `module:name` made with `@verifier`, environment: an id, or a
    `module:namespace/Name-v0`, made with `kwargs`; a module also as the path of a `.py` file. burnish starts it as a process of its own and
    stops it with the run. address: where a service runs already: `host:port`, replicas as `host:port,host:port`, or `ray:NAME` for what
    `burnish deploy-verifier` runs. tls, and token_env or token_file: how to talk to that one. start_timeout_s: seconds until a service
    that burnish starts must listen. python: the interpreter that runs it, a path such as `.venv-judge/bin/python`, when the service needs
    other packages than the run has; burnish must be installed there, its base is enough.

    Example: `[services.verdicts]` with `verifier = "my_team.checks:verdict"`.
    """

    model_config = STRICT

    tools: str | None = Field(default=None, pattern=rf"^{_MODULE}(:[A-Za-z_]\w*)?$", description="a module, or the path of a .py file")
    verifier: str | None = Field(default=None, pattern=rf"^{_MODULE}:[A-Za-z_]\w*$", description="module:name, or path.py:name")
    environment: str | None = Field(
        default=None,
        pattern=rf"^({_MODULE}:)?[^\s:/]+/[^\s:/]+-v\d+$",
        description="namespace/Name-v0, module:namespace/Name-v0 or path.py:namespace/Name-v0",
    )
    kwargs: dict[str, Any] = {}
    python: str | None = Field(default=None, min_length=1, description="the path of an interpreter")
    address: str | None = Field(default=None, pattern=r"^[^\s?]+$", description="host:port, host:port,host:port or ray:NAME")
    tls: TlsConfig | None = None
    token_env: str = ""
    token_file: str = ""
    start_timeout_s: float = Field(default=60.0, gt=0)

    @model_validator(mode="after")
    def _one_kind(self) -> ServiceConfig:
        given = [key for key in ("tools", "verifier", "environment", "address") if getattr(self, key) is not None]
        if len(given) != 1:
            kinds = 'tools = "module", verifier = "module:name", environment = "namespace/Name-v0" and address = "host:port"'
            raise ValueError(f"needs exactly one of {kinds}, but has {' and '.join(given) or 'none'}")
        if self.kwargs and self.environment is None:
            raise ValueError("kwargs has no effect without environment; remove it")
        idle = [key for key in ("start_timeout_s", "python") if key in self.model_fields_set]
        if self.address is not None and idle:
            raise ValueError(f"{idle[0]} has no effect with address: that service runs already")
        guarded = [key for key in ("tls", "token_env", "token_file") if key in self.model_fields_set]
        if self.address is None and guarded:
            raise ValueError(f"{guarded[0]} has no effect without address: a service that burnish starts listens on this machine only")
        if self.address is not None:
            Endpoint.parse(self.full_address)
        return self

    @property
    def kind(self) -> Literal["tools", "verifier", "environment"] | None:
        """What burnish starts; None with an address."""
        if self.tools is not None:
            return "tools"
        return "verifier" if self.verifier is not None else "environment" if self.environment is not None else None

    @property
    def target(self) -> str:
        """What is served: a module, a function in one, or an environment; empty with an address."""
        return self.tools or self.verifier or self.environment or ""

    @property
    def full_address(self) -> str:
        """The address with how to talk to it, paths absolute: what clients in any process take."""
        assert self.address is not None
        files = self.tls.model_dump() if self.tls is not None else {}
        security = ClientSecurity(**files, tls=self.tls is not None, token_env=self.token_env, token_file=self.token_file).absolute()
        return str(dataclasses.replace(Endpoint.parse(self.address), security=security))


class ResourcesConfig(BaseModel):
    """The `[resources]` table: the Ray cluster that the run uses.

    env_runners: processes that generate episodes, each with an engine of its own. ray_address: a cluster that runs already ("auto" finds
    it); None starts one on this machine, with `cpus` CPUs (None: all) and an object store of `object_store_mb`.
    """

    model_config = STRICT

    env_runners: int = Field(default=1, ge=1)
    ray_address: str | None = None
    cpus: int | None = Field(default=None, ge=1)
    object_store_mb: int = Field(default=1024, ge=128)

    @model_validator(mode="after")
    def _local_or_cluster(self) -> ResourcesConfig:
        idle = [key for key in ("cpus", "object_store_mb") if key in self.model_fields_set]
        if self.ray_address is not None and idle:
            raise ValueError(f"{' and '.join(idle)} has no effect with ray_address: the running cluster has its own; remove one of them")
        return self


class RunConfig(BaseModel):
    """A whole recipe.

    name: of the run. model: a folder, a name under `models/`, or a source that `burnish models import` takes. environment: an id of
    `burnish env list`, or `module:namespace/Name-v0` for one that importing `module` registers with Gymnasium; environment_args go to
    its maker, where a string `service:NAME` becomes the address of that service. environment_weight: what the environment's own reward
    counts in the total. reward_function: ids of reward plug-ins, each with weight 1; `[[rewards]]` is the long form. success: the part
    of the reward that is reported as success. multi_turn_rollouts: whether the policy speaks more than once per episode. train_seeds:
    the range that training tasks come from; tasks: files that they come from instead. keep_checkpoints: how many stay on disk, beside
    the last of each phase. plugins: Python files that register environments and rewards. seed: of everything random.
    """

    model_config = STRICT

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description='made of letters, digits, ".", "_" and "-"')
    model: str = Field(min_length=1, description="a folder, a name under models/, or a source that `burnish models import` takes")
    environment: str = Field(description='an id of `burnish env list`, for example "burnish/Arithmetic-v0"')
    environment_args: dict[str, Any] = {}
    environment_weight: float = 1.0
    reward_function: tuple[str, ...] = ()
    rewards: tuple[RewardConfig, ...] = ()
    success: str = "env"
    multi_turn_rollouts: bool = False
    seed: int = Field(default=0, ge=0, lt=2**31)
    train_seeds: SeedRange = (0, 1_000_000_000)
    keep_checkpoints: int = Field(default=2, ge=1)
    plugins: tuple[str, ...] = ()
    services: dict[str, ServiceConfig] = {}
    tasks: TasksConfig | None = None
    cpt: CPTConfig | None = None
    sft: SFTConfig | None = None
    rft: RFTPhaseConfig | None = None
    rollout: RolloutConfig = RolloutConfig()
    engine: EngineConfig = EngineConfig()
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    resources: ResourcesConfig = ResourcesConfig()

    @field_validator("reward_function", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("environment")
    @classmethod
    def _environment_id(cls, value: str) -> str:
        if not ID_PATTERN.match(value.rpartition(":")[2]):
            raise ValueError(f"{value!r} must read namespace/Name-v0 or module:namespace/Name-v0, for example 'burnish/Arithmetic-v0'")
        return value

    @field_validator("reward_function")
    @classmethod
    def _reward_ids(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        bad = [id for id in value if not ID_PATTERN.match(id)]
        if bad:
            raise ValueError(f"{bad[0]!r} must read namespace/name-v1, for example 'my-team/reward-v1'")
        return value

    @model_validator(mode="after")
    def _complete_and_possible(self) -> RunConfig:
        """Fill in what follows from other answers, then refuse what contradicts itself."""
        if not self.phases:  # object.__setattr__: frozen for everyone else
            object.__setattr__(self, "rft", RFTPhaseConfig())
        if self.multi_turn_rollouts and "max_turns" not in self.rollout.model_fields_set:
            object.__setattr__(self, "rollout", self.rollout.model_copy(update={"max_turns": MULTI_TURN_DEFAULT}))
        problems = cross_problems(self)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def scorers(self) -> tuple[RewardConfig, ...]:
        """Every scorer of the rubric, the short form written out."""
        return (*(RewardConfig(use=id) for id in self.reward_function), *self.rewards)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that run, in order."""
        return tuple(phase for phase in PHASES if getattr(self, phase) is not None)

    def phase(self, phase: Phase) -> SupervisedConfig | RFTPhaseConfig:
        """The table of a phase that runs."""
        table = getattr(self, phase)
        assert isinstance(table, SupervisedConfig | RFTPhaseConfig), f"phase {phase} is not in this recipe"
        return table

    def learner_for(self, phase: Phase) -> LearnerConfig:
        """The learner's config in one phase: `[learner]` with the phase's learning rate and schedule."""
        return self.learner.model_copy(update={"optimizer": phase_optimizer(self.learner.optimizer, self.phase(phase))})


def load_config(path: str | Path, overrides: Sequence[str] = (), plugins: Sequence[str | Path] = ()) -> RunConfig:
    """Read a recipe (`*.toml`), or the resolved `config.json` of a run folder, and apply overrides such as `"rft.lr=1e-5"`.

    plugins: files to load beside those that the recipe names.

    Raises ValueError with one line per problem, each naming the file or override, the dotted field, and what is wrong with it.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
    parsed = [parse_override(text) for text in overrides]
    data = _read(file)
    for override in parsed:
        override.apply(data, str(path))
    if plugins:
        data["plugins"] = [*data.get("plugins", []), *(str(plugin) for plugin in plugins)]
    return config_from_data(data, str(path), parsed)


def config_from_data(data: dict[str, Any], source: str = "config", overrides: Sequence[Override] = ()) -> RunConfig:
    """A checked config from plain data, as TOML gives it: types are exact, nothing is coerced. Raises ValueError like `load_config`."""
    try:
        text = json.dumps(data, default=str)  # TOML's dates become strings, which no field takes
        config = RunConfig.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError("\n".join(problem_lines(error, RunConfig, source, overrides))) from error
    missing = file_problems(config)
    if missing:
        raise ValueError("\n".join(f"{source}: {line}" for line in missing))
    return config


def resolved(config: RunConfig) -> dict[str, Any]:
    """The config with every default written out, as plain JSON data; `load_config` reads it back to an equal config."""
    return config.model_dump(mode="json")


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        near = sorted(str(other) for other in file.parent.glob("*.toml")) if file.parent.is_dir() else []
        raise ValueError(f"recipe {file} does not exist" + (f"; {file.parent} has {', '.join(near)}" if near else ""))
    try:
        text = file.read_bytes().decode("utf-8-sig")  # an editor on Windows begins a file with a byte-order mark
        if file.suffix == ".json":
            return without_defaults(json.loads(text), RunConfig)
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file}: not valid TOML: {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not valid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text: byte {error.start} cannot be read; save it as UTF-8") from error
