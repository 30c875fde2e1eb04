"""Where it happened, in the code of whoever reads about it: their own frames, without burnish's and the libraries'."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from collections.abc import Iterable
from types import FrameType
from typing import Literal

_INSTALLED = ("/site-packages/", "/dist-packages/")
_STANDARD = f"{sysconfig.get_path('stdlib')}/"

Frame = tuple[FrameType, int]
"""A frame, and the line that it is at."""


def places_of(error: BaseException, most: int = 2) -> list[str]:
    """`places` of what was raised; of its cause too, where the error itself was raised by burnish about the user's code."""
    return places(_frames(error), most)


def own_places(error: BaseException, most: int = 2) -> list[str]:
    """`places_of` what was raised, where code of the user's own is part of it; else none, and burnish or a library is what failed."""
    return places((frame for frame in _frames(error) if _whose(frame[0]) == "own"), most)


def places_at(frame: FrameType | None) -> list[str]:
    """`places` of the stack that ends in a frame, of a thread at work, say: the outermost, which tells whose code is at work, and the
    innermost two."""
    found = places(reversed(list(traceback.walk_stack(frame))), sys.getrecursionlimit()) if frame is not None else []
    return found if len(found) <= 3 else [found[0], *found[-2:]]


def places(frames: Iterable[Frame], most: int) -> list[str]:
    """The innermost of the user's own frames, the outermost first, a line for each: `  at /mine/sums.py:31 in step`.

    Own is what is neither burnish nor Python's library nor an installed package. What is built in (`burnish.rewards.builtin` and the like)
    counts too, because it does what a plug-in does. Where there is neither, because the user's code is an installed package, that and the
    packages that it calls count; without those, all frames: then burnish is what failed.
    """
    found = [(_whose(frame), frame, line) for frame, line in frames]
    kinds = {kind for kind, _, _ in found}
    wanted = next((kind for kind in ({"own", "built in"}, {"installed"}) if kind & kinds), kinds)
    return [f"  at {frame.f_code.co_filename}:{line} in {frame.f_code.co_name}" for kind, frame, line in found if kind in wanted][-most:]


def _frames(error: BaseException) -> list[Frame]:
    frames, cause = list(traceback.walk_tb(error.__traceback__)), error.__cause__
    while cause is not None and not any(_whose(frame) == "own" for frame, _ in frames):
        frames, cause = [*frames, *traceback.walk_tb(cause.__traceback__)], cause.__cause__
    return frames


def _whose(frame: FrameType) -> Literal["own", "built in", "installed", "standard", "burnish"]:
    module, file = str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename
    if module.partition(".")[0] == "burnish":
        return "built in" if ".builtin." in module else "burnish"
    if any(folder in file for folder in _INSTALLED):
        return "installed"
    return "standard" if file.startswith(("<", _STANDARD)) else "own"
