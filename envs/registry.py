"""One registry for everything users plug in: environments, rewards, tools, verifiers, guardrails, losses.

Ids read `namespace/name-vN`. A component is found in one of three ways: registered in this process (a decorator did it), listed by
an installed distribution under an entry-point group (`burnish.envs`, `burnish.rewards`, …) whose entry is named by the id, or
in a plug-in file that `load_plugin` imports. Entry points are listed without importing anything and loaded by name.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar
from weakref import WeakSet

T = TypeVar("T")

ID_PATTERN = re.compile(r"^(?P<namespace>[A-Za-z0-9][A-Za-z0-9_.-]*)/(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]*)-v(?P<version>\d+)$")

MAX_SHOWN = 200
"""Characters of a word from elsewhere that a message shows, and that is compared with what is known."""
MOST_SHOWN = 12
"""Words that a message lists."""
PLUGIN_MODULE = "burnish_plugin_"

FAMILY = "/*"
"""How an entry point is named that makes every component of its namespace: `vllm/*` is called with `vllm/kimi_k2-v1`."""


@dataclass(frozen=True, slots=True)
class Listing:
    """One line of a registry's catalogue: the id and where it comes from. Nothing was imported to make it."""

    id: str
    source: str

    @property
    def place(self) -> str:
        """The source as whoever wrote it knows it: of a plug-in, the file, `/mine/sums.py:Sums`."""
        module, _, name = self.source.partition(":")
        file = getattr(sys.modules.get(module), "__file__", None) if is_plugin_module(module) else None
        return f"{file}:{name}" if file else self.source


OWN = "--plugin FILE.py, or `plugins` in a recipe or deployment, registers your own"
_kinds: WeakSet[Registry[Any]] = WeakSet()
"""Every registry there is, so that an id of another kind is told from one that nobody knows."""


class Registry(Generic[T]):
    """Components of one kind by id. Example: `REWARDS = Registry[RewardPlugin]("reward", "burnish.rewards")`."""

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._loaded: dict[str, T] = {}
        self._sources: dict[str, str] = {}
        _kinds.add(self)

    def register(self, id: str, component: T, source: str) -> T:
        """Add a component. Raises ValueError on a malformed id or when another source already holds it."""
        check_id(id, self.kind)
        if id in self._loaded and self._sources[id] != source:
            both = f"by {Listing(id, self._sources[id]).place} and by {Listing(id, source).place}"
            raise ValueError(f"{self.kind} {id!r} is registered twice: {both}; rename one or raise its version")
        self._loaded[id] = component
        self._sources[id] = source
        return component

    def get(self, id: str, own: str = OWN) -> T:
        """The component called `id`, importing its distribution if need be. own: how whoever asks gives one of their own.

        Raises ValueError when the id is unknown (with a suggestion), offered by two distributions, or when loading it fails.
        """
        if id in self._loaded:
            return self._loaded[id]
        offers = [entry for entry in self._entry_points if entry.name == id]
        offers = offers or [entry for entry in self._entry_points if entry.name == f"{id.partition('/')[0]}{FAMILY}"]
        if not offers:
            raise ValueError(self.said_of(id, own))
        if len(offers) > 1:
            names = " and ".join(sorted(_distribution(entry) for entry in offers))
            raise ValueError(f"{self.kind} {id!r} is offered by {names}; uninstall one of them")
        return self._load(id, offers[0])

    def list(self) -> list[Listing]:
        """Every known id, sorted, with its source."""
        rows = {entry.name: f"{_distribution(entry)} ({entry.value})" for entry in self._entry_points}
        return [Listing(id, source) for id, source in sorted({**rows, **self._sources}.items())]

    def loaded(self, id: str) -> T | None:
        """The component called `id` if it is in this process already; nothing is imported."""
        return self._loaded.get(id)

    @cached_property
    def _entry_points(self) -> tuple[EntryPoint, ...]:
        return tuple(entry_points(group=self.group))

    def _load(self, id: str, entry: EntryPoint) -> T:
        try:
            component: T = entry.load()
            if entry.name.endswith(FAMILY):
                check_id(id, self.kind)
                component = component(id)  # type: ignore[operator]  # a family's entry point makes its members
        except Exception as error:
            where = f"{_distribution(entry)} failed to load from {entry.value}"
            raise ValueError(f"{self.kind} {id!r} of {where}: {said_of_import(error)}") from error
        return self._loaded.get(id) or self.register(id, component, _distribution(entry))

    def said_of(self, id: str, own: str = OWN) -> str:
        """What is wrong with an id that is not registered: its version, its namespace, or its name, and what it may have meant."""
        others = [other.kind for other in _kinds if other is not self and any(row.id == id for row in other.list())]
        if others:
            return f"{id!r} is the id of {an(others[0])}, and {an(self.kind)} is asked for"
        file, _, name = id.rpartition(":")
        if file.endswith(".py"):
            meant = name if ID_PATTERN.match(name) else "what it is registered as, such as my-team/name-v1"
            return f"{self.kind} {id!r} is a name in a file and no id; give its id, {meant}, and the file by --plugin {file}"
        known = [listing.id for listing in self.list()]
        match = ID_PATTERN.match(id)
        if match:
            versions = [k for k in known if k.rpartition("-v")[0] == id.rpartition("-v")[0]]
            if versions:
                return f"{self.kind} {id!r} has no such version; there is {', '.join(versions)}"
            namespaces = {k.partition("/")[0] for k in known}
            if known and match["namespace"] not in namespaces and not difflib.get_close_matches(id, known, n=1, cutoff=0.8):
                known_ones = ", ".join(sorted(namespaces))
                said = f"{self.kind} {id!r}: nothing is registered under {match['namespace']!r}; known namespaces are {known_ones}"
                close = did_you_mean(match["namespace"], sorted(namespaces)) if len(namespaces) > 1 else ""
                close = close if "did you mean" in close else ""
                return f"{said}{close}; {own}, or the package that brings it must be installed"
        return f"{self.kind} {id!r} is unknown{did_you_mean(id, known)}"


def an(kind: str) -> str:
    """A kind with its article. Example: `an("environment")` is "an environment"."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def did_you_mean(word: str, known: list[str]) -> str:
    """`; did you mean 'x'?`, or the list of what is known when it is short, or nothing. A word longer than `MAX_SHOWN` is like nothing:
    a peer may send any, and comparing takes memory and time for each of its characters."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5) if len(word) <= MAX_SHOWN else []
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {some_of(known)}" if 0 < len(known) <= MOST_SHOWN else ""


def shortened(word: str) -> str:
    """A word from elsewhere as a message shows it."""
    return word if len(word) <= MAX_SHOWN else f"{word[:MAX_SHOWN]}…"


def some_of(words: Sequence[str]) -> str:
    """Words from elsewhere as a message lists them. Example: `some_of(["a", "b"]) == "a, b"`."""
    shown = ", ".join(map(shortened, words[:MOST_SHOWN]))
    return shown if len(words) <= MOST_SHOWN else f"{shown} and {len(words) - MOST_SHOWN} more"


def check_id(id: str, kind: str) -> None:
    """Raise ValueError unless `id` reads namespace/name-vN."""
    if not isinstance(id, str):  # the decorator without its parentheses
        raise ValueError(f"{kind}: the decorator takes an id in parentheses, ('my-team/{kind}-v1')")
    if not ID_PATTERN.match(id):
        raise ValueError(f"{kind} id {id!r} must read namespace/name-vN, for example 'my-team/{kind}-v1'")


def said_of_import(error: BaseException) -> str:
    """What a module raised when it was imported, and the line that did: `NameError: name 'x' is not defined (at /mine/sums.py:3)`."""
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
    named = not lines or isinstance(error, SyntaxError)  # the module was not found, or the message says its line already
    return f"{type(error).__name__}: {error}" + ("" if named else f" (at {lines[-1].filename}:{lines[-1].lineno})")


def sought_in(path: str | Path) -> str:
    """What an error says about a path that leads nowhere: the folder that a relative one counts from; nothing about another."""
    return "" if Path(path).is_absolute() else f"; a path counts from the folder that burnish is started in, {Path.cwd()}"


def load_plugin(path: str | Path) -> str:
    """Import a plug-in file so that its decorators register; return the module's name. Loading it twice is harmless.

    Raises ValueError when the file is missing or raises on import.
    """
    if not os.path.isfile(path):
        raise ValueError(f"plug-in {path} is not a file{sought_in(path)}")
    file = Path(path).resolve()
    path_digest = hashlib.sha256(os.fsencode(file)).hexdigest()[:16]  # my-reward.py is another file than my_reward.py
    name = f"{PLUGIN_MODULE}{re.sub(r'[^A-Za-z0-9_]', '_', file.stem)}_{path_digest}"
    if name in sys.modules:
        return name
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"plug-in {path} is not a Python file; give a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _look_in(file.parent)  # for what the file imports from beside it
    if file.is_relative_to(Path.cwd()):
        look_here()
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a program that ends itself when it is imported must not end this one in silence
        del sys.modules[name]
        raise ValueError(f"plug-in {path} failed to import: {said_of_import(error)}") from error
    return name


def look_here() -> None:
    """Have modules of the folder burnish is started in found, after all that is installed: the folder may hold what others sent, and a
    file in it is not to stand for a package. A console script does not look there, `python -m` does."""
    _look_in(Path.cwd())


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def module_place(name: str) -> str:
    """How a user calls a module: by its file where `load_plugin` loaded it, relative where it lies below this folder."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if not is_plugin_module(name) or not file:
        return name
    return str(Path(file).relative_to(Path.cwd())) if Path(file).is_relative_to(Path.cwd()) else file


def is_plugin_module(module: str) -> bool:
    """Whether a module's name is one that `load_plugin` gave."""
    return module.startswith(PLUGIN_MODULE)


def _distribution(entry: EntryPoint) -> str:
    return f"distribution {entry.dist.name}" if entry.dist else f"entry point {entry.value}"
