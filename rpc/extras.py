"""Packages that not every installation has, because an extra of burnish brings them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final

TRACKERS: Final = frozenset({"inspect", "mlflow", "wandb"})
"""Extras of which something asks for older packages than `constraints/cpu.txt` has."""
WITH_TORCH: Final = frozenset({"train", "serve"})
"""Extras that bring torch, whose CPU build, which `constraints/cpu.txt` pins, is not on PyPI."""
TORCH_INDEX: Final = "https://download.pytorch.org/whl/cpu"


def require(what: str, modules: Sequence[str], extra: str) -> None:
    """Raise ValueError saying what to install when one of the top-level modules cannot be found. Imports none of them.

    extra: of burnish, which brings all the modules; "cpu" is said to be `make install`, which knows what pip must be told.

    Example: without Ray, `require("ray:judge", ["ray"], "train")` says
    "ray:judge needs ray, which is not installed here: in burnish's checkout, pip install --constraint constraints/cpu.txt
    --extra-index-url https://download.pytorch.org/whl/cpu '.[train]'", on one line.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        *most, last = missing
        named = f"{', '.join(most)} and {last}, which are" if most else f"{last}, which is"
        raise ValueError(f"{what} needs {named} not installed here: in burnish's checkout, {_install(extra)}")


def _install(extra: str) -> str:
    # by path: what a registry has under burnish's name is somebody else's
    if extra == "cpu":
        return "make install"
    constraints = "trackers" if extra in TRACKERS else "cpu"
    index = f" --extra-index-url {TORCH_INDEX}" if extra in WITH_TORCH else ""
    return f"pip install --constraint constraints/{constraints}.txt{index} '.[{extra}]'"
