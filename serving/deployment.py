"""A deployment file, and what follows from it: which versions of which models run; who is answered by which stands in `routes.py`.

    [service]
    port = 8000
    keys_file = "keys.toml"

    [models.inspector.versions.v1]
    model = "runs/inspection-20260101-120000"
    weight = 95

    [models.inspector.versions.v2]
    model = "runs/inspection-20260201-120000"
    weight = 5

The file may be edited while it is deployed: `Deployer.turn` makes what runs follow it. Nothing here knows Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..envs.pydantic_words import first_error
from ..envs.toml_text import as_json, parse_toml
from .canary.config import JudgeTable
from .canary.rollbacks import Rollbacks
from .canary.watch import Judgement
from .config import ServingConfig, small_text
from .routes import Routes, VersionShare, names, served_name

MAX_BYTES: Final = 1_000_000
MOST_ADAPTERS: Final = 64
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
STRICT: Final = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AutoscalingTable(BaseModel):
    """`[models.NAME.versions.VERSION.autoscaling]`: replicas as the load asks for them, by Ray Serve. min_replicas: always there; an engine
    takes too long to start for none to be. target_ongoing_requests: how many each is meant to answer at a time, None as many as its engine
    does; with more, replicas are added, with fewer, they end when they have answered what they have. upscale_delay_s, downscale_delay_s:
    how long that must have been so."""

    model_config = STRICT

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(ge=1)
    target_ongoing_requests: float | None = Field(default=None, gt=0)
    upscale_delay_s: float = Field(default=30.0, ge=0)
    downscale_delay_s: float = Field(default=600.0, ge=0)

    @model_validator(mode="after")
    def _has_room(self) -> AutoscalingTable:
        if self.max_replicas <= self.min_replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas} and min_replicas {self.min_replicas}, so that nothing follows the load; give more or "
                "replicas instead of the table"
            )
        return self


class VersionTable(BaseModel):
    """`[models.NAME.versions.VERSION]`. model: a run, a checkpoint, a model folder, or a name under models/. weight: the share of callers
    that it answers, among its model's; one of weight 0 runs, and answers who asks for it by name. shadow: the share of its model's callers
    whose requests it gets a copy of; its weight is then 0. replicas: how many of it; autoscaling: as many as the load asks for. adapters:
    folders of low-rank adapters by name, which the same engines serve (`serving.adapters`). forced: why a package is served whose verdict
    does not speak for it. judge: makes it a canary, which is rolled back when it is worse."""

    model_config = STRICT

    model: str = Field(min_length=1)
    weight: float = Field(default=1.0, ge=0)
    shadow: float = Field(default=0.0, ge=0, le=1)
    replicas: int = Field(default=1, ge=1)
    autoscaling: AutoscalingTable | None = None
    adapters: dict[Name, Annotated[str, Field(min_length=1)]] = Field(default={}, max_length=MOST_ADAPTERS)
    forced: str = Field(default="", max_length=1000)
    judge: JudgeTable | None = None

    @model_validator(mode="after")  # one before would be given Python's values, where lists are no tuples
    def _shadows_answer_nobody(self) -> VersionTable:
        if self.shadow:
            if "weight" in self.model_fields_set and self.weight:
                raise ValueError("a version with shadow answers nobody but who asks for it by name: remove its weight, or shadow")
            object.__setattr__(self, "weight", 0.0)  # frozen for everyone else
        return self

    @model_validator(mode="after")
    def _counted_once(self) -> VersionTable:
        if self.autoscaling is not None and "replicas" in self.model_fields_set:
            raise ValueError("replicas has no effect beside autoscaling, which has min_replicas; remove it")
        if self.judge is not None and self.shadow:
            raise ValueError("judge has no effect on a version with shadow, which answers nobody; remove one of them")
        return self

    @property
    def most_engines(self) -> int:
        return self.autoscaling.max_replicas if self.autoscaling is not None else self.replicas

    @property
    def engines(self) -> dict[str, Any]:
        """What engines were started with: it cannot change while they run."""
        return self.model_dump(exclude={"weight", "shadow", "forced", "judge"})


class ModelTable(BaseModel):
    """`[models.NAME]`: what clients ask for. versions: in the order in which they share its callers."""

    model_config = STRICT

    versions: dict[Name, VersionTable] = Field(min_length=1)

    @model_validator(mode="after")
    def _somebody_answers(self) -> ModelTable:
        if not any(version.weight for version in self.versions.values()):
            raise ValueError("every version has weight 0, so that none answers; give one of them a weight")
        for version, table in self.versions.items():
            if both := sorted(table.adapters.keys() & self.versions.keys()):
                raise ValueError(
                    f"versions.{version}.adapters.{both[0]}: a version has that name, and both would be asked for as MODEL:{both[0]}"
                )
        judged = [name for name, version in self.versions.items() if version.judge is not None]
        if judged and not any(version.weight for version in self.versions.values() if version.judge is None):
            raise ValueError(f"{judged[0]} has a judge and nothing to be compared with; give a version without one a weight")
        return self


class Deployment(BaseModel):
    """A deployment file. service: the options of `ServingConfig`, for all of it."""

    model_config = STRICT

    service: ServingConfig = ServingConfig()
    models: dict[Name, ModelTable] = Field(min_length=1)

    @model_validator(mode="after")
    def _named_once(self) -> Deployment:
        if self.service.name is not None:
            raise ValueError("service.name: models are named by their tables, [models.NAME]; remove it")
        return self

    def served(self) -> dict[str, VersionTable]:
        """Every version by the name that it is served under. Example: `{"inspector:v1": …, "inspector:v2": …}`."""
        return {served_name(name, version): table for name, model in self.models.items() for version, table in model.versions.items()}


def read_deployment(file: Path) -> Deployment:
    """Raises ValueError, one line, when a file cannot be read or is no deployment."""
    return parse_deployment(small_text(file, str(file), MAX_BYTES), str(file))


def parse_deployment(text: str, file: str) -> Deployment:
    """The deployment that a text of TOML describes. Raises ValueError as `read_deployment` does, naming the file."""
    try:
        return Deployment.model_validate_json(as_json(parse_toml(text)), strict=True)
    except ValidationError as error:
        raise ValueError(f"{file}: {first_error(error, Deployment)}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not TOML: {error}") from None


State = Literal["starting", "ready", "failed"]

FIRST_WAIT_S: Final = 0.25
LONGEST_WAIT_S: Final = 10.0
LASTING_S: Final = 300.0
"""Seconds after which a fault that comes again and again is one that does not pass."""


class Faults:
    """What goes wrong while a file is followed: said once, and tried again after longer and longer, until it has lasted `lasting_s`.

    Example: `wait(faults.wait_s)`, then `faults.over()` where all went well, or `if faults.lasting(error): stop()`.
    """

    def __init__(self, say: Callable[[str], None], lasting_s: float = LASTING_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._lasting_s, self._clock = say, lasting_s, clock
        self._since: float | None = None
        self._said = ""
        self.wait_s = FIRST_WAIT_S

    def lasting(self, error: Exception) -> bool:
        """Whether this has gone on for too long; else it is said, unless it was the last time too."""
        now = self._clock()
        self._since = now if self._since is None else self._since
        if now - self._since >= self._lasting_s:
            return True
        line = said_of(error)
        if line != self._said:
            self._said = line
            self._say(f"the deployment cannot be followed now, and is tried again: {line}")
        self.wait_s = min(2 * self.wait_s, LONGEST_WAIT_S)
        return False

    def over(self) -> None:
        """All went well."""
        if self._since is not None:
            self._say("the deployment is followed again")
        self._since, self._said, self.wait_s = None, "", FIRST_WAIT_S


def said_of(error: BaseException) -> str:
    """What an error says, in one line."""
    return f"{type(error).__name__}: {last_line(str(error))}"


def last_line(text: str) -> str:
    """The last line of a text that says something: of a traceback, what was raised."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


class VersionFleet(Protocol):
    """What runs versions of models, and sends callers to them."""

    def start(self, name: str, table: VersionTable) -> None:
        """Begin to start a version; returns at once."""

    def state(self, name: str) -> tuple[State, str]:
        """How far it is, and what went wrong when it failed."""

    def stop(self, name: str) -> None:
        """Begin to end a version, once it has answered what it has; returns at once."""

    def route(self, routes: Routes, started: bool) -> None:
        """Send callers this way from now on. Called again and again, for whoever forgot. started: whether every model has been there."""

    def judgements(self) -> Mapping[str, Judgement]:
        """Where canaries stood when callers were last sent some way, by their served names."""


class Deployer:
    """Makes what runs follow a deployment file. say: called with a line for each thing that happens.

    A model's callers go the new way when every version with a weight is there; until then, and when one does not start, they go the old
    one. A version ends when the file no longer has it and nobody is sent to it. rollbacks: canaries that nobody is sent to for as long as
    the file has a judge for them.
    """

    def __init__(self, fleet: VersionFleet, say: Callable[[str], None], rollbacks: Rollbacks | None = None) -> None:
        self._fleet, self._say, self._rollbacks = fleet, say, rollbacks or Rollbacks()
        self._started: dict[str, VersionTable] = {}
        self._told = set[str]()
        self._whole = False
        self.routes: Routes = {}

    def check(self, deployment: Deployment, running: Deployment | None) -> None:
        """Raise ValueError for an edit that cannot be followed while it runs."""
        if running is not None and deployment.service != running.service:
            raise ValueError("[service] changed, which takes effect at the next start only; models and weights may change while it runs")
        for name, table in deployment.served().items():
            before = self._started.get(name)
            if before is not None and table.judge is not None and table.judge != before.judge:
                raise ValueError(f"{name} runs with another judge, or none; take the judge out, or call it another version")
            if before is None or before.engines == table.engines:
                continue
            state, why = self._fleet.state(name)
            was = f"{before.replicas} x {before.model}"
            now = f"did not start with {was} ({last_line(why)})" if state == "failed" else f"runs {was}"
            changed = next(key for key, value in table.engines.items() if value != before.engines[key])
            raise ValueError(f"{name} {now}, not with this {changed}; call what is another model, or more of it, another version")

    def turn(self, deployment: Deployment) -> None:
        """Do what can be done now. Call it a few times a second."""
        wanted = deployment.served()
        for name, table in wanted.items():
            if name not in self._started:
                self._say(f"{name}: starting {table.model}{f', forced: {table.forced}' if table.forced else ''}")
                self._fleet.start(name, table)
                self._started[name] = table
                if self._is_out(name, table):
                    said = f"{name} was rolled back before ({self._rollbacks.file}), and answers who asks for it by name"
                    self._say(f"{said}; call it another version, or take its judge out")
        self._tell_failures(wanted)
        routes = {model: self._shares(model, table) for model, table in deployment.models.items()}
        routes = {model: shares for model, shares in routes.items() if shares}
        self._whole = self._whole or routes.keys() == deployment.models.keys()
        self._fleet.route(routes, self._whole)
        for judgement in self._fleet.judgements().values():
            self._hear(judgement, wanted)
        for model, shares in routes.items():
            if self.routes.get(model) != shares:
                total = sum(share.weight for share in shares)
                self._say(f"{model}: " + ", ".join(_share_in_words(share, total) for share in shares))
        self.routes = routes
        routed = set(names(routes))
        for name in [name for name in self._started if name not in wanted and name not in routed]:
            self._say(f"{name}: ending")
            del self._started[name]
            self._told.discard(name)
            self._fleet.stop(name)

    def ready(self, deployment: Deployment) -> bool:
        """Whether every model of the file is answered as it says. Raises RuntimeError when a version that it takes did not start."""
        for name in deployment.served():
            state, why = self._fleet.state(name)
            if state == "failed":
                raise RuntimeError(f"{name} did not start: {why}")
            if state != "ready":
                return False
        return self.routes.keys() == deployment.models.keys()

    def _shares(self, model: str, table: ModelTable) -> tuple[VersionShare, ...]:
        here = {version: self._fleet.state(served_name(model, version))[0] == "ready" for version in table.versions}
        out = {version for version, one in table.versions.items() if self._is_out(served_name(model, version), one)}
        weights = {version: 0.0 if version in out else one.weight for version, one in table.versions.items()}
        if all(here[version] for version, weight in weights.items() if weight):
            found = [(version, one) for version, one in table.versions.items() if here[version]]
            return tuple(
                VersionShare(name, weights[name], tuple(one.adapters), one.shadow, one.judge, one.most_engines) for name, one in found
            )
        return self.routes.get(model, ())

    def _is_out(self, name: str, table: VersionTable) -> bool:
        return table.judge is not None and self._rollbacks.has(name, table.model)

    def _hear(self, judgement: Judgement, wanted: Mapping[str, VersionTable]) -> None:
        """Say what a judge found that nobody was told, and have a canary stay out that has to."""
        table, told = wanted.get(judgement.canary), f"{judgement.canary} {judgement.state}"
        if judgement.state == "judging":
            self._told.discard(f"{judgement.canary} off")  # it was told of an earlier trial
        elif table is not None and told not in self._told:
            self._told.add(told)
            self._say(judgement.line)
            if judgement.state == "rolled back":
                self._rollbacks.add(judgement.canary, table.model, judgement)

    def _tell_failures(self, wanted: Sequence[str] | Mapping[str, VersionTable]) -> None:
        for name in wanted:
            state, why = self._fleet.state(name)
            if state == "failed" and name not in self._told:
                self._told.add(name)
                self._say(f"{name} did not start, and its model is answered as before: {why}")


def _share_in_words(share: VersionShare, total: float) -> str:
    return f"{share.version} shadows {share.shadow:.1%}" if share.shadow else f"{share.version} {share.weight / total:.1%}"
