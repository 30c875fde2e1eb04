"""Conversations in which tools are used well, out of burnish's own environments: what to ask, when, and what to make of the answer.

Half of them are inspections by the expert of `burnish/QualityInspection-v0`, over parts of its training seeds. The other half are a shop's
questions about price and stock, a third of which no tool can answer, so that the answer says so and no call is made. Calls stand in the
text, `measure(7, "bore")`, as burnish's environments read them (`envs.tool_calls`), so every chat template shows them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ....envs.builtin.inspection.corpus import TRAIN_SEEDS
from ....envs.builtin.inspection.inspectors import inspect
from ....envs.types import Message

TAG = 0x700
ITEMS = ("bolts", "clamps", "gaskets", "hinges", "nuts", "pins", "rivets", "screws", "springs", "washers")
SHOP = 'You help in a shop. Call price(item="nuts") or stock(item="nuts"), one a message, and then answer.'
CANNOT = (
    ("Who made the {item}?", "I can look up prices and stock. Who made the {item} I cannot."),
    ("When do new {item} arrive?", "I can look up prices and stock. When new {item} arrive I cannot."),
    ("Are the {item} made of steel?", "I can look up prices and stock. What the {item} are made of I cannot."),
)


def rows(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """`count` conversations, inspections and the shop's in turn."""
    for i in range(count):
        rng = np.random.default_rng([seed, i, TAG])
        talk = inspect(int(rng.integers(TRAIN_SEEDS)), int(rng.integers(2))) if i % 2 else _shop(rng)
        yield {"messages": [message.to_dict() for message in talk]}


def _shop(rng: np.random.Generator) -> tuple[Message, ...]:
    item = str(rng.choice(ITEMS))
    price, stock, wanted = int(rng.integers(1, 20)), int(rng.integers(0, 30)), int(rng.integers(1, 30))
    begin, kind = Message("system", SHOP), int(rng.integers(3))
    if kind == 0:
        asked, answer = CANNOT[int(rng.integers(len(CANNOT)))]
        return begin, Message("user", asked.format(item=item)), Message("assistant", answer.format(item=item))
    if kind == 1:
        answer = f"Yes, there are {stock} {item}." if stock >= wanted else f"No, there are only {stock} {item}."
        return begin, Message("user", f"Can I have {wanted} {item}?"), *_called("stock", item, stock), Message("assistant", answer)
    asked = f"What do {wanted} {item} cost, and are there enough?"
    enough = "There are enough." if stock >= wanted else f"There are only {stock}."
    calls = (*_called("price", item, price), *_called("stock", item, stock))
    return begin, Message("user", asked), *calls, Message("assistant", f"{wanted} x {price} = {wanted * price}. {enough}")


def _called(tool: str, item: str, answer: int) -> tuple[Message, Message]:
    return Message("assistant", f'{tool}(item="{item}")'), Message("tool", str(answer), name=tool)
