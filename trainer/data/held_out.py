"""Rows that a supervised phase is measured on and never trains on, laid out beside its examples."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Final

from ...envs.rows import Problems
from .config import SupervisedRows
from .examples import ExampleMaker
from .sources import Reject, Source, found_in
from .store import ExampleStore, StoreWriter
from .supervised import SupervisedExample

FOLDER: Final = "held_out"


def lay_out_held_out(wanted: SupervisedRows, maker: ExampleMaker, folder: Path) -> None:
    """Make the examples of the held-out rows in `folder / "held_out"`; nothing where there are none.

    Raises ValueError naming every row that is unfit, or when there is no row.
    """
    place, problems = wanted.held_out, Problems()
    if place is None:
        return
    source = Source(FOLDER, Fraction(0), place, lambda: found_in(place, wanted.kind))
    with StoreWriter(folder / FOLDER) as store:
        for made in maker.of(source):
            if isinstance(made, Reject):
                problems.add(str(made))
                continue
            examples, where = made
            file, _, number = where.rpartition(":")
            store.add(examples, int(number), file)
        problems.check()
        if not store.examples:
            raise ValueError(f"{wanted.called}.held_out: {place} gives no example")


def read_held_out(folder: Path) -> tuple[SupervisedExample, ...]:
    """The held-out examples that were laid out in the folder of a phase's data; none where there are none."""
    if not (folder / FOLDER).is_dir():
        return ()
    store = ExampleStore(folder / FOLDER)
    try:
        return tuple(store.example(number) for number in range(len(store)))
    finally:
        store.close()
