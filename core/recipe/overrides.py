"""Command-line overrides, `--set key=value`, as recipe data."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Any

from burnish.envs.registry import did_you_mean
from burnish.rpc.payload import utf8


@dataclass(frozen=True, slots=True)
class Override:
    """One `--set`: where, and the value. Example: `parse_override("rft.lr=1e-5")` is `Override("rft.lr=1e-5", ("rft", "lr"), 1e-5)`."""

    text: str
    path: tuple[str, ...]
    value: Any

    def apply(self, data: dict[str, Any], source: str) -> None:
        """Write the value into recipe data; tables on the way are made. An item of a list is addressed by its number or its name."""
        here: Any = data
        for key in self.path[:-1]:
            here = here.setdefault(key, {}) if isinstance(here, dict) else here[self._index(here, key)]
            if not isinstance(here, dict | list):
                raise ValueError(f"--set {self.text}: {key} is a {kind_of(here)} in {source}, not a table")
        last = self.path[-1]
        if isinstance(here, dict):
            here[last] = self.value
        else:
            here[self._index(here, last)] = self.value

    def _index(self, items: list[Any], key: str) -> int:
        names = [item.get("name") or item.get("kind", "") if isinstance(item, dict) else "" for item in items]
        if key in names:
            return names.index(key)
        if key.isdigit() and int(key) < len(items):
            return int(key)
        choices = [name or str(i) for i, name in enumerate(names)]
        raise ValueError(f"--set {self.text}: there is no item {key!r}{did_you_mean(key, choices)}")


SET_FORM = "key=value or table.key=value, for example --set rft.steps=50"


def parse_override(text: str, option: str = "--set", form: str = SET_FORM) -> Override:
    """`a.b=value`: the value is read as TOML, and taken as a plain string when it is not TOML. option, form: what errors call it, and how
    it reads. Raises ValueError without a key or `=`."""
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if utf8(text) != text:
        raise ValueError(f"{option} {text!r}: is not UTF-8 text")
    if not equals or not all(path):
        raise ValueError(f"{option} {text}: must read {form}")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return Override(text, path, value.strip())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{option} {text[:60]}…: its value cannot be read: {error}") from None
    return Override(text, path, parsed["value"] if list(parsed) == ["value"] else value.strip())


def kind_of(value: Any) -> str:
    """What TOML calls a value of this type."""
    names = {bool: "boolean", int: "integer", float: "float", str: "string", list: "list", dict: "table"}
    return names.get(type(value), type(value).__name__)
