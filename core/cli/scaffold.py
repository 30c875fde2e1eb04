"""What `burnish new` does: an installable package with one reward, environment, verifier or set of tools, ready to be changed.

The files are the templates of `templates/KIND/` and `templates/common/`, where PACKAGE in a path stands for the package's name.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import keyword
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from burnish.trainer.models.folder import atomic_folder

Kind = Literal["reward", "environment", "verifier", "tools"]

TEMPLATES = Path(__file__).parent / "templates"
WORDS = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
LONGEST = 60
_ATTRIBUTES: dict[Kind, tuple[str, str]] = {
    "reward": ("burnish.rewards", "score"),
    "environment": ("burnish.envs", "Environment"),
    "verifier": ("burnish.verifiers", "judge"),
    "tools": ("", ""),
}
"""The entry-point group of a kind and what its module defines; tools have neither, a module is what names them."""


@dataclass(frozen=True, slots=True)
class Component:
    """What to write. Example: `Component("reward", "my-team", "answer-length").id` is `"my-team/answer-length-v1"`."""

    kind: Kind
    namespace: str
    name: str

    @property
    def id(self) -> str:
        """Empty for tools, which have none. An environment is `my-team/AnswerLength-v0`, as gymnasium's are."""
        if self.kind == "tools":
            return ""
        if self.kind == "environment":
            return f"{self.namespace}/{''.join(word.capitalize() for word in self.name.split('-'))}-v0"
        return f"{self.namespace}/{self.name}-v1"

    @property
    def distribution(self) -> str:
        """Name of the folder and of what is installed: `my-team-answer-length`, or `answer-length` without a namespace of its own."""
        return self.name if self.namespace == self.name else f"{self.namespace}-{self.name}"

    @property
    def package(self) -> str:
        return self.distribution.replace("-", "_")

    @property
    def module(self) -> str:
        return f"{self.package}.{self.kind}"

    def values(self) -> dict[str, str]:
        """What templates may use."""
        group, attribute = _ATTRIBUTES[self.kind]
        what = f"The {self.kind} {self.id}" if self.id else "Tools for burnish"
        derived = {"id": self.id, "distribution": self.distribution, "package": self.package, "module": self.module}
        return {**dataclasses.asdict(self), **derived, "group": group, "attribute": attribute, "description": what}


def new_component(kind: Kind, name: str, folder: Path) -> str:
    """Write the package into a new folder below `folder`; returns what to do next. Raises ValueError on a bad name, one that is
    taken, and a folder that exists; nothing is left half-written."""
    component = parse_name(kind, name)
    out = folder / component.distribution
    files = render(component)
    with atomic_folder(out) as draft:
        for path, text in files.items():
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            (draft / path).write_text(text, encoding="utf-8")
    return f"wrote {out} with the {component.kind} {component.id or component.module}; what to try is in {out / 'README.md'}"


def parse_name(kind: Kind, name: str) -> Component:
    """`my-team/answer-length`, or `answer-length` alone, which is its own namespace.

    Raises ValueError when it does not read like that, or would hide a module that can be imported.
    """
    namespace, slash, last = name.rpartition("/")
    component = Component(kind, namespace if slash else last, last)
    if not WORDS.fullmatch(last) or not WORDS.fullmatch(component.namespace):
        raise ValueError(f"{name!r} is no name for {_a(kind)}; it must read {_name_like(name)}, in small letters, words joined by -")
    if re.search(r"-v[0-9]+$", last):
        raise ValueError(f"{name!r}: leave out the version, which burnish adds")
    if last in ("env", "total"):
        raise ValueError(f"{name!r}: no part of a reward may be called {last!r}; choose another name")
    if len(component.distribution) > LONGEST:
        raise ValueError(f"{name!r} is {len(component.distribution)} characters long; {LONGEST} are enough")
    if _is_taken(component.package):
        raise ValueError(f"{name!r}: {component.package} is the name of another Python module; choose another name or namespace")
    return component


def _name_like(name: str) -> str:
    """The name that was meant, or two examples: `me/GuessWord` is "like me/guess-word"."""
    parts = [re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", part) for part in name.split("/")]
    words = [re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts]
    meant = all(WORDS.fullmatch(word) for word in words) and len(words) <= 2
    return f"like {'/'.join(words)}" if meant else "like answer-length or my-team/answer-length"


def render(component: Component) -> dict[str, str]:
    """The files of the package: path below its folder -> text."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=False,  # what is written is code
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    values, files = component.values(), {}
    for template in environment.list_templates(extensions=["jinja"]):
        part, _, path = template.partition("/")
        if part in ("common", component.kind):
            path = path.removesuffix(".jinja").replace("PACKAGE", component.package)
            files[path] = environment.get_template(template).render(values)
    return files


def _is_taken(package: str) -> bool:
    """Whether `import package` is no name or finds something else; a plain folder that happens to lie about does not count."""
    if keyword.iskeyword(package) or package in sys.stdlib_module_names:
        return True
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _a(kind: Kind) -> str:
    return {"environment": "an environment", "tools": "tools"}.get(kind, f"a {kind}")
