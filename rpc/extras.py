"""Packages that not every installation has, because an extra of burnish brings them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec


def require(what: str, modules: Sequence[str], *extras: str) -> None:
    """Raise ValueError saying what to install when one of the top-level modules cannot be found. Imports none of them.

    extras: of burnish; any one of them brings all the modules.

    Example: without Ray, `require("ray:judge", ["ray"], "train")` says
    "ray:judge needs ray, which is not installed here: pip install 'burnish[train]'".
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        *most, last = missing
        named = f"{', '.join(most)} and {last}, which are" if most else f"{last}, which is"
        install = " or ".join(f"'burnish[{extra}]'" for extra in extras)
        raise ValueError(f"{what} needs {named} not installed here: pip install {install}")
