"""What a run that is only looked at is worked with again: the pieces of its recipe, from a config that may be anybody's.

A run folder names code, as a recipe does: plug-ins, modules, services, functions among an environment's arguments. Names that are
registered, by burnish or by an installed package, are resolved, and what the worlds that burnish ships define; what else a folder names is
imported or run only for whoever says that the run is his own, or names the plug-in himself. What lies inside the folder is never run, so
that a folder from elsewhere brings none along; and no address is called, and no variable or file of secrets read, that only the folder
names, unless whoever replays it says so.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import all_suffixes
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from types import FunctionType
from typing import Any

from burnish.envs.named import names_code
from burnish.guardrails.policy import load_policy
from burnish.recipe.config import RunConfig
from burnish.recipe.load import config_as_recorded, load_config
from burnish.recipe.resolve import EnvironmentSpec, environment_of
from burnish.recipe.services import SERVICE, ServiceConfig, service_references
from burnish.rewards.config import RewardConfig
from burnish.rollout.worker import BlendedEnvironment
from burnish.rpc.urls import shown_value
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
_ADDRESSES = (SERVICE, "ray:")
"""What begins as these is an address, and judged as one."""
_MODULES = ("plugins", "services tools", "services verifier", "services python")
"""Fields whose every value is code."""
_IDS = ("environment", "services environment")
"""Fields that hold an id, and with a colon the module that registers it."""
_WORLDS = ("burnish.envs.builtin.", "burnish.rewards.builtin.")
"""Where the worlds that burnish ships are; their tools, verdicts and texts are made to be named in recipes."""
_CALLED = ("environment_args", "rewards", "services", "rft", "phases")
"""Fields under which an address would be called."""
NOT_RUN = "names {!r:.80}, code by its module or file and not by a registered id; it is run with --trust only, when the run is your own"


def recorded_setup(folder: Path, outward: bool = False, trust: bool = False, plugins: Collection[Path] = ()) -> RecordedSetup:
    """Those pieces of the recipe in a run folder; its data, its model and its GPUs need not be here.

    outward: whether the folder may name addresses, and variables and files that hold secrets. trust: whether it may name code that nobody
    registered. plugins: files that whoever replays it loads anyway.

    Raises ValueError when `config.json` is missing or no config, or names code that lies in the folder, or code, an address or a secret
    that it may not.
    """
    config, home = config_as_recorded(folder), folder.resolve()
    for field, place in _code(config):
        if "\0" not in place and Path(place).resolve().is_relative_to(home):
            raise ValueError(f"{folder}: {field} names {place}, which lies in the run folder itself; code that came with a run is not run")
    own = None if trust else next(_own_code(_played(config), plugins), None)
    if own is not None:
        raise ValueError(f"{folder}: {own[0]} {NOT_RUN.format(own[1])}")
    leads = None if outward else next(_outward(config), None)
    if leads is not None:
        field, text, meaning = leads
        raise ValueError(f"{folder}: {field} names {meaning}, {shown_value(text, field)}, which a run folder may not; --outward allows it")
    blend = next((table.blend for table in config.tables if isinstance(table, RFTPhaseConfig)), ())
    return RecordedSetup(
        environment_of(config),
        tuple(BlendedEnvironment(one.called, one.environment, one.environment_args) for one in blend),
        config.plugins,
        config.services,
        config.scorers,
        config.rollout.step_timeout_s,
    )


def load_recipe(
    recipe: Path, overrides: Sequence[str], plugins: Sequence[Path], trust: bool, run: Path | None = None, platform: str | None = None
) -> RunConfig:
    """A recipe that a command is given (see `load_config`). One that lies in a run folder is as much that folder's word as its
    `config.json` is: it names registered code only, and neither an address nor where a secret is, nor does a guardrail policy that it
    names, unless trust says that the run is one's own.

    run: the run that the command is about. What `overrides` and `plugins` name, whoever gives the command names. Raises ValueError like
    `load_config`, and when the recipe names what it may not.
    """
    config = load_config(recipe, overrides, plugins, platform)
    if trust or not _of_a_run(recipe.resolve(), run):
        return config
    named = [(field, text) for field, text in _everything(config) if not any(text in one for one in overrides)]
    own = next(_own_code(named, plugins), None)
    if own is not None:
        raise ValueError(f"{recipe}: {own[0]} {NOT_RUN.format(own[1])}")
    called = [(field, text) for field, text in named if field.startswith(_CALLED)]
    for field, text in chain(called, *(_of_policy(field, text) for field, text in called)):
        if _SECRETS.search(field) or _ADDRESS.search(text):
            what = "a variable or file that holds a secret" if _SECRETS.search(field) else "an address"
            raise ValueError(f"{recipe}: {field} names {what}, {shown_value(text, field)}, which a run folder may not; --trust allows it")
    return config


def _of_policy(field: str, text: str) -> Iterator[tuple[str, str]]:
    """Every text that detectors are made with, where a text names the file of a guardrail policy, each with the field that it stands in."""
    try:
        policy = load_policy(text, to_run=False)
    except (OSError, ValueError):
        return
    for i, use in enumerate(policy.detectors):
        where = f"{field}: {text}: detectors.{i}.args"
        yield from ((place, one) for place, _, one in _texts(where, "", use.args))


def _of_a_run(recipe: Path, run: Path | None) -> bool:
    """Whether a recipe is part of a run folder: of the run given, or of another."""
    inside = run is not None and recipe.is_relative_to(run.resolve())
    return inside or recipe.is_dir() or recipe.name == "config.json" or (recipe.parent / "config.json").exists()


def _own_code(named: Iterable[tuple[str, str]], plugins: Collection[Path]) -> Iterator[tuple[str, str]]:
    """Those of the texts, each with its field, that name code which is neither built in nor installed, nor one of the plug-ins."""
    given = {file.resolve() for file in plugins}
    for field, text in named:
        if field != "services python" and _of_our_worlds(text):
            continue
        if field in _MODULES or (field in _IDS and ":" in text) or (names_code(text) and not text.startswith(_ADDRESSES)):
            file = text if text.endswith(".py") else text.rpartition(":")[0]
            if not (file.endswith(".py") and "\0" not in file and Path(file).resolve() in given):
                yield field, text


def _of_our_worlds(name: str) -> bool:
    """Whether a name is that of a module of burnish's worlds, or of something that is defined in one."""
    module, _, attribute = name.partition(":")
    if not module.startswith(_WORLDS) or _DOTTED.fullmatch(module) is None or find_spec(module) is None:
        return False
    found = getattr(import_module(module), attribute, None) if attribute else None
    where = str(getattr(found, "__module__", ""))
    return not attribute or where == module or (not isinstance(found, FunctionType | type) and where.startswith("burnish."))


def _played(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Every text that says what plays the episodes: the environments, and the services that they use."""
    yield from (("plugins", one) for one in config.plugins)
    yield "environment", config.environment
    yield from ((field, text) for field, _, text in _arguments(config, used_only=True))
    used = _used(config)
    yield from (pair for name, service in config.services.items() if name in used for pair in _of_service(service))


def _everything(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Every text of a recipe that is not a default."""
    data = config.model_dump(mode="json", exclude_defaults=True, exclude={"services", "plugins"})
    yield from (("plugins", one) for one in config.plugins)
    yield from ((field, text) for name, value in data.items() for field, _, text in _texts(name, "", value))
    yield from (pair for service in config.services.values() for pair in _of_service(service))
    yield from (
        (field, text) for name, one in config.services.items() for field, _, text in _texts(f"services.{name}.kwargs", "", one.kwargs)
    )


def _of_service(service: ServiceConfig) -> Iterator[tuple[str, str]]:
    fields = ((f"services {key}", getattr(service, key)) for key in ("tools", "verifier", "environment", "python", "address"))
    return ((field, text) for field, text in fields if text is not None)


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


def _arguments(config: RunConfig, used_only: bool = False) -> Iterator[tuple[str, str, str]]:
    """Every text that environments and services are made with, however deep: the field that it stands in, its key there, and itself."""
    blends = (table.blend for table in config.tables if isinstance(table, RFTPhaseConfig))
    used = _used(config) if used_only else config.services
    yield from _texts("environment_args", "", config.environment_args)
    for one in chain(*blends):
        yield from _texts(f"blend {one.called}", "", one.environment_args)
    for name, service in config.services.items():
        if name in used:
            yield from _texts(f"services.{name}.kwargs", "", service.kwargs)


def _used(config: RunConfig) -> set[str]:
    """The services that environments use."""
    blends = (table.blend for table in config.tables if isinstance(table, RFTPhaseConfig))
    given = (config.environment_args, *(one.environment_args for one in chain(*blends)))
    return {name for one in given for name in service_references(one)}


def _texts(field: str, key: str, value: Any) -> Iterator[tuple[str, str, str]]:
    """Every text in plain data, keys included: the field that it stands in, its key there, and itself."""
    given = [(field, key, value)]
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
    used = {name for _, _, text in _arguments(config) for name in service_references(text)}
    for field, key, text in _arguments(config):
        if text.startswith(SERVICE):
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
