"""Tools: typed Python functions a policy may call, in this process or behind gRPC.

    @tool
    def measure(part: int, feature: str, *, context: ToolContext) -> str:
        '''Measure one feature of a part.

        Args:
            part: serial number.
            feature: name of the feature, as listed on the drawing.
        '''

The JSON schema comes from the signature and the docstring. A call the policy got wrong (unknown tool, bad argument, or whatever the
tool itself refuses) raises `ToolRejected`, whose text is an ordinary observation; anything else that goes wrong is a failure.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Generic, NotRequired, ParamSpec, Protocol, TypeVar

import docstring_parser
from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError, with_config
from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import TypedDict  # pydantic refuses the standard library's before Python 3.12

from ..rpc.background import background
from ..rpc.payload import PayloadError, plain_json, plain_value, utf8
from .callables import doc_of, hints_of, is_async, written
from .failures import EpisodeFailure, Failure, FailureKind, boundary, short_traceback
from .pydantic_words import MOST_ERRORS, message_of
from .registry import did_you_mean, module_place, shortened

MOST_TOLD = 20
"""Wrong arguments of one call that the policy is told of."""
LATE_S = 5.0  # how much longer an async tool is waited for that blocks the loop or swallows its cancellation

P = ParamSpec("P")
R = TypeVar("R")


class ToolRejected(Exception):
    """A tool call the policy got wrong; the text is what the policy reads. Example: `ToolRejected("part 17 has no feature 'boer'")`."""


@dataclass(frozen=True, slots=True)
class ToolContext:
    """Which episode is calling; the policy neither sees nor sets it.

    seed and data are those of the task (`Task.seed`, `Task.data`); data must be JSON to reach a remote tool.

    Example: `ToolContext("train-17/0", seed=17, data={"level": 2})`.
    """

    episode_id: str
    seed: int
    data: Mapping[str, Any] = field(default_factory=dict)


class Tools(Protocol):
    """What an environment sees of its tools: a local `ToolSet` and a `RemoteToolSet` behave alike."""

    def schemas(self) -> list[dict[str, Any]]:
        """The tools as OpenAI function schemas, parameters in the order of the signature."""
        ...

    def call(self, name: str, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Run one tool. Raises ToolRejected (the policy's fault) or EpisodeFailure TOOL_ERROR, TOOL_TIMEOUT naming the tool."""
        ...


@dataclass(frozen=True)
class Tool(Generic[P, R]):
    """A function with its JSON schema, still callable as the plain function it was. Made by `@tool`.

    parameters: JSON schema of the arguments. context_parameter: the parameter annotated `ToolContext`, if there is one. is_method: it is a
    method, which needs an object (see `tool_sessions`).
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    function: Callable[P, R]
    context_parameter: str | None
    _validator: TypeAdapter[dict[str, Any]] = field(repr=False)
    is_method: bool = False

    def __get__(self, owner: object, kind: type | None = None) -> Tool[..., R]:
        """A method of an object is that object's tool."""
        if owner is None or not self.is_method:
            return self
        method: Any = self.function
        return replace(self, function=method.__get__(owner), is_method=False)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    @property
    def is_async(self) -> bool:
        return is_async(self.function)

    def schema(self) -> dict[str, Any]:
        """The tool as an OpenAI function schema."""
        return {"type": "function", "function": {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}}

    def bind(self, arguments: Mapping[str, Any], context: ToolContext) -> dict[str, Any]:
        """The keyword arguments to call the function with: checked and converted to the annotated types ("17" becomes 17 for an int).

        Raises ToolRejected that says of the first `MOST_TOLD` wrong arguments what is wrong.
        """
        try:
            bound = dict(self._validator.validate_python(plain_json(arguments)))
        except PayloadError as error:
            raise ToolRejected(f"{self.name}: {error}") from None
        except ValidationError as error:
            raise ToolRejected(self._explain(error)) from None
        if self.context_parameter:
            bound[self.context_parameter] = context
        return bound

    def _explain(self, error: ValidationError) -> str:
        count, lines = error.error_count(), []
        if count > MOST_ERRORS:
            return (
                f"{self.name}: {count:,} values in the arguments are wrong; it takes {', '.join(self.parameters['properties']) or 'none'}"
            )
        for problem in error.errors(include_url=False)[:MOST_TOLD]:
            where = shortened(".".join(map(str, problem["loc"])))
            match problem["type"]:
                case "missing":
                    lines.append(f"argument {where!r} is missing")
                case "extra_forbidden":
                    lines.append(f"there is no argument {where!r}{did_you_mean(where, list(self.parameters['properties']))}")
                case _:
                    said = message_of(problem)
                    lines.append(f"argument {where!r}: {said[:1].lower()}{said[1:]}")
        more = [f"and {count - MOST_TOLD} more"] if count > MOST_TOLD else []
        return f"{self.name}: " + "; ".join([*lines, *more])


def tool(function: Callable[P, R]) -> Tool[P, R]:
    """Make a tool of a sync or async function, or of a method, that returns the observation: a string, or what JSON can carry, which the
    policy reads as JSON. Its name is the function's.

    Every parameter needs an annotation that pydantic understands; one annotated `ToolContext` is filled in by burnish and hidden from
    the policy. Descriptions come from the docstring: its text, and what it says of each parameter (an `Args:` section, or the style of
    NumPy or reStructuredText). Raises ValueError when the signature cannot be turned into a JSON schema.
    """
    name = written(function).__name__
    hints = _hints(name, function)
    fields: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    context_parameter = None
    named = list(inspect.signature(function).parameters.values())
    is_method = bool(named) and named[0].name == "self" and "self" not in hints
    for parameter in named[is_method:]:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ValueError(f"tool {name!r}: parameter {parameter.name!r} is {parameter.kind.description}; tools take named parameters")
        if parameter.name not in hints:
            raise ValueError(f"tool {name!r}: parameter {parameter.name!r} needs a type annotation, for example {parameter.name}: str")
        annotation = hints[parameter.name]
        if annotation is ToolContext:
            context_parameter = parameter.name
        elif parameter.default is parameter.empty:
            fields[parameter.name] = annotation
        else:
            fields[parameter.name] = NotRequired[annotation]
            defaults[parameter.name] = parameter.default
    if hints.get("return", str) is type(None):
        raise ValueError(f"tool {name!r} is annotated to return nothing; a tool returns what the policy reads, as str or as JSON")
    description, about = _docstring(function)
    validator, parameters = _schema(name, fields, defaults, about)
    return Tool(name, description, parameters, function, context_parameter, validator, is_method)


class ToolSet:
    """Tools that run in this process. Example: `ToolSet([measure, spec])`, or `ToolSet.from_module(module)`.

    deadline_s: seconds that one call of an async tool may take; a sync one cannot be interrupted, and is bounded by the step's deadline.
    """

    def __init__(self, tools: Sequence[Tool[..., Any]], deadline_s: float = 60.0) -> None:
        if not deadline_s > 0:
            raise ValueError(f"ToolSet: deadline_s must be a positive number of seconds, not {deadline_s!r}")
        self._deadline_s = deadline_s
        self._tools: dict[str, Tool[..., Any]] = {}
        for one in tools:
            if not isinstance(one, Tool):
                raise ValueError(f"{one!r} is not a tool; decorate the function with @tool")
            if one.is_method:
                raise ValueError(f"tool {one.name!r} is a method: give the class to SessionTools (from burnish.envs.tool_sessions)")
            if one.name in self._tools:
                raise ValueError(f"two tools are called {one.name!r}; rename one of the functions")
            self._tools[one.name] = one

    @classmethod
    def from_module(cls, module: ModuleType) -> ToolSet:
        """All tools among the module's public names. Raises ValueError when there are none."""
        tools = [value for key, value in vars(module).items() if isinstance(value, Tool) and not key.startswith("_")]
        if not tools:
            place, kinds = module_place(module.__name__), tool_classes(module)
            what = f"no functions that are tools, but a class of them; give {place}:{kinds[0].__name__}" if kinds else "no tools"
            raise ValueError(f"{place!r} has {what}{'' if kinds else '; decorate functions with @tool (from burnish import tool)'}")
        return cls(tools)

    @property
    def names(self) -> list[str]:
        return list(self._tools)

    def schemas(self) -> list[dict[str, Any]]:
        """The tools as OpenAI function schemas, in the order given."""
        return [one.schema() for one in self._tools.values()]

    def find(self, name: str) -> Tool[..., Any]:
        """The tool called `name`. Raises ToolRejected, naming the tools there are, when the policy made the name up."""
        if name not in self._tools:
            raise ToolRejected(unknown_tool(name, self.names))
        return self._tools[name]

    def reads_context(self, name: str) -> bool:
        """Whether a tool gets to know the task it is called in."""
        return self.find(name).context_parameter is not None

    def call(self, name: str, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Run one tool and return its observation: a sync one in the calling thread, an async one on the one event loop that all async
        tools of this process share, so that a client which a tool keeps between calls stays usable.

        Raises ToolRejected when the policy got the call wrong, EpisodeFailure TOOL_TIMEOUT when an async tool takes longer than
        `deadline_s`, TOOL_ERROR naming the tool on any other exception.
        """
        one = self.find(name)
        bound = one.bind(arguments, context)
        with boundary(FailureKind.TOOL_ERROR, f"tool {name}", ToolRejected):
            text = self._call_async(one, bound) if one.is_async else one.function(**bound)
            return observation(name, text)

    def _call_async(self, one: Tool[..., Any], bound: Mapping[str, Any]) -> Any:
        try:
            return background("tools").run(self._in_time(one, bound), self._deadline_s + LATE_S)
        except TimeoutError as error:
            detail = f"no answer within {self._deadline_s:g} s, and the event loop of async tools is blocked: one of them does not await"
            raise EpisodeFailure(Failure(FailureKind.TOOL_TIMEOUT, f"tool {one.name}", detail)) from error

    async def _in_time(self, one: Tool[..., Any], bound: Mapping[str, Any]) -> Any:
        deadline = asyncio.timeout(self._deadline_s)
        try:
            async with deadline:
                with boundary(FailureKind.TOOL_ERROR, f"tool {one.name}", ToolRejected, TimeoutError):
                    return await one.function(**bound)
        except TimeoutError as error:
            if deadline.expired():
                failure = Failure(FailureKind.TOOL_TIMEOUT, f"tool {one.name}", f"no answer within {self._deadline_s:g} s")
            else:
                failure = Failure(FailureKind.TOOL_ERROR, f"tool {one.name}", short_traceback(error))
            raise EpisodeFailure(failure) from error


def observation(name: str, result: object) -> str:
    """What a tool returned, as text the wire can carry: a string as it is, anything else that JSON has as JSON.

    Raises EpisodeFailure TOOL_ERROR when it is neither; None is a forgotten return. Example: `observation("count", {"bolts": 3})` is
    `'{"bolts": 3}'`.
    """
    if isinstance(result, str):
        return utf8(result)
    try:
        if result is None:
            raise PayloadError("returned None; return what the policy is to read")
        return json.dumps(plain_value(result, "its result"), ensure_ascii=False)
    except PayloadError as error:
        raise EpisodeFailure(Failure(FailureKind.TOOL_ERROR, f"tool {name}", f"{error}; a tool returns str or plain JSON")) from None


def unknown_tool(name: str, known: list[str]) -> str:
    """What the policy reads when it calls a tool that does not exist."""
    return utf8(f"there is no tool {name[:80]!r}; the tools are {', '.join(known)}")


def _hints(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return hints_of(function)
    except NameError as error:
        message = f"tool {name!r}: an annotation cannot be resolved ({error}); import the type at module level, outside TYPE_CHECKING"
        raise ValueError(message) from error


class _PlainSchema(GenerateJsonSchema):
    """Without the titles pydantic derives from names: they cost prompt tokens and say nothing new."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _schema(
    name: str, fields: Mapping[str, Any], defaults: Mapping[str, Any], about: Mapping[str, str]
) -> tuple[TypeAdapter[dict[str, Any]], dict[str, Any]]:
    # A TypedDict, not a model: parameter names such as "copy" or "schema" would clash with a model's attributes.
    arguments = with_config(ConfigDict(extra="forbid", arbitrary_types_allowed=False))(TypedDict(name, dict(fields)))  # type: ignore[operator]
    try:
        validator: TypeAdapter[dict[str, Any]] = TypeAdapter(arguments)
        schema = validator.json_schema(schema_generator=_PlainSchema)
    except PydanticSchemaGenerationError as error:
        raise ValueError(f"tool {name!r}: a parameter's type has no JSON form: {str(error).splitlines()[0]}") from error
    schema.pop("title", None)
    schema.setdefault("properties", {})
    for key, prop in schema["properties"].items():
        if key in about:
            prop.setdefault("description", about[key])
        if key in defaults:
            prop["default"] = TypeAdapter(Any).dump_python(defaults[key], mode="json")
    return validator, schema


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The description, and what the docstring says of each parameter; in Google's, NumPy's, reStructuredText's or Epydoc's style."""
    read = docstring_parser.parse(doc_of(function))
    about = {one.arg_name: " ".join(one.description.split()) for one in read.params if one.description}
    return (read.description or "").strip(), about


def tool_classes(module: ModuleType) -> list[type]:
    """The classes written in a module, or in its plug-in file, that have methods which are tools: `SessionTools` takes each."""
    own = [value for key, value in vars(module).items() if inspect.isclass(value) and not key.startswith("_")]
    return [
        kind
        for kind in own
        if kind.__module__ == module.__name__
        and any(isinstance(one, Tool) and one.is_method for base in kind.__mro__ for one in vars(base).values())
    ]
