"""Tools: the schema that the signature says, arguments checked like a policy's mistakes, faults told apart from rejections."""

from __future__ import annotations

import asyncio
import types
from functools import partial
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.envs.tools import ToolContext, ToolRejected, ToolSet, tool

pytestmark = pytest.mark.unit

CONTEXT = ToolContext("train-17/0", seed=17, data={"level": 2})


class Region(BaseModel):
    low: int
    high: int


@tool
def measure(
    part: int, feature: Literal["bore", "face"], *, repeats: Annotated[int, Field(ge=1, le=3)] = 1, copy: bool = False, context: ToolContext
) -> str:
    """Measure one feature of a part.

    Costs one unit.

    Args:
        part: serial number
            of the part.
        feature (str): which feature.

    Returns:
        the observation.
    """
    return f"{part!r} {feature} x{repeats} copy={copy} seed={context.seed} level={context.data['level']}"


@tool
def search(region: Region, tags: list[str]) -> str:
    return f"{type(region).__name__} {region.low}..{region.high} {','.join(tags)}"


@tool
async def later(text: str) -> str:
    """Echo."""
    return text


@tool
def broken(kind: str) -> str:
    """Misbehaves in the way asked for."""
    if kind == "rejects":
        raise ToolRejected("part 17 has no such feature")
    if kind == "returns nothing":
        return None  # type: ignore[return-value]
    if kind == "returns a set":
        return {1}  # type: ignore[return-value]
    raise RuntimeError("database is locked")


TOOLS = ToolSet([measure, search, later, broken])


def rejection(name: str, arguments: dict[str, Any]) -> str:
    with pytest.raises(ToolRejected) as caught:
        TOOLS.call(name, arguments, CONTEXT)
    return str(caught.value)


def test_schema_is_signature_and_docstring_without_the_context() -> None:
    function = measure.schema()["function"]
    assert function["name"] == "measure"
    assert function["description"] == "Measure one feature of a part.\n\nCosts one unit."
    assert function["parameters"] == {
        "type": "object",
        "additionalProperties": False,
        "required": ["part", "feature"],
        "properties": {
            "part": {"type": "integer", "description": "serial number of the part."},
            "feature": {"type": "string", "enum": ["bore", "face"], "description": "which feature."},
            "repeats": {"type": "integer", "minimum": 1, "maximum": 3, "default": 1},
            "copy": {"type": "boolean", "default": False},
        },
    }
    assert list(function["parameters"]["properties"]) == ["part", "feature", "repeats", "copy"]


def test_a_tool_stays_a_function() -> None:
    assert measure(1, "bore", context=CONTEXT) == "1 bore x1 copy=False seed=17 level=2"


def test_arguments_are_converted_and_defaults_filled_in() -> None:
    assert TOOLS.call("measure", {"part": "17", "feature": "bore"}, CONTEXT) == "17 bore x1 copy=False seed=17 level=2"
    assert TOOLS.call("search", {"region": {"low": 1, "high": 2}, "tags": ("a", "b")}, CONTEXT) == "Region 1..2 a,b"
    assert TOOLS.call("later", {"text": "hi"}, CONTEXT) == "hi"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"feature": "bore"}, "measure: argument 'part' is missing"),
        ({"part": 1, "feature": "boer"}, "measure: argument 'feature': must be 'bore' or 'face'"),
        ({"part": 1, "feature": "bore", "repeat": 2}, "measure: there is no argument 'repeat'; did you mean 'repeats'?"),
        ({"part": 1, "feature": "bore", "repeats": 4}, "measure: argument 'repeats': must be less than or equal to 3"),
        ({"part": 10**30, "feature": "bore"}, "measure: part is an integer beyond 64 bits"),
        ({"part": float("nan"), "feature": "bore"}, "measure: part is nan, not a finite number"),
        ({"part": {1}, "feature": "bore"}, "measure: part is a set, which JSON does not have"),
        ({"part": 1, "feature": "bore", "context": {}}, "measure: there is no argument 'context'"),
    ],
)
def test_wrong_arguments_are_rejections_the_policy_can_read(arguments: dict[str, Any], says: str) -> None:
    assert rejection("measure", arguments).startswith(says)


def test_an_argument_that_does_not_fit_its_pattern_is_the_policys_mistake() -> None:
    @tool
    def book(code: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]) -> str:
        """Book a flight."""
        return code

    assert ToolSet([book]).call("book", {"code": "HND"}, CONTEXT) == "HND"
    with pytest.raises(ToolRejected, match=r"argument 'code': must be of the form \^\[A-Z\]\{3\}\$"):
        ToolSet([book]).call("book", {"code": "xyz"}, CONTEXT)


def test_a_rejection_is_short_whatever_is_wrong() -> None:
    some = rejection("measure", {"part": 1, "feature": "bore", **{"k" * 200 + str(i): 1 for i in range(100)}})
    assert some.count("there is no argument") == 20 and some.endswith("; and 80 more") and len(some) < 6000
    said = rejection("measure", {f"k{i}": 1 for i in range(20_000)})
    assert said == "measure: 20,002 values in the arguments are wrong; it takes part, feature, repeats, copy"
    assert rejection("search", {"tags": [[]] * 20_000}).startswith("search: 20,001 values in the arguments are wrong")


def test_deep_nesting_and_lone_surrogates_are_rejections() -> None:
    deep: Any = 0
    for _ in range(2000):
        deep = [deep]
    assert "nested more than 32 levels" in rejection("measure", {"part": deep, "feature": "bore"})
    assert rejection("later", {"text": "\ud800"}) == "later: text holds a lone surrogate, which is no valid text"
    rejection("meas\ud800ure", {}).encode("utf-8")


def test_unknown_tool_names_the_tools_there_are() -> None:
    assert rejection("measur", {}) == "there is no tool 'measur'; the tools are measure, search, later, broken"


def test_a_tool_may_reject_and_anything_else_is_a_failure() -> None:
    assert rejection("broken", {"kind": "rejects"}) == "part 17 has no such feature"
    details = {
        "raises": "RuntimeError: database is locked",
        "returns nothing": "returned None; return what the policy is to read",
        "returns a set": "its result is a set, which JSON does not have; a tool returns str or plain JSON",
    }
    for kind, detail in details.items():
        with pytest.raises(EpisodeFailure) as caught:
            TOOLS.call("broken", {"kind": kind}, CONTEXT)
        failure = caught.value.failure
        assert failure.kind == FailureKind.TOOL_ERROR
        assert failure.culprit == "tool broken"
        assert failure.detail.startswith(detail)


@tool
def stock(item: str) -> dict[str, Any]:
    """What is there, as JSON."""
    return {item: 3, "größe": [1.5, None, True], "nested": {"a": ()}}


def test_what_is_no_text_is_read_as_json() -> None:
    assert ToolSet([stock]).call("stock", {"item": "bolts"}, CONTEXT) == '{"bolts": 3, "größe": [1.5, null, true], "nested": {"a": []}}'


def test_signatures_without_a_schema_are_refused() -> None:
    def untyped(part) -> str:
        return ""

    def variadic(*parts: int) -> str:
        return ""

    def silent(part: int) -> None:
        pass

    def opaque(part: threading_lock) -> str:  # type: ignore[name-defined]  # noqa: F821
        return ""

    refused: list[tuple[Any, str]] = [
        (untyped, "needs a type annotation"),
        (variadic, "variadic"),
        (silent, "to return nothing"),
        (opaque, "cannot be resolved"),
    ]
    for function, says in refused:
        with pytest.raises(ValueError, match=says):
            tool(function)


def test_tool_sets_refuse_doubles_plain_functions_and_empty_modules() -> None:
    with pytest.raises(ValueError, match="two tools are called 'measure'"):
        ToolSet([measure, measure])
    with pytest.raises(ValueError, match="decorate the function with @tool"):
        ToolSet([len])  # type: ignore[list-item]
    module = types.ModuleType("shop")
    with pytest.raises(ValueError, match="'shop' has no tools"):
        ToolSet.from_module(module)
    module.measure, module._search = measure, search  # type: ignore[attr-defined]
    assert ToolSet.from_module(module).names == ["measure"]


def test_async_tools_share_one_event_loop_so_that_a_client_survives_between_calls() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    @tool
    async def ask(text: str) -> str:
        """Ask through a client that belongs to the loop of its first use."""
        loops.append(asyncio.get_running_loop())
        return text if loops[0] is asyncio.get_running_loop() else "the client's loop is closed"

    tools = ToolSet([ask])
    assert [tools.call("ask", {"text": word}, CONTEXT) for word in ("a", "b")] == ["a", "b"]
    assert not loops[0].is_closed()


def test_an_async_tool_past_its_deadline_is_a_timeout_and_its_own_timeout_an_error() -> None:
    @tool
    async def hang() -> str:
        """Never answer."""
        await asyncio.Event().wait()
        return ""

    @tool
    async def gives_up() -> str:
        """Raise what a client raises."""
        raise TimeoutError("the shop does not answer")

    for name, deadline_s, kind, detail in (
        ("hang", 0.05, FailureKind.TOOL_TIMEOUT, "no answer within 0.05 s"),
        ("gives_up", 60.0, FailureKind.TOOL_ERROR, "shop"),
    ):
        with pytest.raises(EpisodeFailure, match=detail) as caught:
            ToolSet([hang, gives_up], deadline_s=deadline_s).call(name, {}, CONTEXT)
        assert (caught.value.failure.kind, caught.value.failure.culprit) == (kind, f"tool {name}")


def test_a_partial_and_a_callable_object_are_tools() -> None:
    def weigh(scale: str, part: int) -> str:
        """Weigh a part."""
        return f"{scale}: {part}"

    made = tool(partial(weigh, "fine"))
    assert (made.name, made.description, list(made.parameters["properties"])) == ("weigh", "Weigh a part.", ["part"])
    assert ToolSet([made]).call("weigh", {"part": 3}, CONTEXT) == "fine: 3"
