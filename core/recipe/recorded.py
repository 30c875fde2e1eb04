"""What a run that is only looked at is worked with again: the pieces of its recipe, from a config that may be anybody's.

A run folder names code, as a recipe does: plug-ins, modules, services. Whoever replays or grades a run runs that code. What lies inside
the folder itself is never run, so that a folder from elsewhere brings none along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import all_suffixes
from pathlib import Path

from burnish.recipe.config import RunConfig
from burnish.recipe.load import config_as_recorded
from burnish.recipe.resolve import EnvironmentSpec, environment_of
from burnish.recipe.services import ServiceConfig
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


def recorded_setup(folder: Path) -> RecordedSetup:
    """Those pieces of the recipe in a run folder; its data, its model and its GPUs need not be here.

    Raises ValueError when `config.json` is missing or no config, or names code that lies in the folder.
    """
    config, home = config_as_recorded(folder), folder.resolve()
    for field, place in _code(config):
        if Path(place).resolve().is_relative_to(home):
            raise ValueError(f"{folder}: {field} names {place}, which lies in the run folder itself; code that came with a run is not run")
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
        name = target if target.endswith(".py") else target.rpartition(":")[0]
        yield from ((field, file) for file in ([name] if name.endswith(".py") else _module_files(name)))
    yield from ((f"services.{name}.python", service.python) for name, service in config.services.items() if service.python)


def _module_files(module: str) -> Iterator[str]:
    """What a dotted module and its parents would be loaded from in the folder burnish is started in; nothing is imported to find it."""
    parts = module.split(".") if module else []
    for end in range(1, len(parts) + 1):
        place = Path(*parts[:end])
        yield from (file for file in (str(place), *(f"{place}{suffix}" for suffix in all_suffixes())) if Path(file).exists())
