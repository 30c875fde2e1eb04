"""Turning what is wrong with a recipe into lines a person can act on, and command-line overrides into recipe data."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from burnish.envs.registry import did_you_mean

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Override:
    """One `--set`: where, and the value. Example: `parse_override("rft.lr=1e-5")` is `Override("rft.lr=1e-5", ("rft", "lr"), 1e-5)`."""

    text: str
    path: tuple[str, ...]
    value: Any

    def apply(self, data: dict[str, Any], source: str) -> None:
        """Write the value into recipe data; tables on the way are made. An item of a list is addressed by its number or its name."""
        here: Any = data
        for key in self.path[:-1]:
            here = here.setdefault(key, {}) if isinstance(here, dict) else here[self._index(here, key)]
            if not isinstance(here, dict | list):
                raise ValueError(f"--set {self.text}: {key} is a {_kind(here)} in {source}, not a table")
        last = self.path[-1]
        if isinstance(here, dict):
            here[last] = self.value
        else:
            here[self._index(here, last)] = self.value

    def _index(self, items: list[Any], key: str) -> int:
        names = [item.get("name", "") if isinstance(item, dict) else "" for item in items]
        if key in names:
            return names.index(key)
        if key.isdigit() and int(key) < len(items):
            return int(key)
        choices = [name or str(i) for i, name in enumerate(names)]
        raise ValueError(f"--set {self.text}: there is no item {key!r}{did_you_mean(key, choices)}")


def parse_override(text: str) -> Override:
    """`a.b=value`: the value is read as TOML, and taken as a plain string when it is not TOML. Raises ValueError without a key or `=`."""
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise ValueError(f"--set {text}: must read key=value or table.key=value, for example --set rft.steps=50")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return Override(text, path, value.strip())
    return Override(text, path, parsed["value"] if list(parsed) == ["value"] else value.strip())


def problem_lines(error: ValidationError, model: type[BaseModel], source: str, overrides: Sequence[Override] = ()) -> list[str]:
    """One line per problem: `recipe.toml: dotted.field: what is wrong`; what an override brought in names the override instead."""
    lines: list[str] = []
    for detail in error.errors(include_url=False):
        where = tuple(part for part in detail["loc"] if part != "[key]")
        dotted = ".".join(str(part) for part in where)
        for message in _explain(detail, where, model).split("\n"):
            line = f"{dotted}: {message}" if dotted else message  # checks across tables name the field themselves
            lines.append(f"{_origin(line.partition(': ')[0], source, overrides)}: {line}")
    return list(dict.fromkeys(lines))


def without_defaults(data: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Resolved config data without the values that are defaults anyway, so that "was this set?" has the answer the recipe gave."""
    kept: dict[str, Any] = {}
    plain = model.model_construct().model_dump(mode="json", warnings=False) if data else {}
    for key, value in data.items():
        field = model.model_fields.get(key)
        if field is not None and not field.is_required() and key in plain and plain[key] == value:
            continue
        inner = _inner_model(field.annotation) if field else None
        if inner is not None and isinstance(value, dict):
            direct = _is_model(field.annotation) if field else False
            kept[key] = without_defaults(value, inner) if direct else {name: _pruned(item, inner) for name, item in value.items()}
        elif inner is not None and isinstance(value, list):
            kept[key] = [_pruned(item, inner) for item in value]
        else:
            kept[key] = value
    return kept


def _pruned(item: Any, model: type[BaseModel]) -> Any:
    return without_defaults(item, model) if isinstance(item, dict) else item


def _origin(field: str, source: str, overrides: Sequence[Override]) -> str:
    for override in reversed(overrides):
        if f"{field}.".startswith(".".join(override.path) + "."):
            return f"--set {override.text}"
    return source


def _explain(detail: ErrorDetails, where: Location, model: type[BaseModel]) -> str:
    kind, value = detail["type"], detail["input"]
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        owner = _model_at(model, where[:-1])
        return f"unknown key{did_you_mean(str(where[-1]), list(owner.model_fields)) if owner else ''}"
    if kind == "missing":
        owner = _model_at(model, where[:-1])
        field = owner.model_fields.get(str(where[-1])) if owner else None
        return "is required" + (f": {field.description}" if field and field.description else "")
    if kind == "value_error":
        return str(context["error"])
    if kind == "string_pattern_mismatch":
        owner = _model_at(model, where[:-1])
        field = owner.model_fields.get(str(where[-1])) if owner else None
        form = field.description if field and field.description else f"of the form {context['pattern']}"
        return f"{value!r} must be {form}"
    if kind in ("literal_error", "enum"):
        choices = re.findall(r"'([^']*)'", str(context["expected"]))
        close = did_you_mean(value, choices) if isinstance(value, str) else ""
        close = close if "did you mean" in close else ""
        return f"{value!r} is unknown{close}" if close and len(choices) > 6 else f"{value!r} must be {context['expected']}{close}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"must be a table, not {_kind(value)} {value!r}"
    message = detail["msg"].removeprefix("Input should be ")
    return f"must be {message}, not {_kind(value)} {value!r}" if message != detail["msg"] else f"{message} (got {value!r})"


def _kind(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "float", str: "string", list: "list", dict: "table"}
    return names.get(type(value), type(value).__name__)


def _model_at(model: type[BaseModel] | None, where: Location) -> type[BaseModel] | None:
    """The config class of the table at a location. Names of services and numbers of list items lead to the class of the item."""
    skip = False
    for part in where:
        if skip:
            skip = False
            continue
        field = model.model_fields.get(str(part)) if model else None
        if field is None:
            return None
        model = _inner_model(field.annotation)
        skip = not _is_model(field.annotation)
    return model


def _is_model(annotation: Any) -> bool:
    """Whether a field is one table (or None), and not a list or mapping of tables."""
    options = [annotation, *get_args(annotation)] if type(None) in get_args(annotation) else [annotation]
    return any(isinstance(option, type) and issubclass(option, BaseModel) for option in options)


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for option in get_args(annotation):
        found = _inner_model(option)
        if found is not None:
            return found
    return None
