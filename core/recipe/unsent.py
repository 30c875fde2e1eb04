"""What engines on nodes without the run's folder would not find: files of it that a recipe names, and `resources.send` does not."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from burnish.envs.named import names_code
from burnish.recipe.named import Text, starts_of, texts_of, with_files
from burnish.recipe.resources import ResourcesConfig
from burnish.rollout.transport.parcel import sent_path
from burnish.rpc.address import Endpoint, is_address

_PLAYED: Final = ("environment", "environment_args", "rewards")
"""Keys of a recipe, and of a suite, that say what is played and judged."""
_GUARDED: Final = "detectors"
"""The key of a guardrail policy that says what it looks with."""


def unsent_files(config: BaseModel, resources: ResourcesConfig) -> list[str]:
    """What is wrong with `resources.send`: what is not in the folder, and what it lacks of the files that environments, rewards and clients
    of services read there, modules among them."""
    if resources.shared_folder:
        return []
    here, sent, lines = Path.cwd(), list[Path](), list[str]()
    for name in resources.send:
        try:
            sent.append(sent_path(here, name))
        except ValueError as error:
            lines.append(str(error))
    for one in with_files((one for one in texts_of(config) if _is_read(one) or one.at[0] == "retention"), here):
        if _is_read(one) and not one.is_reference:
            lines += _unsent(one, here, sent)
    return list(dict.fromkeys(lines))


def _is_read(one: Text) -> bool:
    """Whether a text stands where what an engine's process reads, or imports, is named."""
    if one.is_key:
        return False
    if one.file is not None:
        return one.at[0] in (*_PLAYED, _GUARDED)
    match one.at:
        case ("rft", "blend", _, "environment_args", *_) | ("phases", _, "blend", _, "environment_args", *_):
            return True
        case ("services", _, "tls" | "token_file", *_):
            return True
    return one.at[0] in _PLAYED


def _unsent(one: Text, here: Path, sent: Sequence[Path]) -> Iterator[str]:
    for start in starts_of(one):
        for name in _names(one, here):
            path = Path(os.path.normpath(start / name))
            if not _is_there(one, name, path) or any(path.is_relative_to(named) for named in sent):
                continue
            if os.path.isabs(name) or not path.is_relative_to(here):
                yield f"{one.field}: {name} is on no other node; name a file in {here}, and add it to resources.send"
            else:
                yield f"{one.field}: {path.relative_to(here)} is on no other node; add it to resources.send"


def _names(one: Text, here: Path) -> Iterator[str]:
    """The paths that a text may be about: itself, what it imports, and what an address says about how to talk there."""
    yield one.text
    module = one.text.rpartition(":")[0] if names_code(one.text) else ""
    if module.endswith(".py"):
        if one.at != ("environment",):  # a file there is sent as plug-ins are
            yield module
    elif module and not _is_installed(module, here):
        parts = module.split(".")
        yield f"{'/'.join(parts)}.py"
        yield from (f"{'/'.join(parts[:depth])}/__init__.py" for depth in range(1, len(parts) + 1))  # packages are imported, too
    if "?" in one.text and is_address(one.text):
        security = Endpoint.parse(one.text).security
        yield from (file for file in (security.ca, security.cert, security.key, security.token_file) if file)


def _is_installed(module: str, here: Path) -> bool:
    """Whether a module is found elsewhere than in the run's folder, which is looked into last. Nothing is imported."""
    elsewhere = [place for place in sys.path if place not in ("", str(here))]
    spec = PathFinder.find_spec(module.partition(".")[0], elsewhere)
    return spec is not None and spec.origin is not None


def _is_there(one: Text, name: str, path: Path) -> bool:
    """Whether a path is one of a file, or of a folder where the text cannot be a mere word."""
    if os.path.isfile(path):
        return True
    in_policy = one.file is not None and one.at[0] == _GUARDED and "args" in one.at
    return bool(name) and ("/" in name or in_policy) and os.path.isdir(path)
