"""What a finished run is worked with again: its environments put together as its recipe says, from a config that may be anybody's.

A run folder names code, as a recipe does: plug-ins, modules, services. Whoever replays or grades a run runs that code; what lies inside
the folder itself is never run, so that a folder from elsewhere brings none along.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from burnish.cluster import services_of
from burnish.envs.contract import ENVS
from burnish.envs.named import import_module
from burnish.envs.registry import load_plugin
from burnish.inspector.replay import Player
from burnish.recipe.config import RunConfig
from burnish.recipe.load import config_as_recorded
from burnish.recipe.resolve import environment_of
from burnish.recipe.services import service_references, with_addresses
from burnish.rewards.calling.threads import Daemons


def recorded_config(folder: Path) -> RunConfig:
    """The config of a run. Raises ValueError when it is none, or names code that lies in the folder."""
    config, home = config_as_recorded(folder), folder.resolve()
    for field, place in _code(config):
        if Path(place).resolve().is_relative_to(home):
            raise ValueError(f"{folder}: {field} names {place}, which lies in the run folder itself; code that came with a run is not run")
    return config


@contextmanager
def players_of(folder: Path, plugins: Sequence[Path] = ()) -> Iterator[Mapping[str, Player]]:
    """What plays a run's episodes again, by the name of the environment in a blend, "" for the recipe's own.

    plugins: files to load beside those that the recipe names. Only services that the environments use are started. Raises ValueError when
    an environment is unknown here, or code that the recipe names is missing or lies in the folder.
    """
    config = recorded_config(folder)
    load_named(config, plugins)
    own = environment_of(config)
    made = {"": (own.id, own.args)}
    blends = [one for table in config.tables for one in getattr(table, "blend", ())]
    made |= {one.called: (one.environment, one.environment_args) for one in blends}
    for id, _ in made.values():
        ENVS.get(id)
    used = {name for _, args in made.values() for name in service_references(args)}
    services = {name: service for name, service in config.services.items() if name in used}
    threads = Daemons("replay")
    with tempfile.TemporaryDirectory(prefix="burnish-replay-") as logs, services_of(services, Path(logs)) as addresses:
        yield {
            name: Player(id, with_addresses(args, addresses), threads, config.rollout.step_timeout_s) for name, (id, args) in made.items()
        }


def load_named(config: RunConfig, plugins: Sequence[Path]) -> None:
    """Import what the recipe names, and `plugins`. Raises ValueError naming what does not import."""
    for plugin in (*map(str, plugins), *config.plugins):
        load_plugin(plugin)
    module = environment_of(config).module
    if module:
        import_module(module, "environment")


def _code(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Every file that would be run, with the field that names it."""
    yield from (("plugins", plugin) for plugin in config.plugins)
    named: dict[str, Any] = {"environment": config.environment}
    for name, service in config.services.items():
        named |= {f"services.{name}.{service.kind}": service.target, f"services.{name}.python": service.python}
    for field, target in named.items():
        place = str(target or "")
        file = place if field.endswith(".python") else place.rpartition(":")[0] or place
        if file.endswith(".py") or (field.endswith(".python") and file):
            yield field, file
