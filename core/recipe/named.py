"""What the texts of a recipe name: code, addresses, secrets, and files outside of the run folder that the recipe lies in.

Every text counts, in whatever field, those of defaults aside; so does every text of a TOML file that one of them names (a suite, a
guardrail policy). What a text names is asked of whoever would use it: `names_code`, `Endpoint.parse`, `HandlerSettings`, the file system.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any, Final

from pydantic import BaseModel

from burnish.envs.named import function_parts, names_code
from burnish.envs.printable import printable
from burnish.envs.registry import ID_PATTERN
from burnish.envs.toml_text import read_toml
from burnish.guardrails.policy import MAX_BYTES, read_policy
from burnish.rewards.aws.handlers import HandlerSettings
from burnish.rpc.address import RAY, SERVICE, is_address
from burnish.rpc.urls import is_called_secret, says_where

CODE: Final = "code"
ADDRESS: Final = "an address"
SECRET: Final = "a variable or file that holds a secret"
OUTSIDE: Final = "a file outside of the run folder"

_ADDRESS: Final = re.compile(r"\A[^\s/]*:\d+(\Z|[,?])|\Aray:|\Aarn:|\Alambda:|://|[?&]\w+=")
"""What clients other than burnish's own take for one, and what follows an address and says how to talk there."""
_SECRETS: Final = re.compile(r"(_env|token_file|key_file)\Z", re.IGNORECASE)
"""Fields that name an environment variable, or a file, whose content is sent with calls."""
_WHERE: Final = re.compile(r"_?(env|file|path)\Z", re.IGNORECASE)
_FREE: Final = ("environment_args", "args", "kwargs", "advantage_args", "loss_args", "template_args")
"""Tables whose keys are not the recipe's own."""
_PLACES: Final = ("train", "held_out", "data", "own", "from_run", "log_file", "curated", "catalog", "ca", "cert", "suites", "send")
"""Fields of the recipe whose every value is a place: a bare word is a folder there."""
_PLACES_OF_A_SUITE: Final = (("rows",), ("texts",))
"""Those that count from the suite's folder."""
_WORLDS: Final = ("burnish.envs.builtin.", "burnish.rewards.builtin.")
"""Where the worlds that burnish ships are; their tools, verdicts and texts are made to be named in recipes."""
_DOTTED: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, slots=True)
class Text:
    """A text of a recipe. at: where it stands, the keys of tables and the numbers of items. is_key: whether it is a key there itself.
    file: the TOML file that it stands in, None for the recipe; said: the field of the recipe that names that file, and the file.

    Example: `Text("mine:f", ("rft", "objective", "loss")).field` is "rft.objective.loss".
    """

    text: str
    at: tuple[str, ...]
    is_key: bool = False
    file: Path | None = None
    said: str = ""

    @property
    def field(self) -> str:
        """As errors call it, on one line whatever its keys hold."""
        return printable(f"{self.said}{'.'.join(self.at)}".replace("\n", " "))[-200:]

    @property
    def key(self) -> str:
        """The last key, the number of an item aside."""
        return next((one for one in reversed(self.at) if not one.isdigit()), "")

    @property
    def is_reference(self) -> bool:
        """Whether it is a `service:NAME` where that is replaced by the address of the service."""
        if not self.text.startswith(SERVICE) or self.is_key or self.file is not None:
            return False
        match self.at:
            case ("environment_args", *_) | ("rewards", _, "verifier"):
                return True
            case ("rft", "blend", _, "environment_args", *_) | ("phases", _, "blend", _, "environment_args", *_):
                return True
        return False

    @property
    def is_place(self) -> bool:
        """Whether it stands where nothing but a place does, so that a bare word is a folder."""
        if self.file is not None:
            return self.at in _PLACES_OF_A_SUITE
        return self.key in _PLACES and not any(table in self.at for table in _FREE)


def texts_of(config: BaseModel) -> Iterator[Text]:
    """Every text of a recipe that is not a default."""
    return _texts(config.model_dump(mode="json", exclude_defaults=True))


def with_files(texts: Iterator[Text], home: Path) -> Iterator[Text]:
    """The texts, and those of every TOML file in the run folder `home` that one of them names: of a guardrail policy its detectors, of
    anything else all but what it says about itself."""
    left, seen = deque(texts), set[Path]()
    while left:
        one = left.popleft()
        yield one
        for file in () if one.is_key else _places(one):
            if file not in seen and file.is_relative_to(home) and os.path.isfile(file):
                seen.add(file)
                left += _in_file(file, f"{one.field}: {one.text}: ")


def meaning_of(one: Text, home: Path) -> str | None:
    """What a text names, for a recipe in the run folder `home`; None for a registered name, a word, or a place in that folder."""
    if one.is_reference:
        return None
    if _is_code(one):
        return CODE
    if not one.is_key and _is_of_secret(one):
        return SECRET
    if _is_address(one):
        return ADDRESS
    return OUTSIDE if not one.is_key and _leads_out(one, home) else None


def of_our_worlds(name: str) -> bool:
    """Whether a name is that of a module of burnish's worlds, or of something that is defined in one."""
    module, _, attribute = name.partition(":")
    if not module.startswith(_WORLDS) or _DOTTED.fullmatch(module) is None or not _is_there(module):
        return False
    found = getattr(import_module(module), attribute, None) if attribute else None
    where = str(getattr(found, "__module__", ""))
    return not attribute or where == module or (not isinstance(found, FunctionType | type) and where.startswith("burnish."))


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # what would be its package is not there, or is none
        return False


def is_given(one: Text, given: Collection[Path]) -> bool:
    """Whether the code that a text names lies in one of these plug-in files, which whoever gives the command names himself."""
    file = one.text if one.text.endswith(".py") else one.text.rpartition(":")[0]
    return file.endswith(".py") and resolved(Path(file)) in given


def _texts(data: Mapping[str, Any], file: Path | None = None, said: str = "") -> Iterator[Text]:
    left: list[tuple[tuple[str, ...], Any]] = [((), data)]
    while left:
        at, value = left.pop()
        if isinstance(value, str):
            yield Text(value, at, file=file, said=said)
        elif isinstance(value, Mapping):
            yield from (Text(str(key), (*at, str(key)), True, file, said) for key in value)
            left += reversed([((*at, str(key)), item) for key, item in value.items()])
        elif isinstance(value, list | tuple):
            left += reversed([((*at, str(i)), item) for i, item in enumerate(value)])


def _in_file(file: Path, said: str) -> Iterator[Text]:
    """The texts of a file that name something; none where it is no TOML, and so neither a policy nor a suite."""
    try:
        data = read_toml(file, MAX_BYTES)
    except (OSError, ValueError):
        return
    try:
        read_policy(data, to_run=False)
    except ValueError:
        data = {key: value for key, value in data.items() if key != "about"}
    else:
        data = {"detectors": data.get("detectors", [])}
    yield from _texts(data, file, said)


def _is_code(one: Text) -> bool:
    in_recipe = one.file is None and not one.is_key
    if in_recipe and one.at[0] == "services" and one.at[2:] == ("python",):
        return True
    if of_our_worlds(one.text):
        return False
    if in_recipe and (one.at[0] == "plugins" or (one.at[0] == "services" and one.at[2:] in (("tools",), ("verifier",)))):
        return True
    return names_code(one.text) and (not one.text.startswith(RAY) or _is_rays(one.text))


def _is_rays(text: str) -> bool:
    """Whether `ray:NAME`, an address, is also the name of a function of the package ray."""
    parts = function_parts(text)
    return parts is not None and find_spec("ray") is not None and hasattr(import_module("ray"), parts[1])


def _is_of_secret(one: Text) -> bool:
    """Whether a field says where a secret is read: by what burnish calls such a field, or of what is called one, `{ env = "NAME" }`."""
    if _SECRETS.search(one.key):
        return True
    return says_where(one.key) and any(map(is_called_secret, (*one.at[:-1], _WHERE.sub("", one.key))))


def _is_address(one: Text) -> bool:
    in_recipe = one.file is None and not one.is_key
    if in_recipe and (one.at[0] == "services" and one.at[2:] == ("address",)):
        return True
    if in_recipe and one.at == ("resources", "ray_address"):
        return one.text != "auto"  # the cluster that runs on this machine
    if in_recipe and one.at[:2] == ("resources", "watch"):
        return True  # a deployment file says which addresses are asked, in parts
    if one.at[-2:] == ("args", "handler") and not one.is_key and _is_called_elsewhere(one.text):
        return True
    return _ADDRESS.search(one.text) is not None or is_address(one.text)


def _is_called_elsewhere(handler: str) -> bool:
    """Whether a reward Lambda lies elsewhere: a bare word is the name of one on AWS."""
    try:
        return HandlerSettings(handler).kind != "python"
    except ValueError:
        return False


def starts_of(one: Text) -> list[Path]:
    """Where a text counts from if it is a path: the folder that burnish is started in, and in a file that file's folder."""
    starts = [] if one.file is None else [one.file.parent]
    return starts + ([] if one.at in _PLACES_OF_A_SUITE and starts else [Path.cwd()])


def _places(one: Text) -> Iterator[Path]:
    """Where a text leads if it is a path."""
    yield from (place for start in starts_of(one) if (place := resolved(start / one.text)) is not None)


def resolved(place: Path) -> Path | None:
    """Where a path leads; None for what is none, or leads in a ring."""
    try:
        return place.resolve()
    except (OSError, RuntimeError, ValueError):  # a ring of links, or a text that no path may be
        return None


def _leads_out(one: Text, home: Path) -> bool:
    """Whether a text is a path that leads out of a folder. Where anything may stand it is one only if it cannot be a word: it begins at
    the root or at home, climbs, or something of that name is there."""
    if one.at == ("model",) and one.file is None:
        return False  # a model is looked up by its name or folder, wherever it is, and nothing of it is run (docs/security.md)
    outside = [place for place in _places(one) if not place.is_relative_to(home)]
    if not outside or not one.text:
        return False
    path = Path(one.text)
    if one.is_place:
        return not ID_PATTERN.match(one.text) or os.path.lexists(one.text)
    if path.is_absolute():
        return len(path.parts) > 1 and os.path.lexists(Path(*path.parts[:2]))
    if ".." in path.parts or (one.text[0] == "~" and "/" in one.text):
        return True
    return any(os.path.isfile(place) or ("/" in one.text and os.path.lexists(place)) for place in outside)
