"""Finding what a recipe names: plug-ins, the environment, rewards, and functions written as `module:function`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from burnish.envs.contract import ENVS, check_env_args, unfit_tasks
from burnish.envs.named import import_module, load_environment, load_function
from burnish.envs.pydantic_words import few_lines
from burnish.envs.registry import Registry, did_you_mean, load_plugin, look_here
from burnish.envs.types import Task
from burnish.hosting.process import check_interpreter
from burnish.recipe.resolve import ResolvedRun
from burnish.recipe.services import ServiceConfig
from burnish.rewards.plugin import REWARDS, RewardPlugin, check_params, find_plugin
from burnish.rpc.address import service_references
from burnish.trainer.data.config import SupervisedRows
from burnish.trainer.data.sources import sources_of
from burnish.trainer.objectives.registry import find_advantage, find_loss

__all__ = ["check_components", "load_components", "load_function"]


def load_components(run: ResolvedRun) -> str:
    """Import the recipe's plug-ins and the module of a `module:namespace/Name-v0` environment; return the environment's id.

    Every process of a run that makes environments or rewards calls this first. Raises ValueError naming what does not import.
    """
    for plugin in run.plugins:
        load_plugin(plugin)
    if run.environment.module:
        import_module(run.environment.module, "environment")
    return run.environment.id


def check_components(run: ResolvedRun) -> None:
    """Raise ValueError, one line per problem, when an environment, reward, objective, generator or service module is unknown or misfit, or
    a row of the tasks is. What does not import is said alone: all that it would have registered were unknown for no other reason."""
    load_components(run)
    problems: list[str] = []
    for check in (_environment, _rewards, _objective, _tasks, _generators, _catalogs, _suites, _services, _trackers):
        problems += check(run)
    if problems:
        raise ValueError(few_lines(problems))


def _environment(run: ResolvedRun) -> Iterator[str]:
    try:
        ENVS.get(run.environment.id)
    except ValueError as error:
        yield f"{error}{_how_to_name(run.environment.id, run.environment.module)}"
        return
    yield from _unplayed("environment_args", run.environment.id, run.environment.args)
    for i, one in enumerate(run.rft.blend if run.rft is not None else ()):
        try:
            ENVS.get(one.environment)
        except ValueError as error:
            yield f"rft.blend.{i}.environment: {error}"
        else:
            yield from _unplayed(f"rft.blend.{i}.environment_args", one.environment, one.environment_args)


def _suites(run: ResolvedRun) -> Iterator[str]:
    """What keeps a suite of `[retention]` from being asked."""
    try:
        found = run.suites
    except ValueError as error:
        yield f"retention.suites: {error}"
        return
    for suite in found:
        where = f"retention.suites: {suite.id}"
        try:
            asked = (suite.tasks or suite.texts)(run.retention.items or suite.items if run.retention else 1)  # type: ignore[misc]
            if len(asked) < 2:
                yield f"{where}: has {len(asked)} item, and a comparison needs two"
            if suite.kind == "answers":
                yield from _unplayed(f"{where}: environment_args", suite.environment, suite.environment_args)
                tasks = [task for task in asked if isinstance(task, Task)]
                yield from unfit_tasks(suite.environment, ((f"{where}: {task.id}", task) for task in tasks))
            for entry in suite.rewards:
                if entry.use is not None:
                    check_params(find_plugin(entry.use), entry.args)
        except ValueError as error:
            yield f"{where}: {error}"
        if suite.max_turns * suite.max_tokens >= run.engine.max_context:
            tokens, context = f"{suite.max_turns} x {suite.max_tokens} tokens", run.engine.max_context
            yield f"{where}: its answers may have {tokens}, and engine.max_context = {context} holds prompt and answer; raise it"


def _how_to_name(id: str, module: str) -> str:
    """How a recipe names an environment of one's own, where it names none that is known, and nothing that would register it."""
    if module or not _is_nowhere(ENVS, id):
        return ""
    return f'; one of your own is named with what registers it: "my_file.py:{id}", or "my_module:{id}"'


def _is_nowhere(registry: Registry[Any], id: str) -> bool:
    """Whether nothing like it is known. Where something is, what the registry says of it is enough: a name much like it, or a version."""
    return id.partition("/")[0] not in {row.id.partition("/")[0] for row in registry.list()} and "did you mean" not in registry.said_of(id)


def _rewards(run: ResolvedRun) -> Iterator[str]:
    for entry in run.rewards:
        if entry.use is not None:
            try:
                plugin = find_plugin(entry.use)
                check_params(plugin, entry.args)
            except ValueError as error:
                own = '; one of your own is registered by a file: plugins = ["my_rewards.py"]' if _is_nowhere(REWARDS, entry.use) else ""
                yield f"rewards.{entry.name}: {error}{own}"
            else:
                yield from _comparisons(run, entry.name, plugin)


def _objective(run: ResolvedRun) -> Iterator[str]:
    for table in run.reinforced:
        objective, field = table.objective, f"{table.name}.objective"
        for check in (
            partial(find_advantage, objective.advantage, objective.advantage_args, f"{field}.advantage"),
            partial(find_loss, objective.loss, objective.loss_args, f"{field}.loss"),
        ):
            try:
                check()
            except ValueError as error:
                yield str(error)


def _comparisons(run: ResolvedRun, name: str, plugin: RewardPlugin) -> Iterator[str]:
    """What a reward that compares the attempts at one task needs of the rest of the recipe."""
    if plugin.level != "group":
        return
    for table in run.reinforced:
        if table.group_size < plugin.min_members:
            least, size = plugin.min_members, f"{table.name}.group_size is {table.group_size}"
            yield f"rewards.{name}: compares at least {least} attempts, but {size}; raise it"
    if run.success.partition(".")[0] == name:
        yield f"success: {name!r} compares attempts with each other, but an evaluation has one per task; choose another part"


def _tasks(run: ResolvedRun) -> Iterator[str]:
    files = run.tasks.files
    if files is None:
        return
    from burnish.trainer.data.task_files import read_task_files

    try:
        read = read_task_files(files)
    except ValueError as error:
        yield str(error)
        return
    rows = len(read.held_out)
    if not any(_environment(run)):  # of which is said what it is
        every = (*read.train, *read.held_out)
        yield from unfit_tasks(run.environment.id, ((row.where, Task(row.id, 0, row.messages, row.data)) for row in every))
    if "tasks" in run.evaluation.model_fields_set and run.evaluation.tasks > rows:
        yield f"evaluation.tasks: {run.evaluation.tasks}, but {files.held_out} holds only {rows} rows; lower it or leave it out"
    if (run.evaluation.every_tasks or 0) > rows:
        yield f"evaluation.every_tasks: {run.evaluation.every_tasks}, but {files.held_out} holds only {rows} rows; lower it or leave it out"


def _generators(run: ResolvedRun) -> Iterator[str]:
    for wanted in _supervised(run):
        if wanted.rows.generate is None:
            continue
        try:
            function = load_function(wanted.rows.generate, f"{wanted.called}.generate")
        except ValueError as error:
            yield str(error)
        else:
            yield from _unfit(f"{wanted.called}.args", function, wanted.rows.args, positional=2)


def _catalogs(run: ResolvedRun) -> Iterator[str]:
    for wanted in _supervised(run):
        try:
            sources_of(wanted, 0)
        except ValueError as error:
            yield f"{wanted.called}: {error}" if not str(error).startswith(f"{wanted.called}.") else str(error)


def _supervised(run: ResolvedRun) -> list[SupervisedRows]:
    return [rows for phase in run.phases if (rows := phase.table.supervised_rows) is not None]


def _trackers(run: ResolvedRun) -> Iterator[str]:
    return run.tracking.problems()


def _services(run: ResolvedRun) -> Iterator[str]:
    used = {name for entry in run.rewards for name in service_references(entry.verifier)}
    for name, service in run.services.items():
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


def _served_environment(name: str, target: str, kwargs: Mapping[str, Any]) -> Iterator[str]:
    """It is loaded here only to be checked: the service has a process of its own."""
    try:
        factory = ENVS.get(load_environment(target))
    except ValueError as error:
        module, _, id = target.rpartition(":")
        yield f"services.{name}.environment: {error}{_how_to_name(id, module)}"
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
        return os.path.isfile(module)
    look_here()
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _unplayed(field: str, id: str, args: Mapping[str, Any]) -> Iterator[str]:
    """What keeps an environment from being made with these arguments, as far as that is known before one is made."""
    problems = list(_unfit(field, ENVS.get(id), args))
    yield from problems
    if not problems:
        try:
            check_env_args(id, args)
        except ValueError as error:
            yield f"{field}: {error}"


def _unfit(field: str, function: Callable[..., Any], args: Mapping[str, Any], positional: int = 0) -> Iterator[str]:
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
