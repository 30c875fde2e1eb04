"""Turning what is wrong with a recipe into lines a person can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from burnish.envs.pydantic_words import MOST_ERRORS, Location, first_error, kinds_of, message_of, model_at
from burnish.envs.registry import did_you_mean
from burnish.recipe.overrides import Override, kind_of, position
from burnish.rpc.urls import shown_value
from burnish.trainer.learner.config import LoRAConfig

NOT_FALSE = "literal[False]"
"""What pydantic puts into the place of a table that might be `false` as well."""
MAX_SHOWN = 200
"""Characters of a value that a problem repeats."""


@dataclass(frozen=True, slots=True)
class RecipeSource:
    """Where the values of a recipe came from, so that a problem is named where it was written.

    file: the recipe. overrides: `--set`s on top of it. overlay: the tables below `[platform]` that were laid over it. data: the file's own
    values, of the chosen platform, before the overrides, or None where they are not known: a table that is not there was made by a `--set`.

    Example: `RecipeSource("r.toml", overlay={"engine": {"threads": 0}}, platform="cpu").name("engine.threads: is 0")` is
    `"r.toml: cpu.engine.threads: is 0"`.
    """

    file: str
    overrides: Sequence[Override] = ()
    overlay: Mapping[str, Any] = field(default_factory=dict)
    platform: str = ""
    data: Mapping[str, Any] | None = None

    def name(self, line: str) -> str:
        """A line `field: what is wrong` with where the field was written before it."""
        where, _, rest = line.partition(": ")
        for override in reversed(self.overrides):
            path = override.path[1:] if override.path[0] == self.platform else override.path
            if any(self._is_about(".".join(one), where, rest) for one in (path, self._numbered(path))):
                return f"--set {override.shown}: {line}"
        return f"{self.file}: {self.platform}.{line}" if self._overlaid(where) else f"{self.file}: {line}"

    def _is_about(self, path: str, where: str, rest: str) -> bool:
        """Whether what is wrong with a field is what was written at the path of an override."""
        within = path.removeprefix(f"{where}.")  # a table's own check names the key in its sentence
        made = any(path.startswith(f"{table}.") for table in self._absent(where)) and rest.startswith(("unknown key", "is required"))
        named = within != path and re.search(rf"(?<![\w.]){re.escape(within)}(?![\w])", rest) is not None
        return made or named or f"{where}.".startswith(f"{path}.")

    def _numbered(self, path: Sequence[str]) -> list[str]:
        """An override's path with items of lists by their numbers, as most problems have it; the others have their names."""
        return [key if found is None else str(found) for key, found, _ in self._walked(path)]

    def _absent(self, where: str) -> Iterator[str]:
        """The tables of a field, itself included, that the file does not have."""
        keys = where.split(".")
        for depth, (_, _, here) in enumerate(self._walked(keys), start=1):
            if here is None or here == {}:
                yield ".".join(keys[:depth])

    def _walked(self, path: Sequence[str]) -> Iterator[tuple[str, int | None, Any]]:
        """Each key of a path, its number where it addresses an item of a list, and the file's value there, None where there is none."""
        here: Any = self.data
        for key in path:
            found = position(here, key) if isinstance(here, list) else None
            here = here[found] if isinstance(here, list) and found is not None else here.get(key) if isinstance(here, Mapping) else None
            yield key, found, here

    def _overlaid(self, where: str) -> bool:
        here: Any = self.overlay
        for key in where.split("."):
            if not isinstance(here, Mapping) or key not in here:
                return False
            here = here[key]
        return not isinstance(here, Mapping)


def problem_lines(error: ValidationError, model: type[BaseModel], source: RecipeSource) -> list[str]:
    """One line per problem: `recipe.toml: dotted.field: what is wrong`, named as `RecipeSource.name` does. Where more than `MOST_ERRORS`
    things are wrong, one with their number."""
    if error.error_count() > MOST_ERRORS:
        return [f"{source.file}: {first_error(error)}"]
    lines: list[str] = []
    for detail in error.errors(include_url=False):
        if NOT_FALSE in detail["loc"]:
            continue  # what is wrong with it as a table is said
        where = _place(detail["loc"])
        dotted = ".".join(str(part) for part in _written(where, model))
        lines += [source.name(f"{dotted}: {message}" if dotted else message) for message in _explain(detail, where, model).split("\n")]
    return list(dict.fromkeys(lines))


def _place(loc: Location) -> Location:
    """Where something is wrong, without what pydantic adds: for a name that is wrong, and for one of the two that `lora` may be."""
    return tuple(part for i, part in enumerate(loc) if part != "[key]" and (part, loc[i - 1]) != (LoRAConfig.__name__, "lora"))


def _explain(detail: ErrorDetails, where: Location, model: type[BaseModel]) -> str:
    kind, value = detail["type"], detail["input"]
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        owner = model_at(model, where[:-1])
        if owner is not None and (tables := _tables_with(str(where[-1]), owner)):
            return f"unknown key: {where[-1]} stands in the table {'.'.join([*map(str, _written(where[:-1], model)), tables[0]])}"
        alike = difflib.get_close_matches(str(where[-1]), list(owner.model_fields) if owner else [], n=1, cutoff=0.8)
        elsewhere = _tables_with(str(where[-1]), model)
        if len(elsewhere) == 1 and not alike:
            return f"unknown key: {where[-1]} stands in the table {elsewhere[0]}"
        return f"unknown key{did_you_mean(str(where[-1]), list(owner.model_fields)) if owner else ''}"
    if kind == "missing":
        owner = model_at(model, where[:-1])
        field = owner.model_fields.get(str(where[-1])) if owner else None
        return "is required" + (f": {field.description}" if field and field.description else "")
    if kind == "string_pattern_mismatch":
        owner = model_at(model, where[:-1])
        field = owner.model_fields.get(str(where[-1])) if owner else None
        form = field.description if field and field.description else f"of the form {context['pattern']}"
        return f"{_shown(value, where)} must be {form}"
    return str(context["error"]) if kind == "value_error" else _expected(detail, where)


def _tables_with(key: str, owner: type[BaseModel]) -> list[str]:
    """The tables within a table that have a key which stands outside them."""
    found = []
    for name, info in owner.model_fields.items():
        kinds = [info.annotation, *get_args(info.annotation)]
        if any(isinstance(kind, type) and issubclass(kind, BaseModel) and key in kind.model_fields for kind in kinds):
            found.append(name)
    return found


def _expected(detail: ErrorDetails, where: Location) -> str:
    """A value that is of another kind than what is expected."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind in ("literal_error", "enum"):
        choices = re.findall(r"'([^']*)'", str(context["expected"]))
        close = did_you_mean(value, choices) if isinstance(value, str) else ""
        close = close if "did you mean" in close else ""
        shown = _shown(value, where)
        return f"{shown} is unknown{close}" if close and len(choices) > 6 else f"{shown} must be {context['expected']}{close}"
    if kind.startswith("union_tag"):
        choices = re.findall(r"'([^']*)'", str(context.get("expected_tags", "")))
        return f"kind {context['tag']!r} is unknown{did_you_mean(str(context['tag']), choices)}" if choices else "needs a kind"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"must be a table, not {kind_of(value)} {_shown(value, where)}"
    message, shown = message_of(detail), _shown(value, where)
    if kind.startswith(("greater_than", "less_than", "finite_number")):  # of the right kind, and too much or too little
        return f"{message}, not {shown}"
    return f"{message}, not {kind_of(value)} {shown}" if message.startswith("must be ") else f"{message} (got {shown})"


def _shown(value: Any, where: Location) -> str:
    """A value as it is written, the beginning of a long one, and nothing of what may be a secret."""
    return shown_value(value, *where, most=MAX_SHOWN)


def _written(where: Location, model: type[BaseModel]) -> Location:
    """A location as it is written: without the kind of an item, which stands within it."""
    field = model.model_fields.get(str(where[0])) if where else None
    of_kinds = field is not None and len(where) > 2 and bool(kinds_of(field.annotation))
    return (*where[:2], *where[3:]) if of_kinds else where
