"""`burnish/general-v2`, what `curated = true` blends with, and `burnish/general-v1`, which lacks its reasoning. Every row was made for
burnish; no part of it is anybody else's data."""

from __future__ import annotations

from pathlib import Path

from . import instructions, reasoning, tool_use
from .catalog import Catalog, CuratedSet

GENERAL = Catalog(
    "burnish/general-v1",
    {
        "instruction-following": CuratedSet(
            "Simple questions whose answer must keep a form that a program can check (so many items, an order, JSON), made by rule.",
            "Apache-2.0",
            "7bf89f8d0c6a840c561c8d5dfbcccec67a59bb278f7bb5284cd1f2060b595f5f",
            make=instructions.rows,
        ),
        "tool-use": CuratedSet(
            "Conversations in which tools are called well, of burnish's inspection environment and of a shop; a sixth asks for what no "
            "tool can do.",
            "Apache-2.0",
            "9ec5725e9ae01826722c66e2c938c4d0dab4fbbb59c11ca0bc0982d6b2951952",
            make=tool_use.rows,
        ),
        "refusal": CuratedSet(
            "40 questions written by hand: 24 that would do harm, with a refusal that says what can be had instead, and 16 that only look "
            "like it, with a plain answer.",
            "Apache-2.0",
            "1a6fca6c8d3d6db7300249c6ad207f2e41f2a3f6230664e7e569c0508d0439ec",
            file=Path(__file__).with_name("refusals.jsonl"),
        ),
    },
)

GENERAL_2 = Catalog(
    "burnish/general-v2",
    {
        **GENERAL.sets,
        "reasoning": CuratedSet(
            "Short reasoning made by rule, with the steps that lead to the answer: sums, series, counting, the largest of a list, days, "
            "ages; no question that the suites procedural-v1 and arithmetic-v1 ask unless told otherwise.",
            "Apache-2.0",
            "a161e6100e1c6ee3993af08082cd182c7e7bd37f58d66d5f3942a555b67f6589",
            make=reasoning.rows,
        ),
    },
)
