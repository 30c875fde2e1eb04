"""Molecules of the grammar: two rings, a linker between them, and a group on each ring."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from .fragments import GROUPS, LINKERS, RINGS, Properties, total

PLACES = (0, 1)
"""Where a group stands: on the first ring, or on the second."""


@dataclass(frozen=True, slots=True)
class Molecule:
    """Names of its fragments: rings of RINGS, a linker of LINKERS, groups of GROUPS.

    Example: `Molecule(("benzene", "thiophene"), "amide", ("O", "Cl"))` is `c1cc(O)ccc1C(=O)Nc1ccc(Cl)s1`.
    """

    rings: tuple[str, str]
    linker: str
    groups: tuple[str, str]

    @property
    def smiles(self) -> str:
        """As a chemist writes it from left to right; not RDKit's canonical form."""
        (first, second), (one, other) = (RINGS[name] for name in self.rings), (_branch(group) for group in self.groups)
        return f"{first.head.format(one)}{LINKERS[self.linker].smiles}{second.tail.format(other)}"

    @property
    def properties(self) -> Properties:
        """What RDKit computes for it, to four digits after the point."""
        return total(*(RINGS[name].own for name in self.rings), LINKERS[self.linker].adds, *(GROUPS[group].adds for group in self.groups))

    @property
    def held_out(self) -> bool:
        """Whether it is for evaluation alone: it has a ring that no molecule of training has, so its scaffold is new too."""
        return any(RINGS[name].held_out for name in self.rings)

    def exchanged(self, exchange: Exchange) -> Molecule:
        """The molecule after an exchange."""
        one, other = self.groups
        return Molecule(self.rings, self.linker, (exchange.group, other) if exchange.place == 0 else (one, exchange.group))

    def exchanges(self, groups: Collection[str] = GROUPS) -> Iterator[Exchange]:
        """Everything that can be done to it in one step of the grammar, with these groups."""
        for place in PLACES:
            yield from (Exchange(place, group) for group in groups if group != self.groups[place])


@dataclass(frozen=True, slots=True)
class Exchange:
    """A group of GROUPS comes to a place. Example: `Exchange(0, "OC")`: methoxy on the first ring, whatever was there."""

    place: int
    group: str


def draw_molecule(rng: np.random.Generator, held_out: bool, groups: Collection[str] = GROUPS) -> Molecule:
    """A molecule of one side, with two of these groups. Of those that are held out, the rings are drawn until one of them is new."""
    while True:
        rings, chosen = ([names[int(i)] for i in rng.integers(len(names), size=2)] for names in (list(RINGS), list(groups)))
        linker = list(LINKERS)[int(rng.integers(len(LINKERS)))]
        molecule = Molecule((rings[0], rings[1]), linker, (chosen[0], chosen[1]))
        if molecule.held_out == held_out:
            return molecule


def _branch(group: str) -> str:
    return "" if group == "H" else f"({group})"
