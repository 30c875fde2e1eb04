"""Chat templates rendered within bounds: a template comes with its model, and is a program of whoever made that.

jinja2's sandbox keeps a template from reaching anything, but not from going on for ever (two loops over `range(99999)`) or from making a
text that fills the memory (`'a' * 10**10`). So every turn of a loop, every call of a macro or a block and every number of a range is a
step, of which a rendering has so many and so much time, and what is multiplied, added, joined or shown is measured first: a list of two
lists of two lists … takes a few names to make, and for ever to write down. What all of these make together is bounded too, kept or not,
and what filters, methods, macros and slices give counts as well, once it is there.

Not bounded is what a single filter, test or method takes (`center(10**10)`, `replace` of many short texts by long ones).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, MappingView, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, Final

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MOST_STEPS: Final = 1_000_000
"""Of one rendering; a conversation of a thousand messages takes some thousands."""
DEADLINE_S: Final = 60.0
MOST_CHARACTERS: Final = 64 << 20
"""Of one rendering, and of one value within it."""
MOST_MADE: Final = 512 << 20
"""Characters of all values that one rendering makes, an item of a list counting as eight: a conversation that grows piece by piece is made
anew with each."""
MOST_BITS: Final = 10_000
"""Of a number."""


class Unbounded(ValueError):
    """A template that takes more steps, time or memory than a conversation can need."""


@dataclass
class _Budget:
    """What is left of one rendering."""

    ends: float
    steps: int
    made: int = 0

    def make(self, characters: int) -> None:
        self.made += characters
        if self.made > MOST_MADE:
            raise Unbounded(f"the chat template makes more than {MOST_MADE:,} characters in all")

    def take(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise Unbounded(f"the chat template takes more than {MOST_STEPS:,} steps, as a loop without end does")
        if time.monotonic() > self.ends:
            raise Unbounded(f"the chat template takes more than {DEADLINE_S:g} s")


_BUDGET: ContextVar[_Budget] = ContextVar("budget")


def rendered(template: str, values: Mapping[str, Any]) -> str:
    """The text of a template, as `transformers` renders it.

    values: its variables. Raises what the template raises, and `Unbounded`.

    Example: `rendered("{{ messages[0].content }}", {"messages": [{"role": "user", "content": "hi"}]})`.
    """
    token = _BUDGET.set(_Budget(time.monotonic() + DEADLINE_S, MOST_STEPS))
    try:
        pieces, length = list[str](), 0
        for piece in _compiled(template).generate(**values):
            length += len(piece)
            if length > MOST_CHARACTERS:
                raise _too_long()
            pieces.append(piece)
        return "".join(pieces)
    finally:
        _BUDGET.reset(token)


class BoundedTemplate:
    """A compiled template as `transformers` uses one, rendered within bounds. Raises what jinja2 raises for a template that is none."""

    def __init__(self, template: str) -> None:
        self._template, self.environment = template, _compiled(template).environment

    def render(self, **values: Any) -> str:
        """Raises as `rendered` does."""
        return rendered(self._template, values)


def render_chat(tokenizer: Any, messages: Sequence[Any], generate: bool, given: Mapping[str, Any] | None = None) -> str:
    """A conversation in the chat template of a tokenizer, as its `apply_chat_template` renders it.

    messages: as the template takes them. generate: up to where the assistant begins to speak. given: `tools`, and further variables of the
    template. Raises as `rendered` does, and ValueError when the tokenizer has no template.
    """
    more = dict(given or {})
    told = {**tokenizer.special_tokens_map, "tools": None, "documents": None, **more}
    template = tokenizer.get_chat_template(None, more.get("tools"))
    return rendered(template, {**told, "messages": list(messages), "add_generation_prompt": generate})


class _Steps(Extension):
    """Counts, and takes `{% generation %}`, which marks what an assistant says and changes nothing of the text."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)

    def step(self) -> bool:
        _BUDGET.get().take(1)
        return True

    def concat(self, *values: Any) -> str:
        texts = [str(_shown(value)) for value in values]
        _check_length(sum(map(len, texts)))
        return "".join(texts)

    def slice(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        part = value[start:stop:step]
        _BUDGET.get().make(_size(part))
        return part


class _Counted(NodeTransformer):
    """Puts a step at the beginning of everything that can be repeated."""

    def __init__(self, steps: _Steps) -> None:
        self.steps = steps

    def _call(self, name: str, values: Sequence[nodes.Expr] = ()) -> nodes.Call:
        return self.steps.call_method(name, list(values), lineno=1)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # jinja2's names
        if node.test is not None:
            node.test = nodes.And(self._call("step"), node.test, lineno=node.lineno)
        return self.visit_Macro(node)

    def visit_Macro(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._call("step"), lineno=node.lineno))
        return node  # type: ignore[no-any-return]

    visit_CallBlock = visit_Block = visit_Macro

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._call("concat", node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        ends = (node.arg.start, node.arg.stop, node.arg.step)
        return self._call("slice", [node.node, *(end or nodes.Const(None) for end in ends)])


class _Bounded(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Steps, LoopControlExtension], finalize=_written)
        self.filters["tojson"] = _to_json
        self.filters = {name: _counted(function, joins=name == "join") for name, function in self.filters.items()}
        del self.globals["lipsum"]
        self.globals |= {"range": _range, "raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        steps = self.extensions[_Steps.identifier]
        assert isinstance(steps, _Steps)
        return _Counted(steps).visit(super()._parse(source, name, filename))  # type: ignore[no-any-return]

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            length = len(left) + len(right)
            _check_length(length * _bytes_each(left), length * (1 if isinstance(left, str) else ITEM))
        elif operator == "*":
            for one, times in ((left, right), (right, left)):
                if isinstance(one, str | bytes | list | tuple) and isinstance(times, int):
                    _check_length(len(one) * max(0, times) * _bytes_each(one))
            _check_number(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_number(*[left] * min(abs(right), MOST_BITS + 1))
        elif operator == "%" and isinstance(left, str):
            _check_format(left, _shown(right))
        value = super().call_binop(context, operator, left, right)
        if operator == "%":
            _BUDGET.get().make(_size(value))
        return value

    def call(self, context: Any, called: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(called, "__self__", None)
        if isinstance(owner, str) and getattr(called, "__name__", "") == "join":
            _measure(args)
        value = super().call(context, called, *args, **kwargs)
        if not isinstance(owner, _Steps) and value is not owner and not any(value is one for one in args):
            _BUDGET.get().make(_size(value))
        return value


@lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    return _Bounded().from_string(template)


def _counted(function: Callable[..., Any], joins: bool) -> Callable[..., Any]:
    """A filter of which what it makes is counted. joins: whether it puts together what it is given, which is then measured first."""

    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        if joins:
            _measure(args)
        value = function(*args, **kwargs)
        if not any(value is one for one in args):
            _BUDGET.get().make(_size(value))
        return value

    return counted


def _measure(args: Sequence[Any]) -> None:
    """Count what joining lists would make, before it is made."""
    texts = (item for one in args if isinstance(one, list | tuple) for item in one if isinstance(item, str))
    _check_length(sum(map(len, texts)))


def _size(value: Any) -> int:
    """What a value counts that was made."""
    return len(value) if isinstance(value, str | bytes) else ITEM * len(value) if isinstance(value, list | tuple | dict) else 0


def _bytes_each(value: Any) -> int:
    return 1 if isinstance(value, str | bytes) else 64


def _range(*ends: int) -> range:
    numbers = range(*ends)
    _BUDGET.get().take(len(numbers[: MOST_STEPS + 1]))  # the length of a long one is no length to Python
    return numbers


def _refuse(message: str) -> None:
    raise TemplateError(message)


ITEM: Final = 8
_HOLDERS: Final = (list, tuple, Mapping, MappingView, Namespace)


def _shown(value: Any) -> Any:
    """A value that is about to be written down; each thing that it holds, as often as it holds it, is a step."""
    inner: list[Any] = [value] if isinstance(value, _HOLDERS) else []
    while inner:
        one = inner.pop()
        if isinstance(one, Namespace):
            _refuse("a namespace is no text")
        _BUDGET.get().take(len(one))
        held = [*one, *one.values()] if isinstance(one, Mapping) else one
        _BUDGET.get().make(sum(len(part) for part in held if isinstance(part, str)))
        inner += [part for part in held if isinstance(part, _HOLDERS)]
    return value


def _written(value: Any) -> Any:
    """A value that is put into the text, or into a block of it that is kept."""
    if isinstance(value, str):
        _BUDGET.get().make(len(value))
    return _shown(value)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    _shown(value)
    if isinstance(indent, int):
        _check_length(1000 * indent)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _check_length(length: int, made: int | None = None) -> None:
    """Raise Unbounded for a value that would be so long, or too much beside the others. made: what it counts among those, where that is
    another."""
    if length > MOST_CHARACTERS:
        raise _too_long()
    _BUDGET.get().make(length if made is None else made)


def _too_long() -> Unbounded:
    return Unbounded(f"the chat template makes more than {MOST_CHARACTERS:,} characters")


def _check_number(*factors: Any) -> None:
    if sum(one.bit_length() for one in factors if isinstance(one, int)) > MOST_BITS:
        raise Unbounded(f"the chat template makes a number of more than {MOST_BITS:,} bits")


def _check_format(form: str, values: Any) -> None:
    """Of `'%9d' % values`: no width that is longer than a text may be."""
    widths = [int(digits[-12:]) for digits in "".join(one if one.isdigit() else " " for one in form).split()]
    given = values if isinstance(values, tuple) else (values,)
    _check_length(max([*widths, *(one for one in given if "*" in form and isinstance(one, int)), 0]))
