"""Arguments of commands: `--arg key=value`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from burnish.recipe.overrides import parse_override

ARG_FORM = "key=value"


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """`--arg key=value` options as keyword arguments. Raises ValueError without a key or `=`, or when a key has dots."""
    arguments: dict[str, Any] = {}
    for text in texts:
        override = parse_override(text, "--arg", ARG_FORM)
        if len(override.path) != 1:
            raise ValueError(f"--arg {text}: must read {ARG_FORM}; give a table as key={{a = 1}}")
        arguments[override.path[0]] = override.value
    return arguments
