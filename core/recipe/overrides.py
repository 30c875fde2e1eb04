"""Command-line overrides, `--set key=value`, as recipe data."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.envs.registry import did_you_mean
from burnish.rewards.config import default_name
from burnish.rpc.payload import utf8
from burnish.rpc.urls import HIDDEN, may_hold_secret, without_secrets


@dataclass(frozen=True, slots=True)
class Override:
    """One `--set`: where, and the value. Example: `parse_override("rft.lr=1e-5")` is `Override("rft.lr=1e-5", ("rft", "lr"), 1e-5)`."""

    text: str
    path: tuple[str, ...]
    value: Any

    @property
    def shown(self) -> str:
        """The text as errors repeat it, without what may be a secret."""
        return shown_override(self.text)

    def apply(self, data: dict[str, Any], source: str) -> None:
        """Write the value into recipe data; tables on the way are made. An item of a list is addressed by its number or its name."""
        here: Any = data
        for key in self.path[:-1]:
            here = here.setdefault(key, {}) if isinstance(here, dict) else here[self._index(here, key)]
            if not isinstance(here, dict | list):
                raise ValueError(f"--set {self.shown}: {key} is a {kind_of(here)} in {source}, not a table")
        last = self.path[-1]
        if isinstance(here, dict):
            here[last] = self.value
        else:
            here[self._index(here, last)] = self.value

    def _index(self, items: list[Any], key: str) -> int:
        found = position(items, key)
        if found is not None:
            return found
        choices = [_called(item) or str(i) for i, item in enumerate(items)]
        raise ValueError(f"--set {self.shown}: there is no item {key!r}{did_you_mean(key, choices)}")


def shown_override(text: str, most: int | None = None) -> str:
    """A `key=value` as errors repeat it. Example: `shown_override("args.api_key=sk-1")` is `"args.api_key=…"`."""
    key, equals, value = text.partition("=")
    hidden = bool(value) and any(may_hold_secret(part.strip()) for part in key.split("."))
    shown = without_secrets(f"{key}{equals}{HIDDEN if hidden else value}")
    return shown if most is None or len(shown) <= most else f"{shown[:most]}…"


def position(items: Sequence[Any], key: str) -> int | None:
    """Where in a list the item is that a key addresses, by its name or its number; None where there is none."""
    names = [_called(item) for item in items]
    if key in names:
        return names.index(key)
    return int(key) if key.isdigit() and int(key) < len(items) else None


def _called(item: Any) -> str:
    """What an item of a list goes by: its name, the kind of a phase, or what a reward is called after."""
    if not isinstance(item, Mapping):
        return ""
    given = [item.get(key) for key in ("use", "verifier_id", "verifier")]
    use, verifier_id, verifier = (one if isinstance(one, str) else None for one in given)
    return str(item.get("name") or item.get("kind") or default_name(use, verifier_id, verifier))


SET_FORM = "key=value or table.key=value, for example --set rft.steps=50"


def parse_override(text: str, option: str = "--set", form: str = SET_FORM) -> Override:
    """`a.b=value`: the value is read as TOML, and taken as a plain string when it is not TOML. option, form: what errors call it, and how
    it reads. Raises ValueError without a key or `=`."""
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if utf8(text) != text:
        raise ValueError(f"{option} {shown_override(text)!r}: is not UTF-8 text")
    if not equals or not all(path):
        raise ValueError(f"{option} {shown_override(text)}: must read {form}")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return Override(text, path, value.strip())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{option} {shown_override(text, 60)}: its value cannot be read: {error}") from None
    return Override(text, path, parsed["value"] if list(parsed) == ["value"] else value.strip())


def kind_of(value: Any) -> str:
    """What TOML calls a value of this type."""
    names = {bool: "boolean", int: "integer", float: "float", str: "string", list: "list", dict: "table"}
    return names.get(type(value), type(value).__name__)
