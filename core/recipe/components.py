"""Finding what a recipe names: plug-ins, the environment, rewards, and functions written as `module:function`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from burnish.envs.contract import ENVS
from burnish.envs.named import import_module, load_environment, load_function, look_here
from burnish.envs.registry import did_you_mean, load_plugin
from burnish.hosting.process import check_interpreter
from burnish.recipe.checks import service_references
from burnish.recipe.config import RunConfig, ServiceConfig
from burnish.rewards.plugin import RewardPlugin, check_params, find_plugin

__all__ = ["check_components", "load_components", "load_function"]


def load_components(config: RunConfig) -> str:
    """Import the recipe's plug-ins and the module of a `module:namespace/Name-v0` environment; return the environment's id.

    Every process of a run that makes environments or rewards calls this first. Raises ValueError naming what does not import.
    """
    for plugin in config.plugins:
        load_plugin(plugin)
    module, _, id = config.environment.rpartition(":")
    if module:
        import_module(module, "environment")
    return id


def check_components(config: RunConfig) -> None:
    """Raise ValueError, one line per problem, when an environment, reward, generator or service module is unknown or misfit, or a row of
    the tasks is."""
    problems: list[str] = []
    for check in (_environment, _rewards, _tasks, _generators, _services):
        problems += check(config)
    if problems:
        raise ValueError("\n".join(problems))


def _environment(config: RunConfig) -> Iterator[str]:
    try:
        factory = ENVS.get(load_components(config))
    except ValueError as error:
        yield str(error)
        return
    yield from _unfit("environment_args", factory, config.environment_args)


def _rewards(config: RunConfig) -> Iterator[str]:
    for entry in config.scorers:
        if entry.use is not None:
            try:
                plugin = find_plugin(entry.use)
                check_params(plugin, entry.args)
            except ValueError as error:
                yield f"rewards.{entry.name}: {error}"
            else:
                yield from _comparisons(config, entry.name, plugin)


def _comparisons(config: RunConfig, name: str, plugin: RewardPlugin) -> Iterator[str]:
    """What a reward that compares the attempts at one task needs of the rest of the recipe."""
    if plugin.level != "group":
        return
    if config.rft is not None and config.rft.group_size < plugin.min_members:
        yield f"rewards.{name}: compares at least {plugin.min_members} attempts, but rft.group_size is {config.rft.group_size}; raise it"
    if config.success.partition(".")[0] == name:
        yield f"success: {name!r} compares attempts with each other, but an evaluation has one per task; choose another part"


def _tasks(config: RunConfig) -> Iterator[str]:
    if config.tasks is None:
        return
    from burnish.trainer.data.task_files import read_task_files

    try:
        rows = len(read_task_files(config.tasks).held_out)
    except ValueError as error:
        yield str(error)
        return
    if "tasks" in config.evaluation.model_fields_set and config.evaluation.tasks > rows:
        yield f"evaluation.tasks: {config.evaluation.tasks}, but {config.tasks.held_out} holds only {rows} rows; lower it or leave it out"


def _generators(config: RunConfig) -> Iterator[str]:
    for phase, table in (("cpt", config.cpt), ("sft", config.sft)):
        if table is None or table.generate is None:
            continue
        try:
            function = load_function(table.generate, f"{phase}.generate")
        except ValueError as error:
            yield str(error)
        else:
            yield from _unfit(f"{phase}.args", function, table.args, positional=2)


def _services(config: RunConfig) -> Iterator[str]:
    used = {name for entry in config.scorers for name in service_references(entry.verifier)}
    for name, service in config.services.items():
        if service.verifier is not None and name not in used:
            yield f"services.{name}: serves a verifier that no reward uses"
        if service.python is not None:
            yield from _served_elsewhere(name, service)
            continue
        if service.environment is not None:
            yield from _served_environment(name, service.environment, service.kwargs)
            continue
        module = service.target.partition(":")[0]
        if module and not _exists(module):
            what = "file" if module.endswith(".py") else "module"
            yield f"services.{name}.{service.kind}: there is no {what} {module}"


def _served_environment(name: str, target: str, kwargs: dict[str, Any]) -> Iterator[str]:
    """It is loaded here only to be checked: the service has a process of its own."""
    try:
        factory = ENVS.get(load_environment(target))
    except ValueError as error:
        yield f"services.{name}.environment: {error}"
    else:
        yield from _unfit(f"services.{name}.kwargs", factory, kwargs)


def _served_elsewhere(name: str, service: ServiceConfig) -> Iterator[str]:
    """What this interpreter could say of the target means nothing: it is asked of the one that will run it."""
    assert service.python is not None and service.kind is not None
    try:
        check_interpreter(Path(service.python), service.kind, service.target, service.kwargs, service.start_timeout_s)
    except ValueError as error:
        yield f"services.{name}.python: {error}"


def _exists(module: str) -> bool:
    if module.endswith(".py"):
        return Path(module).is_file()
    look_here()
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _unfit(field: str, function: Callable[..., Any], args: dict[str, Any], positional: int = 0) -> Iterator[str]:
    """Keyword arguments that `function` does not take, and ones it needs and does not get."""
    parameters = list(inspect.signature(function).parameters.values())[positional:]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in named]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in args:
            if key not in names:
                yield f"{field}.{key}: unknown{did_you_mean(key, names) if names else '; it takes none'}"
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in args:
            yield f"{field}: needs {parameter.name}"
