"""Seeded values that fit a JSON schema, as far as tools use it: types, enums, unions, bounds, references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

WORDS = ("bolts", "a", "part 7", "x y", "ok")
MAX_DEPTH = 4


def sample(schema: Mapping[str, Any], seed: int, complete: bool = False) -> Any:
    """A value that fits `schema`. complete: with every property of an object, instead of the required ones and some others.

    Example: `sample({"type": "integer", "minimum": 3, "maximum": 3}, seed=0)` is 3.
    """
    return _Sampler(schema.get("$defs", {}), np.random.default_rng(seed), complete).draw(schema, 0)


@dataclass(frozen=True, slots=True)
class _Sampler:
    definitions: Mapping[str, Any]
    random: np.random.Generator
    complete: bool

    def draw(self, schema: Mapping[str, Any], depth: int) -> Any:
        if "$ref" in schema:
            return self.draw(self.definitions[schema["$ref"].rpartition("/")[2]], depth)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._one_of(schema["enum"])
        if union := schema.get("anyOf") or schema.get("oneOf"):
            return self.draw(self._one_of(union), depth)
        if schema.get("type") == "object":
            return self._object(schema, depth)
        if schema.get("type") == "array":
            size = max(int(schema.get("minItems", 0)), int(depth < MAX_DEPTH))
            return [self.draw(schema.get("items", {}), depth + 1) for _ in range(size)]
        return self._scalar(schema)

    def _scalar(self, schema: Mapping[str, Any]) -> Any:
        match schema.get("type"):
            case "integer":
                low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
                high = schema.get("maximum", schema.get("exclusiveMaximum", max(low, 0) + 11) - 1)
                return int(self.random.integers(low, high, endpoint=True))
            case "number":
                low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
                high = schema.get("maximum", schema.get("exclusiveMaximum", max(low, 0) + 10))
                return float(low + (high - low) * self.random.uniform(0.1, 0.9))
            case "boolean":
                return bool(self.random.integers(2))
            case "null":
                return None
            case _:
                return str(self._one_of(WORDS)).ljust(int(schema.get("minLength", 0)), "x")[: schema.get("maxLength")]

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        required = schema.get("required", ())
        wanted = {
            key: part
            for key, part in schema.get("properties", {}).items()
            if key in required or (depth < MAX_DEPTH and (self.complete or self.random.integers(2)))
        }
        return {key: self.draw(part, depth + 1) for key, part in wanted.items()}

    def _one_of(self, choices: Any) -> Any:
        return choices[int(self.random.integers(len(choices)))]
