"""The least a formula can be worth when each of its names lies in a range: interval arithmetic (Moore, 1966).

    least(Formula("0.5 * right + 0.5 * (1 - rude)", {"right", "rude"}), {"right": (0, 1), "rude": (0, 1)})      # 0.0

The bound is reached where every name stands once. Where one is repeated the formula may never be worth as little.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from itertools import product

from .formula import FUNCTIONS, Formula

Range = tuple[float, float]


def least(formula: Formula, ranges: Mapping[str, Range]) -> float:
    """The lower bound of the formula's values; -inf where there is none (a division by what may be 0, the logarithm of it).

    ranges: (least, greatest) of every name of the formula.
    """
    return _range(formula.tree, ranges)[0]


def _range(node: ast.expr, ranges: Mapping[str, Range]) -> Range:
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number), float(number)
        case ast.Name(id=name):
            return ranges[name]
        case ast.UnaryOp(op=op, operand=operand):
            low, high = _range(operand, ranges)
            return (-high, -low) if isinstance(op, ast.USub) else (low, high)
        case ast.BinOp(left=left, op=op, right=right):
            return _binary(op, _range(left, ranges), _range(right, ranges))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _call(name, [_range(argument, ranges) for argument in arguments])
    raise AssertionError(f"{ast.unparse(node)} passed the check of a formula")


def _binary(op: ast.operator, left: Range, right: Range) -> Range:
    match op:
        case ast.Add():
            return left[0] + right[0], left[1] + right[1]
        case ast.Sub():
            return left[0] - right[1], left[1] - right[0]
        case ast.Mult():
            return _times(left, right)
        case ast.Div():
            return _times(left, _reciprocal(right))
    return _power(left, right)


def _times(left: Range, right: Range) -> Range:
    products = [0.0 if 0.0 in pair else pair[0] * pair[1] for pair in product(left, right)]  # 0 * inf is 0 here: the inf is not reached
    return min(products), max(products)


def _reciprocal(of: Range) -> Range:
    low, high = of
    if low < 0 < high or low == high == 0:
        return -math.inf, math.inf
    return (-math.inf if high == 0 else 1 / high), (math.inf if low == 0 else 1 / low)


def _power(base: Range, exponent: Range) -> Range:
    if exponent[1] <= 0 and exponent[0] < 0:
        return _reciprocal(_power(base, (-exponent[1], -exponent[0])))
    whole = exponent[0] == exponent[1] and exponent[0].is_integer()
    if base[0] < 0 and not whole:
        if exponent[0] != exponent[1]:
            return -math.inf, math.inf
        base = 0.0, max(base[1], 0.0)  # a negative base has no value
    corners = [_raised(b, e) for b, e in product(base, exponent)]
    even_through_zero = whole and exponent[0] % 2 == 0 and exponent[0] > 0 and base[0] < 0 < base[1]
    return 0.0 if even_through_zero else min(corners), max(corners)


def _raised(base: float, exponent: float) -> float:
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.inf if base > 0 or exponent % 2 == 0 else -math.inf
    except ValueError:  # 0 to a negative power
        return math.inf


def _call(name: str, given: list[Range]) -> Range:
    lows, highs = [low for low, _ in given], [high for _, high in given]
    if name in ("min", "max"):
        pick = min if name == "min" else max
        return pick(lows), pick(highs)
    low, high = given[0]
    if name == "abs":
        return (0.0 if low < 0 < high else min(abs(low), abs(high))), max(abs(low), abs(high))
    return _monotone(name, low), _monotone(name, high)  # the others only rise


def _monotone(name: str, x: float) -> float:
    if name in ("sqrt", "log"):
        x = max(x, 0.0)  # below 0 there is no value
    if name == "log" and x == 0:
        return -math.inf
    try:
        return x if math.isinf(x) and name != "exp" else FUNCTIONS[name](x)
    except OverflowError:
        return math.inf
