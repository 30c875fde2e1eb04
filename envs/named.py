"""What is named in words: functions as `module:function` or `path/to/file.py:function`, environments as `module:namespace/Name-v0`."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from .contract import ENVS, make_env
from .failures import short_traceback
from .places import own_places
from .registry import ID_PATTERN, did_you_mean, load_plugin, look_here, said_of_import

T = TypeVar("T")

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*|.+\.py", re.DOTALL)
_VERSION = re.compile(r"-v\d+\Z")


def load_function(target: str, field: str) -> Callable[..., Any]:
    """The function that `module:function` or `file.py:function` names. Raises ValueError naming the field, and what is missing."""
    parts = function_parts(target)
    if parts is None:
        raise ValueError(f"{field}: {target!r} must read module:function or file.py:function")
    module_name, name = parts
    module = import_module(module_name, field)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__]
        raise ValueError(f"{field}: {module_name} has no function {name!r}{did_you_mean(name, known)}")
    return function  # type: ignore[no-any-return]


def function_parts(target: str) -> tuple[str, str] | None:
    """Module and function of `module:function` or `file.py:function`; None for any other text, which no resolver of functions takes.

    Example: `function_parts("a.b:f")` is `("a.b", "f")`, and `function_parts("a.:f")` None.
    """
    module, _, name = target.rpartition(":")
    return (module, name) if _MODULE.fullmatch(module) and name.isidentifier() else None


def load_environment(target: str) -> str:
    """The id of the environment that `namespace/Name-v0`, `module:namespace/Name-v0` or `file.py:namespace/Name-v0` names, loaded.

    Raises ValueError when the target does not exist or registers no such environment.
    """
    module, _, id = target.rpartition(":")
    if not ID_PATTERN.match(id):
        raise ValueError(f"{target!r} names no environment; give namespace/Name-v0, module:namespace/Name-v0 or path.py:namespace/Name-v0")
    if module:
        import_module(module, "environment")
    ENVS.get(id, f"my_file.py:{id} names one of your own")
    return id


def names_code(text: str) -> bool:
    """Whether one of the resolvers (`load_function`, `load_environment`, `import_module`, `gymnasium.make`) would import a module of
    somebody's own for a text: `module:function`, `module:Name-v0`, or whatever a `.py` file stands in. Nothing is looked for.

    Example: `names_code("words.py:describe")`, but not `names_code("FrozenLake-v1")`, nor `names_code("Answer: yes or no")`.
    """
    if (text.rpartition(":")[0] or text).endswith(".py"):
        return True
    version = _VERSION.search(text)  # gymnasium imports whatever stands before a colon
    return function_parts(text) is not None or (version is not None and ":" in text[1 : version.start()])


def try_environment(id: str, kwargs: Mapping[str, Any]) -> None:
    """Make one and close it, so that a wrong argument shows now. Raises ValueError when it cannot be made, with the user's own lines."""
    try:
        make_env(id, **kwargs).close()
    except Exception as error:
        if isinstance(error, ValueError) and not own_places(error):
            raise
        raise ValueError(f"environment {id!r} cannot be made: {short_traceback(error)}") from error


def import_module(name: str, field: str) -> Any:
    """A module by its name, or by the path of its `.py` file. Raises ValueError naming the field when it does not import."""
    if name.endswith(".py"):
        return sys.modules[load_plugin(name)]
    look_here()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{field}: module {name} cannot be imported: {said_of_import(error)}") from error


@contextmanager
def attributed(what: str) -> Iterator[None]:
    """Around code that a user named and that no episode is part of: what it raises becomes a ValueError that names `what`, the exception,
    and the user's own lines. Example: `sft.generate: rows.py:demos: KeyError: 'answer'`, `  at /mine/rows.py:7 in demos`."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {short_traceback(error)}") from error


def each_of(made: Iterable[T], what: str) -> Iterator[T]:
    """The items of an iterable that a user's function gave, `attributed` as they are made."""
    with attributed(what):
        items = iter(made)
    while True:
        with attributed(what):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


def look_in(folder: str) -> None:
    """Have relative paths, and modules' names, mean here what they mean in a process that runs in that folder, if it is here."""
    if os.path.isdir(folder):
        os.chdir(folder)
