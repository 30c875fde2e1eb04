"""What pydantic says is wrong, without what is only pydantic's: its prefixes, links and types."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .registry import did_you_mean

Location = tuple[str | int, ...]

NAME_ITSELF = "[key]"
"""What pydantic puts behind the place of a name that is wrong, and not what is called so."""
PREFIXES = ("Value error, ", "Assertion failed, ")
WORDS = {
    "Field required": "is required",
    "Extra inputs are not permitted": "unknown key",
    "must be a valid integer": "must be an integer",
    "must be a valid number": "must be a number",
    "must be a valid string": "must be a string",
    "must be a valid boolean": "must be true or false",
    "must be a valid list": "must be a list",
    "must be a valid array": "must be a list",
    "must be a valid tuple": "must be a list",
    "must be a valid dictionary": "must be a table",
    "must be an object": "must be a table",
}
FORMS = {
    "^[a-z0-9][a-z0-9._-]*$": 'a name is in small letters: a to z, 0 to 9 and, behind the first, ".", "_" and "-"',
    "^[a-z0-9][a-z0-9_-]*$": 'a name is in small letters: a to z, 0 to 9 and, behind the first, "_" and "-"',
    "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$": 'a name has at most 64 letters, digits and, behind the first, "_" and "-"',
    "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$": 'a name has at most 64 letters, digits and, behind the first, ".", "_" and "-"',
    "^[0-9a-f]{64}$": "must be a SHA-256: 64 characters of 0 to 9 and a to f",
}
"""What a text must be that is held to a pattern."""
MOST_ERRORS = 1000
"""Of one value that are looked at: pydantic makes a table of each, which a value that is all wrong has as many of as bytes."""
MOST_LINES = 100
"""Of one error that lists what is wrong."""
_SHOULD = re.compile(r"\A(Input|String|List|Tuple|Set|Dictionary) should ")
_HOW_IT_TRIED = re.compile(r", (unable to (parse|interpret)|got a number with a fractional part).*\Z", re.DOTALL)


def message_of(detail: Mapping[str, Any]) -> str:
    """Of one of `ValidationError.errors()`. Examples: "Value error, is too long" as "is too long", "Input should be a valid list" as
    "must be a list"."""
    said = str(detail["msg"])
    own = next((said.removeprefix(prefix) for prefix in PREFIXES if said.startswith(prefix)), None)
    if own is not None:
        return own
    if detail.get("type") == "string_pattern_mismatch" and "ctx" in detail:
        pattern = detail["ctx"]["pattern"]
        return FORMS.get(pattern, f"must be of the form {pattern}")
    said = _HOW_IT_TRIED.sub("", _SHOULD.sub("must ", said))
    return WORDS.get(said, said)


def first_error(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """The first complaint on one line, with its place; an unknown key before all others, because it may be what is missing elsewhere.

    model: what was validated, for a suggestion in the place of an unknown key. Where more than `MOST_ERRORS` things are wrong, only their
    number. Example: `turns.0.tokens: is required`.
    """
    if error.error_count() > MOST_ERRORS:
        return f"{error.error_count():,} things in it are wrong"
    details = error.errors(include_url=False)
    first = next((detail for detail in details if detail["type"] == "extra_forbidden"), details[0])
    owner = model_at(model, first["loc"][:-1]) if first["type"] == "extra_forbidden" else None
    said = message_of(first) + (did_you_mean(str(first["loc"][-1]), list(owner.model_fields)) if owner else "")
    place = ".".join(str(part) for part in first["loc"] if part != NAME_ITSELF)
    return f"{place}: {said}" if place else said


def error_lines(error: ValidationError, line: Callable[[ErrorDetails], str]) -> list[str]:
    """A line for each complaint; where more than `MOST_ERRORS` things are wrong, one with their number."""
    return [first_error(error)] if error.error_count() > MOST_ERRORS else [line(detail) for detail in error.errors(include_url=False)]


def few_lines(lines: Iterable[str]) -> str:
    """Lines of an error, each once and at most `MOST_LINES` of them, the last of which then says how many more there are."""
    kept = list(dict.fromkeys(lines))
    more = len(kept) - MOST_LINES
    return "\n".join([*kept[:MOST_LINES], *([f"and {more:,} problems more"] if more > 0 else [])])


def model_at(model: type[BaseModel] | None, where: Location) -> type[BaseModel] | None:
    """The config class of the table at a location. Names of services and numbers of list items lead to the class of the item, and what
    tells kinds of items apart to that of its kind."""
    parts = iter(where)
    for part in parts:
        field = model.model_fields.get(str(part)) if model else None
        if field is None:
            return None
        model = inner_model(field.annotation)
        if is_model(field.annotation):
            continue
        next(parts, None)
        kinds = kinds_of(field.annotation)
        if kinds:
            model = kinds.get(next(parts, None))
    return model


def kinds_of(annotation: Any) -> dict[Any, type[BaseModel]]:
    """The config classes of a field whose items are of several kinds, by the `kind` that each has; empty for any other field."""
    models = [one for one in _models_in(annotation) if "kind" in one.model_fields]
    return {get_args(one.model_fields["kind"].annotation)[0]: one for one in models} if len(models) > 1 else {}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for option in get_args(annotation):
        yield from _models_in(option)


def is_model(annotation: Any) -> bool:
    """Whether a field is one table (or None), and not a list or mapping of tables."""
    options = [annotation, *get_args(annotation)] if type(None) in get_args(annotation) else [annotation]
    return any(isinstance(option, type) and issubclass(option, BaseModel) for option in options)


def inner_model(annotation: Any) -> type[BaseModel] | None:
    """The config class somewhere inside a field's type, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for option in get_args(annotation):
        found = inner_model(option)
        if found is not None:
            return found
    return None
