"""What a plug-in function's signature says: what it is called with, and the options that a recipe may set.

Options are the parameters after the first, each checked by its annotation; or one parameter `options` annotated with a pydantic model,
whose fields are then the options.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AliasChoices, AliasPath, BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, SchemaValidator, to_json
from pydantic_core.core_schema import (
    any_schema,
    dict_schema,
    json_schema,
    no_info_after_validator_function,
    no_info_before_validator_function,
    tagged_union_schema,
)

from ..envs.callables import hints_of, written
from ..envs.pydantic_words import NAME_ITSELF, error_lines, few_lines, message_of
from ..envs.registry import did_you_mean
from ..rpc.urls import shown_value

MODEL_PARAMETER = "options"
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""What pydantic calls a name that it does not know, of a model and of a dataclass."""
LAX = (
    *("list", "tuple", "set", "frozenset", "deque", "dict", "frozendict", "ordered-dict", "counter"),
    *("model", "model-fields", "dataclass", "typed-dict", "union", "tagged-union", "complex"),
)
"""What it calls what holds other values, each of which is read by its own rules; and a complex number, which JSON has as any other."""
WORDED = (
    *("enum", "date", "time", "datetime", "timedelta", "decimal", "fraction", "complex"),
    *("bytes", "uuid", "url", "multi-host-url", "union"),
)
"""What it calls values for which JSON, and so a recipe, has only a text or a number; and a choice, which may be among them."""


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """One option, for a person. Example: `OptionInfo("per_unit", "float", "0.1", "")`; default is None when it must be given."""

    name: str
    type: str
    default: str | None
    description: str


def option_parameters(what: str, function: Callable[..., Any], first: str) -> dict[str, inspect.Parameter]:
    """The parameters that hold options: all but the first. Raises ValueError when there is no first one, or an option has no name.

    what: whose parameters they are, as errors name it, `reward 'my-team/brief-v1'`. first: how the first one reads, `episode: RewardInput`.
    """
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
        raise ValueError(f"{what}: the function must take the {first.partition(':')[0]} as its first parameter, def f({first})")
    options = parameters[1:]
    for parameter in options:
        if parameter.kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
            raise ValueError(f"{what}: option {parameter.name!r} must be a named parameter; options are checked by name")
    return {parameter.name: parameter for parameter in options}


def check_options(what: str, function: Callable[..., Any], first: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments to call the function with, as its annotations want them. Raises ValueError naming `what` and the option."""
    parameters = option_parameters(what, function, first)
    hints = _hints(what, function)
    model = _model(parameters, hints)
    if model is not None:
        return {MODEL_PARAMETER: _check_model(what, model, given)}
    for key in given:
        if key not in parameters:
            raise ValueError(f"{what} has no option {key!r}{did_you_mean(key, list(parameters))}")
    checked: dict[str, Any] = {}
    for key, parameter in parameters.items():
        if key in given:
            checked[key] = _check_option(what, key, hints.get(key, Any), given[key])
        elif parameter.default is parameter.empty:
            raise ValueError(f"{what} needs the option {key!r}")
    return checked


def takes_option(what: str, function: Callable[..., Any], first: str, key: str) -> bool:
    """Whether the function has an option called so, as its signature says or the fields of its model. Raises ValueError as `check_options`
    does."""
    parameters = option_parameters(what, function, first)
    model = _model(parameters, _hints(what, function))
    if model is None:
        return key in parameters
    open_to_all = model.__pydantic_root_model__ or model.model_config.get("extra") == "allow"
    return open_to_all or any(key in _names_read(model, name) for name in model.model_fields)


def describe_options(what: str, function: Callable[..., Any], first: str) -> tuple[OptionInfo, ...]:
    """Every option with its type and default. Raises ValueError when an annotation cannot be resolved."""
    parameters = option_parameters(what, function, first)
    hints = _hints(what, function)
    model = _model(parameters, hints)
    if model is None:
        return tuple(
            OptionInfo(name, type_name(hints.get(name, Any)), None if p.default is p.empty else repr(p.default), "")
            for name, p in parameters.items()
        )
    rows = []
    for name, field in model.model_fields.items():
        rows.append(OptionInfo(_read_as(model, name), type_name(field.rebuild_annotation()), _default(field), field.description or ""))
    return tuple(rows)


def _default(field: FieldInfo) -> str | None:
    """None where there is none. What an author's function makes of the other options is not known before those are."""
    if field.is_required():
        return None
    return "by other options" if field.default_factory_takes_validated_data else repr(field.get_default(call_default_factory=True))


class _Word(str):
    """A type's name, which `inspect` writes into a signature as it stands."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def signature_text(function: Callable[..., Any]) -> str:
    """How a function is called, types by their names and without constraints: `(episode: RewardInput, *, limit: int = 20) -> Score`.

    Raises ValueError when an annotation cannot be resolved.
    """
    signature, hints = inspect.signature(function), _hints(written(function).__name__, function)
    words = {name: _Word(_type(hint)[0]) for name, hint in hints.items()}
    parameters = [p.replace(annotation=words.get(p.name, p.empty)) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=words.get("return", signature.empty)))


def type_name(annotation: Any) -> str:
    """An annotation as it would be written, constraints behind it. Example: `float, ge=0`, `Literal['a', 'b']`, `list[str] | None`."""
    name, rules = _type(annotation)
    return ", ".join([name, *rules])


def _type(annotation: Any) -> tuple[str, list[str]]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        name, rules = _type(arguments[0])
        flat = [rule for item in arguments[1:] for rule in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return name, [*rules, *(repr(rule).partition("(")[2].removesuffix(")") or repr(rule) for rule in flat)]
    if origin in (Union, UnionType):
        found = [_type(one) for one in arguments]
        return " | ".join(name for name, _ in found), [rule for _, rules in found for rule in rules]
    if annotation is NoneType:
        return "None", []
    if isinstance(origin, type) and arguments and not any(isinstance(one, list) for one in arguments):  # a list is what a Callable takes
        return f"{origin.__name__}[{', '.join('...' if one is Ellipsis else type_name(one) for one in arguments)}]", []
    if isinstance(annotation, type) and not arguments:
        return annotation.__name__, []
    return str(annotation).replace("typing.", "").replace("collections.abc.", ""), []


def _hints(what: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return hints_of(function)
    except NameError as error:
        raise ValueError(f"{what}: an annotation has no type ({error}); import it outside TYPE_CHECKING") from error


def _model(parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, Any]) -> type[BaseModel] | None:
    hint = hints.get(MODEL_PARAMETER)
    alone = list(parameters) == [MODEL_PARAMETER]
    return hint if alone and isinstance(hint, type) and issubclass(hint, BaseModel) else None


def _read_as(model: type[BaseModel], name: str) -> str:
    """What a recipe calls a field: its alias, the first of several, unless the model is read by the names of its fields."""
    return _names_read(model, name)[0]


def _names_read(model: type[BaseModel], name: str) -> list[str]:
    """All that a recipe may call a field: its aliases, and its own name where it has none or the model is read by that too."""
    alias, config = model.model_fields[name].validation_alias, model.model_config
    if alias is None or not config.get("validate_by_alias", True):
        return [name]
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    called = [str(one.path[0]) if isinstance(one, AliasPath) else one for one in choices]
    return [*called, name] if config.get("validate_by_name") or config.get("populate_by_name") else called


def _check_model(what: str, model: type[BaseModel], given: Mapping[str, Any]) -> BaseModel:
    try:
        read: BaseModel = _read_exactly(model, _as_json(what, given))
    except ValidationError as error:
        known = [_read_as(model, name) for name in model.model_fields]
        raise ValueError(few_lines(error_lines(error, partial(_complaint, what, given, known=known)))) from None
    return read


def _read_exactly(hint: Any, text: bytes) -> Any:
    """Raises ValidationError also for names in it that pydantic would ignore, at any depth: an option must never be ignored."""
    return SchemaValidator(_exact(TypeAdapter(hint).core_schema), _use_prebuilt=False).validate_json(text)  # prebuilt are those that ignore


def _exact(schema: Any) -> Any:
    """A part of what pydantic validates by, where what ignores names that it does not know forbids them; what allows them still does.

    Values are read strictly, each by its own kind, and not what holds them: what a validator of the author's gives back is Python's, and
    may hold a date of its making beside the list that a recipe has for a tuple.
    """
    if isinstance(schema, list | tuple):
        return type(schema)(_exact(part) for part in schema)
    if not isinstance(schema, Mapping):
        return schema
    kind = schema.get("type")
    plain = ("default", "metadata", "function", "expected", "members") if isinstance(kind, str) else ()  # else these are names of fields
    made = {key: part if key in plain else _exact(part) for key, part in schema.items()}
    config = made.get("config") or {}
    if kind in ("model", "dataclass", "typed-dict") and "allow" not in (config.get("extra_fields_behavior"), made.get("extra_behavior")):
        made |= {"config": {**config, "extra_fields_behavior": "forbid"}, "extra_behavior": "forbid"}
    if "keys_schema" in made:
        bare = schema["keys_schema"]
        made["keys_schema"] = _key(bare | {"strict": True} if bare["type"] in WORDED else made["keys_schema"], made["keys_schema"])
    if kind == "lax-or-strict":
        return made["strict_schema"] | {key: made[key] for key in ("ref",) if key in made}
    if kind == "json-or-python":
        return _said(made["json_schema"], made["python_schema"], made.get("ref"))
    if isinstance(kind, str):
        made["strict"] = kind not in LAX
    return _said(made, made, made.pop("ref", None)) if kind in WORDED else made


def _said(said: Any, other: Any, ref: str | None) -> Any:
    """What reads a plain value as what a recipe says, and others as they stand. Pydantic takes no text for a date among Python's values,
    and those of JSON are Python's behind a validator of the author's."""
    choices: dict[Any, Any] = {"[plain]": no_info_before_validator_function(to_json, json_schema(said)), "[other]": other}
    return tagged_union_schema(choices, lambda value: "[plain]" if _is_plain(value) else "[other]", ref=ref)


def _key(said: Any, other: Any) -> Any:
    """What reads a name in a table, which is a text in a recipe, whatever is made of it."""
    table = no_info_after_validator_function(lambda read: next(iter(read)), json_schema(dict_schema(said, any_schema())))
    choices: dict[Any, Any] = {"[plain]": no_info_before_validator_function(lambda name: to_json({name: 0}), table), "[other]": other}
    return tagged_union_schema(choices, lambda name: "[plain]" if type(name) is str else "[other]")


def _is_plain(value: Any) -> bool:
    if type(value) is dict:
        return all(type(key) is str and _is_plain(item) for key, item in value.items())
    return all(map(_is_plain, value)) if type(value) is list else value is None or type(value) in (str, int, float, bool)


def _complaint(what: str, given: Mapping[str, Any], detail: ErrorDetails, known: list[str] | None = None) -> str:
    """known: the names of the options themselves, where pydantic tells of one that is unknown."""
    place = _place(given, detail)
    if detail["type"] in UNKNOWN:
        return f"{what} has no option {place!r}{did_you_mean(place, known or []) if detail['loc'][-1] == place else ''}"
    if detail["type"] == "missing":
        return f"{what} needs the option {place!r}"
    where = f"{what}, option {place!r}" if place else f"{what}, options"
    if not place or detail["type"] == "json_invalid":  # of lists within lists without end, and the value is the whole text
        return f"{where}: {message_of(detail)}"
    return f"{where}: {message_of(detail)}, not {shown_value(detail['input'], *(part for part in detail['loc'] if part != NAME_ITSELF))}"


def _place(given: Any, detail: ErrorDetails) -> str:
    """Names of what is wrong, from the option on: of pydantic's place, neither kinds of a union nor the last item's number."""
    kept: list[str | int] = []
    part: Any
    for part in detail["loc"]:
        inside = part in given if isinstance(given, Mapping) else isinstance(given, list | tuple) and part in range(len(given))
        if inside:
            given = given[part]
            kept.append(part)
    if detail["type"] == "missing":
        return ".".join(str(part) for part in [*kept, detail["loc"][-1]])
    while kept and isinstance(kept[-1], int):
        kept.pop()
    return ".".join(str(part) for part in kept)


def _check_option(what: str, key: str, hint: Any, value: Any) -> Any:
    text = _as_json(f"{what}, option {key!r}", value)
    try:
        return _read_exactly(hint, text)
    except ValidationError as error:
        detail = _first(error.errors(include_url=False))
        detail["loc"] = (key, *detail["loc"])
        raise ValueError(_complaint(what, {key: value}, detail)) from None  # pydantic's error repeats the value


def _first(details: Sequence[ErrorDetails]) -> ErrorDetails:
    """The first complaint, or else of the same table a name that is unknown, because it may be what is missing."""
    table = details[0]["loc"][:-1]
    return next((detail for detail in details if detail["type"] in UNKNOWN and detail["loc"][:-1] == table), details[0])


def _as_json(what: str, value: Any) -> bytes:
    """An option for pydantic to read strictly, as recipes are read: nothing is made of what is none, but a list may be a tuple or a set."""
    try:
        return to_json(value, round_trip=True)  # of a Python object, without what it computes
    except ValueError as error:
        raise ValueError(f"{what}: has no form in JSON: {error}") from None
