"""What a run that is only looked at is worked with again: the pieces of its recipe, from a config that may be anybody's.

A run folder names code, as a recipe does: plug-ins, modules, services, functions among an environment's arguments. Whoever replays a run
runs that code. What lies inside the folder itself is never run, so that a folder from elsewhere brings none along; and no address is
called, and no variable or file of secrets read, that only the folder names, unless whoever replays it says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import all_suffixes
from itertools import chain
from pathlib import Path
from typing import Any

from burnish.recipe.config import RunConfig
from burnish.recipe.load import config_as_recorded
from burnish.recipe.resolve import EnvironmentSpec, environment_of
from burnish.recipe.services import SERVICE, ServiceConfig, service_references
from burnish.rewards.config import RewardConfig
from burnish.rollout.worker import BlendedEnvironment
from burnish.trainer.phases.rft import RFTPhaseConfig


@dataclass(frozen=True, slots=True)
class RecordedSetup:
    """How a run played and judged its episodes. Addresses of services stand as `service:NAME`. step_timeout_s: for one call of an
    environment. Example: `recorded_setup(Path("runs/demo-20260101-000000")).environment.id`."""

    environment: EnvironmentSpec
    blended: tuple[BlendedEnvironment, ...]
    plugins: tuple[str, ...]
    services: Mapping[str, ServiceConfig]
    rewards: tuple[RewardConfig, ...]
    step_timeout_s: float


_ADDRESS = re.compile(r"\A[^\s/]*:\d{1,5}(\Z|[,?])|\Aray:|://|[?&]\w+=")
"""What clients take for one: `host:port`, replicas, `ray:NAME`, a URL, or what follows an address and says how to talk there."""
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_SECRETS = re.compile(r"(_env|token_file|key_file)\Z", re.IGNORECASE)
"""Arguments that name an environment variable, or a file, whose content is sent with calls."""


def recorded_setup(folder: Path, outward: bool = False) -> RecordedSetup:
    """Those pieces of the recipe in a run folder; its data, its model and its GPUs need not be here.

    outward: whether the folder may name addresses, and variables and files that hold secrets.

    Raises ValueError when `config.json` is missing or no config, or names code that lies in the folder, or an address or a secret that it
    may not.
    """
    config, home = config_as_recorded(folder), folder.resolve()
    for field, place in _code(config):
        if "\0" not in place and Path(place).resolve().is_relative_to(home):
            raise ValueError(f"{folder}: {field} names {place}, which lies in the run folder itself; code that came with a run is not run")
    leads = None if outward else next(_outward(config), None)
    if leads is not None:
        field, text, meaning = leads
        raise ValueError(f"{folder}: {field} names {meaning}, {text!r:.80}, which a run folder may not; --outward allows it")
    blend = next((table.blend for table in config.tables if isinstance(table, RFTPhaseConfig)), ())
    return RecordedSetup(
        environment_of(config),
        tuple(BlendedEnvironment(one.called, one.environment, one.environment_args) for one in blend),
        config.plugins,
        config.services,
        config.scorers,
        config.rollout.step_timeout_s,
    )


def _code(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Every file that would be run, with the field that names it; a dotted module is looked for where burnish is started."""
    yield from (("plugins", plugin) for plugin in config.plugins)
    named = {"environment": config.environment}
    named |= {f"services.{name}.{service.kind}": service.target for name, service in config.services.items()}
    for field, target in named.items():
        yield from ((field, file) for file in _files_of(target if target.endswith(".py") else target.rpartition(":")[0]))
    for field, _, text in _arguments(config):  # any of them may be resolved: module:function, file.py:function, module:Env-v0
        pieces = dict.fromkeys((text, text.partition(":")[0], text.rpartition(":")[0]))
        yield from ((field, file) for piece in pieces for file in (*_files_of(piece), *([piece] if "/" in piece else [])))
    yield from ((f"services.{name}.python", service.python) for name, service in config.services.items() if service.python)


def _arguments(config: RunConfig) -> Iterator[tuple[str, str, str]]:
    """Every text that environments and services are made with, however deep: the field that it stands in, its key there, and itself."""
    blends = (table.blend for table in config.tables if isinstance(table, RFTPhaseConfig))
    given: list[tuple[str, str, Any]] = [("environment_args", "", config.environment_args)]
    given += [(f"blend {one.called}", "", one.environment_args) for one in chain(*blends)]
    given += [(f"services.{name}.kwargs", "", service.kwargs) for name, service in config.services.items()]
    while given:
        field, key, value = given.pop()
        if isinstance(value, str):
            yield field, key, value
        elif isinstance(value, Mapping):
            given += [pair for name, item in value.items() for pair in ((f"{field}.{name}", name, item), (field, "", name))]
        elif isinstance(value, list | tuple):
            given += [(field, key, item) for item in value]


def _outward(config: RunConfig) -> Iterator[tuple[str, str, str]]:
    """Every address, and every place of a secret, that an environment would be given: its field, itself, and what it is."""
    used = set[str]()
    for field, key, text in _arguments(config):
        if text.startswith(SERVICE):
            used.update(service_references(text))
            continue
        if _SECRETS.search(key):
            yield field, text, "a variable or file that holds a secret"
        elif _ADDRESS.search(text):
            yield field, text, "an address"
    for name, service in config.services.items():
        if name in used and service.address is not None:
            yield f"services.{name}.address", service.address, "an address"


def _files_of(name: str) -> Iterator[str]:
    """What a file's path or a dotted module would be loaded from."""
    return iter([name]) if name.endswith(".py") else _module_files(name)


def _module_files(module: str) -> Iterator[str]:
    """What a dotted module and its parents would be loaded from in the folder burnish is started in; nothing is imported to find it."""
    parts = module.split(".") if _DOTTED.fullmatch(module) else []
    for end in range(1, len(parts) + 1):
        place = Path(*parts[:end])
        yield from (file for file in (str(place), *(f"{place}{suffix}" for suffix in all_suffixes())) if Path(file).exists())
