"""The `{{ … }}` of grader JSON: references into the sample (what the policy wrote) and the item (the task's data).

    Template("{{item.question}} -> {{sample.output_text}}").fill(sample, {"question": "2 + 2"})

A reference is a path, looked up and never evaluated. What it brings in is data: braces inside it are not looked at again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ...envs.registry import did_you_mean

MAX_REFERENCES = 200
SAMPLE_VARIABLES = ("output_text", "output_json")
_STEP = re.compile(r"\.?(?P<key>[^.\[\]\s{}]+)|\[(?P<index>[0-9]{1,9})\]|\[(?P<quote>['\"])(?P<quoted>[^'\"]*)(?P=quote)\]")

Reference = tuple[str | int, ...]


class MissingReference(ValueError):
    """The task's data has not what a template refers to."""


class UnreadableOutput(ValueError):
    """The policy's answer is no JSON, or lacks what a template refers to: the policy's doing, and worth the least."""


@dataclass(frozen=True)
class Sample:
    """What the policy answered, None when it never did. Example: `Sample('{"x": 1}').output_json` is `{"x": 1}`."""

    answer: str | None

    @property
    def output_text(self) -> str:
        """The answer. Raises UnreadableOutput when there is none."""
        if self.answer is None:
            raise UnreadableOutput("the episode was cut short before the policy answered")
        return self.answer

    @cached_property
    def output_json(self) -> Any:
        """The text as JSON. Raises UnreadableOutput when it is none."""
        try:
            return json.loads(self.output_text)
        except (ValueError, RecursionError) as error:
            raise UnreadableOutput(f"the answer is not JSON: {error}") from None


@dataclass(frozen=True)
class Template:
    """A text with references, checked. Raises ValueError naming a reference that cannot be one.

    Example: `Template("{{item.answer}}").fill(Sample("4"), {"answer": 4})` is "4".
    """

    text: str
    _parts: tuple[str | Reference, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_parts", tuple(_parts(self.text)))

    @property
    def reads_json(self) -> bool:
        """Whether it refers to the answer as JSON, which an answer may fail to be."""
        return self.refers_to(("sample", "output_json"))

    def refers_to(self, place: Reference) -> bool:
        """Whether a reference leads to a place, or into it."""
        return any(not isinstance(part, str) and part[: len(place)] == place for part in self._parts)

    def fill(self, sample: Sample, item: Mapping[str, Any]) -> str:
        """The text with every reference replaced: strings as they are, everything else as JSON.

        Raises MissingReference when the item lacks something, UnreadableOutput when the answer's JSON does.
        """
        return "".join(part if isinstance(part, str) else _text(_look_up(part, sample, item)) for part in self._parts)


def _parts(text: str) -> Iterator[str | Reference]:
    position = count = 0
    while (begin := text.find("{{", position)) >= 0:
        end = text.find("}}", begin + 2)
        if end < 0:
            raise ValueError(f"the template's {{{{ is not closed: {text[begin:]!r:.60}")
        count += 1
        if count > MAX_REFERENCES:
            raise ValueError(f"a template holds more than {MAX_REFERENCES} references")
        yield text[position:begin]
        yield _path(text[begin + 2 : end].strip())
        position = end + 2
    yield text[position:]


def _path(reference: str) -> Reference:
    steps: list[str | int] = []
    position = 0
    while position < len(reference):
        match = _STEP.match(reference, position)
        if match is None:
            break
        if match["index"] is not None:
            steps.append(int(match["index"]))
        else:
            steps.append(match["key"] if match["key"] is not None else match["quoted"])
        position = match.end()
    shown = f"{{{{{reference:.80}}}}}"
    if position < len(reference) or len(steps) < 2 or reference.startswith((".", "[")):
        raise ValueError(f"{shown} is no reference; write {{{{sample.output_text}}}}, {{{{sample.output_json.x}}}} or {{{{item.x}}}}")
    namespace, variable = steps[0], steps[1]
    if namespace not in ("sample", "item"):
        raise ValueError(f"{shown} refers to {namespace!r}{did_you_mean(str(namespace), ['sample', 'item'])}")
    if namespace == "sample" and variable not in SAMPLE_VARIABLES:
        raise ValueError(f"{shown}: the sample has no {variable!r}{did_you_mean(str(variable), list(SAMPLE_VARIABLES))}")
    if namespace == "sample" and variable == "output_text" and len(steps) > 2:
        raise ValueError(f"{shown}: output_text is a text without parts; {{{{sample.output_json.x}}}} reads it as JSON")
    return tuple(steps)


def _look_up(path: Reference, sample: Sample, item: Mapping[str, Any]) -> Any:
    if path[0] == "item":
        try:
            return walk(item, path[1:])
        except LookupError as error:
            known = ", ".join(sorted(map(str, item))) or "nothing"
            raise MissingReference(f"{{{{{_shown(path)}}}}}: {error.args[0]}; the item has {known}") from None
    if path[1] == "output_text":
        return sample.output_text
    try:
        return walk(sample.output_json, path[2:])
    except LookupError as error:
        raise UnreadableOutput(f"the answer's JSON lacks {_shown(path[2:])}: {error.args[0]}") from None


def walk(value: Any, path: Sequence[str | int]) -> Any:
    """The value at the end of a path. Raises LookupError saying where it ends early. Example: `walk({"a": [5]}, ("a", 0))` is 5."""
    for i, step in enumerate(path):
        here = _shown(path[:i]) or "it"
        if isinstance(value, Mapping):
            if step not in value:
                raise LookupError(f"{here} has no {step!r}")
            value = value[step]
        elif isinstance(value, list | tuple):
            position = int(step) if isinstance(step, int) or (step.isascii() and step.isdigit() and len(step) < 10) else None
            if position is None or position >= len(value):
                raise LookupError(f"{here} is a list of {len(value)} without {step!r}")
            value = value[position]
        else:
            raise LookupError(f"{here} is a {type(value).__name__} without parts")
    return value


def parse_path(text: str) -> tuple[str | int, ...]:
    """A dotted path. Raises ValueError when it is none. Example: `parse_path("answer.steps[0]")` is `("answer", "steps", 0)`."""
    return _path(f"item.{text}")[1:]


def _shown(path: Sequence[str | int]) -> str:
    shown = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return shown.removeprefix(".")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
