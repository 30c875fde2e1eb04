"""The reference of the recipe: every table and key, as docs/recipe.md and `burnish recipe` show it.

What a key does stands in the docstring of the config class that has it, in sentences `key: what it does.` or `key, other_key: …`; its type,
limits and default are those of the field. So the page follows from the code that reads recipes, and a key without a description is found by
a test.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel

from burnish.envs.pydantic_words import inner_model, is_model, kinds_of
from burnish.envs.registry import did_you_mean
from burnish.recipe.config import RunConfig
from burnish.recipe.platforms import OVERLAID
from burnish.trainer.phases.common import PHASE_OWNS

HEAD = """\
# Every table and key of a recipe

`make docs` writes this page out of the code that reads recipes, and `burnish recipe` prints it; `burnish recipe rft` prints one table.

A recipe is one TOML file. What it leaves out has the default given here; – is no value. `--set rft.lr=1e-5` overrides one key for one run,
`--set rewards.verdict.weight=2` one of an item of a list, by its name or its number (`rewards.0`). What a recipe misspells, and what would
have no effect, is refused with the key's name. Paths are relative to the folder that burnish is started in. A run keeps the recipe, every
default written out, in its `config.json`.
"""
OVERLAY = "Also below `[cpu]` and `[gpu]`, where it counts on that platform ([gpus.md](gpus.md))."
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


@dataclass(frozen=True, slots=True)
class RecipeKey:
    """One key of a table. type, default: in words and in TOML."""

    name: str
    type: str
    default: str
    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """One table: its heading ("rft.objective", "services.NAME", "" for the recipe's own keys), how TOML writes it, what it is, its keys."""

    name: str
    heading: str
    text: str
    keys: tuple[RecipeKey, ...]

    def markdown(self) -> str:
        rows = [f"| `{key.name}` | {_cell(key.type)} | {_cell(key.default)} | {_cell(key.text)} |" for key in self.keys]
        head = ["| key | type | default | what it does |", "|---|---|---|---|"]
        return "\n".join([f"## {self.heading}", "", _cell(self.text), "", *head, *rows]) + "\n"


def recipe_page(table: str | None = None) -> str:
    """The whole page, or the part of one table as Markdown. Raises ValueError when there is no such table."""
    tables = list(recipe_tables())
    if table is None:
        return "\n".join([HEAD, *(one.markdown() for one in tables)])
    found = [one.markdown() for one in tables if one.name == table or one.name.startswith(f"{table}.")]
    if not found:
        known = [one.name for one in tables if one.name]
        raise ValueError(f"a recipe has no table {table!r}{did_you_mean(table, known)}")
    return "\n".join(found)


def recipe_tables() -> Iterator[Table]:
    """Every table, in the order in which the config has them; a table within a table follows it."""
    return _tables(RunConfig, "", "At the top")


def _tables(model: type[BaseModel], name: str, heading: str) -> Iterator[Table]:
    schema = model.model_json_schema()
    said = descriptions(model)
    keys, inner = [], []
    for key, field in model.model_fields.items():
        table = inner_model(field.annotation)
        if kinds_of(field.annotation):
            keys.append(
                RecipeKey(key, f"list of tables, each with a `kind`: {', '.join(map(str, kinds_of(field.annotation)))}", "`[]`", said[key])
            )
        elif table is not None and Literal[False] in get_args(field.annotation):
            keys.append(RecipeKey(key, "table or `false`", "–", said[key]))
        elif table is not None:
            inner.append(_inner(name, key, table, field.annotation))
        elif not (name == "learner.optimizer" and key in PHASE_OWNS):  # refused there: every phase has its own
            keys.append(RecipeKey(key, _type(schema["properties"][key]), _default(model, key), said[key]))
    yield Table(name, heading, _summary(model, name), tuple(keys))
    for below in inner:
        yield from _tables(*below)


def _inner(above: str, key: str, table: type[BaseModel], annotation: Any) -> tuple[type[BaseModel], str, str]:
    name = f"{above}.{key}" if above else key
    if is_model(annotation):
        return table, name, f"`[{name}]`"
    if str(annotation).startswith("dict"):
        return table, f"{name}.NAME", f"`[{name}.NAME]`"
    return table, name, f"`[[{name}]]`"


def _summary(model: type[BaseModel], name: str) -> str:
    """The docstring's first sentence, without the table's name, and what stands before the keys of a paragraph."""
    first, *rest = _paragraphs(model)
    about = re.sub(r"^The `\[[^]]*\]` table(: |\.$)", "", first)
    begins = _begins(model.model_fields)
    leads = [paragraph[: found.start()].strip() for paragraph in rest if (found := begins.search(paragraph))]
    said = [f"{about[:1].upper()}{about[1:]}", *leads, OVERLAY if name in OVERLAID else ""]
    return " ".join(sentence for sentence in said if sentence)


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """What the docstrings of a config class and its bases say of each of its keys, those of a class before those of its bases.

    Raises ValueError naming the class and the keys that no sentence `key: …` begins with.
    """
    said: dict[str, str] = {}
    for cls in model.__mro__:
        if cls is not BaseModel and issubclass(cls, BaseModel):
            for key, text in _sentences(cls, _begins(model.model_fields)):
                said.setdefault(key, text)
    missing = [key for key, field in model.model_fields.items() if key not in said and inner_model(field.annotation) is None]
    if missing:
        raise ValueError(f"the docstring of {model.__name__} does not say what {', '.join(missing)} is: write `{missing[0]}: …`")
    return said


def _begins(keys: Iterable[str]) -> re.Pattern[str]:
    """Where a sentence about keys begins: `key: ` or `key, other_key: ` behind another sentence's end."""
    names = "|".join(sorted(map(re.escape, keys), key=len, reverse=True))
    return re.compile(rf"(?:^|(?<=[.;)] ))((?:{names})(?:, (?:{names}))*): ")


def _sentences(cls: type[BaseModel], begins: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    for paragraph in _paragraphs(cls):
        parts = begins.split(paragraph)
        for named, text in zip(parts[1::2], parts[2::2], strict=True):
            for key in named.split(", "):
                yield key, text.strip().rstrip(";.")


def _paragraphs(cls: type[BaseModel]) -> list[str]:
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


def _type(schema: Mapping[str, Any]) -> str:
    """A field's JSON schema in words. Example: `{"type": "integer", "minimum": 1}` is "integer ≥ 1"."""
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    kind = schema.get("type", "any")
    if kind == "array" and "prefixItems" in schema:
        return f"[{', '.join(_type(one) for one in schema['prefixItems'])}]"
    if kind == "array":
        return f"list of {_type(schema['items'])}"
    if kind == "object":
        return "table"
    bounds = " ".join(f"{sign} {_toml(schema[bound])}" for bound, sign in BOUNDS.items() if bound in schema)
    return f"{kind} {bounds}".strip()


def _default(model: type[BaseModel], key: str) -> str:
    field = model.model_fields[key]
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value == "":
        return "–"
    return f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return f"{value:g}" if value != int(value) else f"{value:.1f}"  # no infinity: the configs allow none
    return f"{value:_}" if isinstance(value, int) and not isinstance(value, bool) else json.dumps(value)


def _cell(text: str) -> str:
    return re.sub(r"docs/([\w-]+\.md)", r"[\1](\1)", text.replace("|", "\\|"))
