"""Made-up inputs: any JSON, and good JSON with something wrong in it."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

KEYS = st.sampled_from(
    [
        *("id", "type", "name", "input", "reference", "messages", "role", "content", "tools", "function", "body", "value", "text"),
        *("metrics_list", "aggregate_reward_score", "graders", "calculate_output", "operation", "evaluation_metric", "range", "labels"),
    ]
)
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [
        *("", " ", "\x00", "\ud800", "{{", "}}", "{{item.x}}", "{{item}}", "{{sample.output_json.x[0]}}", "{{item.x.y[99999]}}", "NaN"),
        *(0, -1, True, False, None, 1e308, -0.0, 10**30, 10**400, float("nan"), float("inf"), [], {}, [[]], [None], {"": None}),
    ]
)
LEAVES = st.one_of(ODD, st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20))
JSON: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.one_of(KEYS, st.text(max_size=8)), inner, max_size=4)),
    max_leaves=12,
)


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside JSON data, as keys and positions."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for key, item in inner for place in places(item, (*here, key)))]


@st.composite
def spoiled(draw: st.DrawFn, good: st.SearchStrategy[Any]) -> Any:
    """Good data after up to three changes: something replaced, removed, doubled or added."""
    value = copy.deepcopy(draw(good))  # what is drawn may be drawn again, and must not change meanwhile
    for _ in range(draw(st.integers(0, 3))):
        *way, last = draw(st.sampled_from([place for place in places(value) if place] or [(None,)]))
        if last is None:
            return draw(JSON)
        holder = value
        for key in way:
            holder = holder[key]
        change = draw(st.sampled_from(["replace", "replace", "remove", "double", "add"]))
        if change == "replace":
            holder[last] = copy.deepcopy(draw(JSON))
        elif change == "remove":
            del holder[last]
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last] if change == "double" else draw(JSON)))
        else:
            holder[draw(st.one_of(KEYS, st.text(max_size=5)))] = copy.deepcopy(holder[last] if change == "double" else draw(JSON))
    return value
