"""What a run that is only looked at is worked with again: the pieces of its recipe, from a config that may be anybody's.

A run folder names code, as a recipe does: plug-ins, modules, services, functions among an environment's arguments. Names that are
registered, by burnish or by an installed package, are resolved, and what the worlds that burnish ships define; what else a folder names is
imported or run only for whoever says that the run is his own, or names the plug-in himself. What lies inside the folder is never run, so
that a folder from elsewhere brings none along; and no address is called, no variable or file of secrets read, and no file outside of the
folder opened, that only the folder names, unless whoever gives the command says so. What a text names is told in `named`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import all_suffixes
from itertools import chain
from pathlib import Path
from typing import Any

from burnish.recipe.config import RunConfig
from burnish.recipe.load import config_as_recorded, load_config
from burnish.recipe.named import CODE, OUTSIDE, Text, is_given, meaning_of, resolved, texts_of, with_files
from burnish.recipe.overrides import parse_override, position
from burnish.recipe.platforms import PLATFORMS
from burnish.recipe.resolve import EnvironmentSpec, environment_of
from burnish.recipe.services import ServiceConfig
from burnish.rewards.config import RewardConfig
from burnish.rollout.store.own_files import read_whole
from burnish.rollout.worker import BlendedEnvironment
from burnish.rpc.address import SERVICE, service_references
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


_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_RUNS_OWN = ("seeds.json", "versions.json", "episodes", "checkpoints.jsonl")
"""What lies beside the `config.json` of a run."""
NOT_RUN = "names {!r:.80}, code by its module or file and not by a registered id; it is run with --trust only, when the run is your own"


def recorded_setup(folder: Path, outward: bool = False, trust: bool = False, plugins: Collection[Path] = ()) -> RecordedSetup:
    """Those pieces of the recipe in a run folder; its data, its model and its GPUs need not be here.

    outward: whether the folder may name addresses, and variables and files that hold secrets. trust: whether it may name code that nobody
    registered, and files that lie elsewhere. plugins: files that whoever replays it loads anyway.

    Raises ValueError when `config.json` is missing or no config, or names code that lies in the folder, or code, an address, a secret or
    a file that it may not, or a service that it does not describe.
    """
    config, home = config_as_recorded(folder), folder.resolve()
    for field, place in _code(config):
        if (leads := resolved(Path(place))) is not None and leads.is_relative_to(home):
            raise ValueError(f"{folder}: {field} names {place}, which lies in the run folder itself; code that came with a run is not run")
    used = _used(config)
    if unknown := sorted(used - config.services.keys()):
        raise ValueError(f"{folder}: arguments of environments name {SERVICE + unknown[0]!r:.80}, which no table describes")
    opened = {option for option, allowed in (("--outward", outward), ("--trust", trust)) if allowed}
    played = (one for one in texts_of(config) if _plays(one, used))
    _refuse(str(folder), with_files(played, home), home, plugins, opened, "--outward")
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
    `config.json` is: it names what is registered and what lies in that folder, and neither an address nor where a secret is, nor does a
    suite or a guardrail policy that it names, unless trust says that the run is one's own.

    run: the run that the command is about. What `overrides` and `plugins` name, whoever gives the command names. Raises ValueError like
    `load_config`, and when the recipe names what it may not.
    """
    config = load_config(recipe, overrides, plugins, platform)
    home = None if trust else _home_of(recipe.resolve(), run)
    if home is not None:
        given = _given(config, overrides)
        said = (one for one in texts_of(config) if not any(one.at[: len(path)] == path for path in given))
        _refuse(str(recipe), with_files(said, home), home, plugins, set(), "--trust")
    return config


def _refuse(source: str, texts: Iterable[Text], home: Path, plugins: Collection[Path], opened: Collection[str], outward: str) -> None:
    """Raise ValueError for the first of the texts that names what a run folder may not.

    plugins: files whose code whoever gives the command names. opened: the options that he gave. outward: the one that would open addresses
    and secrets.
    """
    given = {file.resolve() for file in plugins}
    for one in texts:
        meaning = meaning_of(one, home)
        option = "--trust" if meaning in (CODE, OUTSIDE) else outward
        if meaning is None or option in opened or (meaning == CODE and is_given(one, given)):
            continue
        if meaning == CODE:
            raise ValueError(f"{source}: {one.field} {NOT_RUN.format(one.text)}")
        text = shown_value(one.text, *one.at)
        raise ValueError(f"{source}: {one.field} names {meaning}, {text}, which a run folder may not; {option} allows it")


def _given(config: RunConfig, overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """Where in a config the overrides have written, the items of lists by their numbers."""
    data, paths = config.model_dump(mode="json"), [parse_override(text).path for text in overrides]
    below = [path[1:] if path[0] in PLATFORMS else path for path in paths]
    return [_numbered(data, path) for path in below if path]  # a platform's whole table says nothing of where the rest comes from


def _numbered(data: Any, path: tuple[str, ...]) -> tuple[str, ...]:
    at: list[str] = []
    for key in path:
        found = position(data, key) if isinstance(data, list) else None
        at.append(key if found is None else str(found))
        data = data[found] if found is not None else data.get(key) if isinstance(data, Mapping) else None
    return tuple(at)


def _home_of(recipe: Path, run: Path | None) -> Path | None:
    """The run folder that a recipe is part of: the nearest that it lies in, however deep, or the run given."""
    folder = recipe if recipe.is_dir() else recipe.parent
    if recipe.is_dir() or os.path.lexists(folder / "config.json"):
        return folder
    nearest = next((parent for parent in folder.parents if _is_run(parent)), None)
    return nearest or (run.resolve() if run is not None and recipe.is_relative_to(run.resolve()) else None)


def _is_run(folder: Path) -> bool:
    """Whether a folder is one of a run. Another's `config.json` is of something else: a program, or a model."""
    file = folder / "config.json"
    if not os.path.lexists(file):
        return False
    if any(os.path.lexists(folder / name) for name in _RUNS_OWN):
        return True
    try:
        data = json.loads(read_whole(file))
    except (OSError, ValueError, RecursionError):
        return True
    return isinstance(data, dict) and {"model", "environment"} <= data.keys()


def _plays(one: Text, used: Collection[str]) -> bool:
    """Whether a text says what plays the episodes: the environments, and the services that they use."""
    match one.at:
        case ("plugins" | "environment" | "environment_args", *_) | ("rft", "blend", *_) | ("phases", _, "blend", *_):
            return True
        case ("services", name, *_):
            return name in used
    return False


def _code(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Every file that would be run, with the field that names it; a dotted module is looked for where burnish is started."""
    yield from (("plugins", plugin) for plugin in config.plugins)
    named = {"environment": config.environment}
    named |= {f"services.{name}.{service.kind}": service.target for name, service in config.services.items()}
    for field, target in named.items():
        yield from ((field, file) for file in _files_of(target if target.endswith(".py") else target.rpartition(":")[0]))
    for field, text in _arguments(config):  # any of them may be resolved: module:function, file.py:function, module:Env-v0
        pieces = dict.fromkeys((text, text.partition(":")[0], text.rpartition(":")[0]))
        yield from (
            (field, file) for piece in pieces for file in (*_files_of(piece), *([piece] if "/" in piece and os.path.lexists(piece) else []))
        )
    yield from ((f"services.{name}.python", service.python) for name, service in config.services.items() if service.python)


def _arguments(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Every text that environments and services are made with, however deep, with the field that it stands in."""
    for one in texts_of(config):
        match one.at:
            case ("environment_args", *_) | ("services", _, "kwargs", *_):
                yield one.field, one.text
            case ("rft", "blend", _, "environment_args", *_) | ("phases", _, "blend", _, "environment_args", *_):
                yield one.field, one.text


def _used(config: RunConfig) -> set[str]:
    """The services that environments use."""
    blends = (table.blend for table in config.tables if isinstance(table, RFTPhaseConfig))
    given = (config.environment_args, *(one.environment_args for one in chain(*blends)))
    return {name for one in given for name in service_references(one)}


def _files_of(name: str) -> Iterator[str]:
    """What a file's path or a dotted module would be loaded from."""
    return iter([name]) if name.endswith(".py") else _module_files(name)


def _module_files(module: str) -> Iterator[str]:
    """What a dotted module and its parents would be loaded from in the folder burnish is started in; nothing is imported to find it."""
    parts = module.split(".") if _DOTTED.fullmatch(module) else []
    for end in range(1, len(parts) + 1):
        place = Path(*parts[:end])
        yield from (file for file in (str(place), *(f"{place}{suffix}" for suffix in all_suffixes())) if os.path.exists(file))
