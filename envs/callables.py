"""What a user's callable is, whether a function, a `functools.partial` of one, or an object with `__call__`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, get_type_hints


def written(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that somebody wrote: inside a partial, or the `__call__` of an object. Where its name, file and hints are.

    Example: `written(partial(score, limit=3))` is `score`.
    """
    while isinstance(function, partial):
        function = function.func
    is_object = not inspect.isroutine(function) and not inspect.isclass(function)
    inner: Callable[..., Any] = inspect.unwrap(type(function).__call__ if is_object else function)
    return inner


def source_of(function: Callable[..., Any]) -> str:
    """`module:qualified.name` of what was written. Example: `source_of(partial(score, limit=3))` is `"my_rewards:score"`."""
    inner = written(function)
    return f"{inner.__module__}:{inner.__qualname__}"


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(written(function))


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations by parameter, of a class those that it is made with, resolved. Raises NameError when one names what is not there at
    run time."""
    inner: Any = written(function)
    return get_type_hints(inner.__init__ if inspect.isclass(inner) else inner, include_extras=True)


def doc_of(function: Callable[..., Any]) -> str:
    """The docstring without its indentation; "" without one. An object's is that of its class."""
    while isinstance(function, partial):
        function = function.func
    return inspect.getdoc(function) or ""
