"""The arithmetic of `calculate_output`: numbers, grader names and a few functions, read by hand-picked syntax and never executed.

    formula = Formula("0.8 * exact + 0.2 * min(1, near ^ 2)", names={"exact", "near"})
    formula({"exact": 1.0, "near": 0.5})        # 0.85

`^` and `**` are the power; `log` is the natural logarithm. Everything is a float, so no number can grow beyond its 64 bits.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping

from ...envs.registry import did_you_mean

MAX_CHARS = 2000
MAX_DEPTH = 100
"""Levels of nesting: parentheses, calls, and one for each term of a sum."""
MAX_EXPONENT = 64.0

FUNCTIONS: Mapping[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": lambda x: float(math.floor(x)),
    "ceil": lambda x: float(math.ceil(x)),
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_MANY = ("min", "max")  # take two arguments or more; the others take one
_BINARY: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,
}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>\*\*|[-+*/^(),]))"
)


class FormulaError(ValueError):
    """The formula has no finite value for these scores: a division by zero, an overflow, or a logarithm or root of what has none."""


class Formula:
    """A checked formula over named numbers. Calling it with a value for every name gives a float, or raises FormulaError.

    Raises ValueError saying what is wrong when the text is no formula, too long or too deep, or names what is not there.

    Example: `Formula("max(a, b) / 2", {"a", "b"})({"a": 1.0, "b": 3.0})` is 1.5.
    """

    def __init__(self, text: str, names: Collection[str]) -> None:
        self.text = text
        self.tree = _parse(text)
        self._names = set(names)
        self._check(self.tree, 0)

    def __call__(self, values: Mapping[str, float]) -> float:
        try:
            return self._value(self.tree, values)
        except ZeroDivisionError:
            raise FormulaError(f"{self.text!r} divides by zero at {_shown(values)}") from None
        except OverflowError:
            raise FormulaError(f"{self.text!r} overflows at {_shown(values)}") from None
        except FormulaError as error:
            raise FormulaError(f"{self.text!r} at {_shown(values)}: {error}") from None

    def _check(self, node: ast.expr, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError(f"the formula is nested more than {MAX_DEPTH} levels deep; group its terms, or simplify it")
        if isinstance(node, ast.Constant):
            _number(node)
        elif isinstance(node, ast.Name):
            if node.id not in self._names:
                hint = did_you_mean(node.id, sorted(self._names))
                raise ValueError(f"the formula names {node.id!r}, which is no grader here{hint}")
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            self._check(node.operand, depth + 1)
        elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            self._check(node.left, depth + 1)
            self._check(node.right, depth + 1)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            _check_call(node.func.id, len(node.args))
            for argument in node.args:
                self._check(argument, depth + 1)
        else:
            raise ValueError(f"the formula holds {ast.unparse(node)!r}; it may use + - * / ^, parentheses, {', '.join(FUNCTIONS)}")

    def _value(self, node: ast.expr, values: Mapping[str, float]) -> float:
        if isinstance(node, ast.Constant):
            return _number(node)
        if isinstance(node, ast.Name):
            return _finite(values[node.id], node)
        if isinstance(node, ast.UnaryOp):
            operand = self._value(node.operand, values)
            return -operand if isinstance(node.op, ast.USub) else operand
        if isinstance(node, ast.BinOp):
            left, right = self._value(node.left, values), self._value(node.right, values)
            if isinstance(node.op, ast.Pow):
                return _finite(_power(left, right), node)
            return _finite(_BINARY[type(node.op)](left, right), node)
        assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        arguments = [self._value(argument, values) for argument in node.args]
        try:
            return _finite(FUNCTIONS[node.func.id](*arguments), node)
        except ValueError:
            raise FormulaError(f"{node.func.id}({', '.join(f'{a:g}' for a in arguments)}) has no value") from None


def _parse(text: str) -> ast.expr:
    if len(text) > MAX_CHARS:
        raise ValueError(f"the formula has {len(text)} characters; at most {MAX_CHARS} are read")
    rewritten, depth = [], 0
    for token, _ in _tokens(text):
        depth += {"(": 1, ")": -1}.get(token, 0)
        if depth > MAX_DEPTH:
            raise ValueError(f"the formula is nested more than {MAX_DEPTH} levels deep; group its terms, or simplify it")
        rewritten.append("**" if token == "^" else token)
    try:
        return ast.parse(" ".join(rewritten), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"{text!r} is no formula; write for example 0.7 * a + 0.3 * b") from None


def _tokens(text: str) -> list[tuple[str, str]]:
    """(token, kind) of a formula. Only what `_TOKEN` knows ever reaches Python's parser."""
    found, position, stripped = list[tuple[str, str]](), 0, text.rstrip()
    while position < len(stripped):
        match = _TOKEN.match(stripped, position)
        if match is None:
            raise ValueError(
                f"the formula holds {stripped[position:].lstrip()[:1]!r}; it may use + - * / ^, parentheses, {', '.join(FUNCTIONS)}"
            )
        kind = str(match.lastgroup)
        token = match[kind]
        if kind == "number":
            if not math.isfinite(float(token)):
                raise ValueError(f"the number {token:.20} in the formula is too large")
            token = repr(float(token))
        found.append((token, kind))
        position = match.end()
    return found


def _check_call(name: str, count: int) -> None:
    if name not in FUNCTIONS:
        raise ValueError(f"the formula calls {name!r}{did_you_mean(name, list(FUNCTIONS))}")
    if name in _MANY and count < 2:
        raise ValueError(f"{name} in the formula takes two arguments or more, not {count}")
    if name not in _MANY and count != 1:
        raise ValueError(f"{name} in the formula takes one argument, not {count}")


def _number(node: ast.Constant) -> float:
    if isinstance(node.value, bool) or not isinstance(node.value, int | float):
        raise ValueError(f"the formula holds {node.value!r}; it may use numbers and graders' names")
    return float(node.value)


def _power(base: float, exponent: float) -> float:
    if abs(exponent) > MAX_EXPONENT:
        raise FormulaError(f"the exponent {exponent:g} is beyond {MAX_EXPONENT:g}")
    if base == 0 and exponent < 0:
        raise ZeroDivisionError
    try:
        return math.pow(base, exponent)
    except ValueError:
        raise FormulaError(f"{base:g} ^ {exponent:g} has no value") from None


def _finite(value: float, node: ast.expr) -> float:
    if not math.isfinite(value):
        raise FormulaError(f"{ast.unparse(node)} is {value}")
    return float(value)


def _shown(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in values.items()) or "no grader"
