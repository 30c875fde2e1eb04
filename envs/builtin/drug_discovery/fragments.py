"""Fragments: rings, linkers and groups, and what each counts in the properties of a molecule made of them.

RDKit's values here are sums over atoms: weight; Crippen's logP (J. Chem. Inf. Comput. Sci. 1999, 39, 868); Ertl's topological polar
surface area (J. Med. Chem. 2000, 43, 3714); Lipinski's donors and acceptors of hydrogen bonds. What an atom counts depends on its nearest
neighbours alone, and every fragment here meets the next at an aromatic carbon, so the sums over fragments are exact. A test computes all of
them by RDKit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

ADDITIVE = ("weight", "logp", "tpsa", "donors", "acceptors")


class Properties(NamedTuple):
    """weight in g/mol, logp, tpsa in square ångströms, donors and acceptors of hydrogen bonds: of a molecule, or what a fragment adds."""

    weight: float
    logp: float
    tpsa: float
    donors: int
    acceptors: int

    @property
    def values(self) -> Mapping[str, float]:
        """By the names of ADDITIVE."""
        return dict(zip(ADDITIVE, self, strict=True))


@dataclass(frozen=True, slots=True)
class Ring:
    """An aromatic ring with two open places. head: SMILES that ends at the atom which the linker is at, tail: that begins with it; `{}` is
    where a group stands. own: of the ring with hydrogen at both. held_out: in no molecule of training."""

    head: str
    tail: str
    own: Properties
    held_out: bool = False


@dataclass(frozen=True, slots=True)
class Linker:
    """What joins two rings. adds: in the place of a hydrogen of each."""

    smiles: str
    adds: Properties


@dataclass(frozen=True, slots=True)
class Group:
    """name: a chemist's. adds: in the place of a hydrogen."""

    name: str
    adds: Properties


RINGS: Mapping[str, Ring] = {
    "benzene": Ring("c1cc{}ccc1", "c1ccc{}cc1", Properties(78.114, 1.6866, 0.0, 0, 0)),
    "meta-benzene": Ring("c1c{}cccc1", "c1cc{}ccc1", Properties(78.114, 1.6866, 0.0, 0, 0)),
    "pyridine": Ring("c1cc{}cnc1", "c1ccc{}nc1", Properties(79.102, 1.0816, 12.89, 0, 1)),
    "pyrimidine": Ring("n1cc{}cnc1", "c1ncc{}cn1", Properties(80.090, 0.4766, 25.78, 0, 2)),
    "pyrazine": Ring("n1cc{}ncc1", "c1cnc{}cn1", Properties(80.090, 0.4766, 25.78, 0, 2), held_out=True),
    "pyridazine": Ring("n1nc{}ccc1", "c1ccc{}nn1", Properties(80.090, 0.4766, 25.78, 0, 2)),
    "thiophene": Ring("s1c{}ccc1", "c1ccc{}s1", Properties(84.143, 1.7481, 0.0, 0, 1)),
    "thiazole": Ring("s1c{}cnc1", "c1ncc{}s1", Properties(85.131, 1.1431, 12.89, 0, 2), held_out=True),
    "furan": Ring("o1c{}ccc1", "c1ccc{}o1", Properties(68.075, 1.2796, 13.14, 0, 1), held_out=True),
    "oxazole": Ring("o1c{}cnc1", "c1ncc{}o1", Properties(69.063, 0.6746, 26.03, 0, 2)),
    "pyrrole": Ring("[nH]1c{}ccc1", "c1ccc{}[nH]1", Properties(67.091, 1.0147, 15.79, 1, 0)),
    "naphthalene": Ring("c1cc2cc{}ccc2cc1", "c1ccc2cc{}ccc2c1", Properties(128.174, 2.8398, 0.0, 0, 0)),
}

LINKERS: Mapping[str, Linker] = {
    "bond": Linker("-", Properties(-2.016, -0.0196, 0.0, 0, 0)),
    "methylene": Linker("C", Properties(12.011, -0.0958, 0.0, 0, 0)),
    "ether": Linker("O", Properties(13.983, 0.1057, 9.23, 0, 1)),
    "amine": Linker("N", Properties(12.999, 0.0570, 12.03, 1, 1)),
    "amide": Linker("C(=O)N", Properties(41.009, -0.4343, 29.10, 1, 1)),
    "sulfonamide": Linker("S(=O)(=O)N", Properties(77.064, -0.8858, 46.17, 1, 2)),
}

GROUPS: Mapping[str, Group] = {
    "H": Group("hydrogen", Properties(0.0, 0.0, 0.0, 0, 0)),
    "F": Group("fluoro", Properties(17.990, 0.1391, 0.0, 0, 0)),
    "Cl": Group("chloro", Properties(34.445, 0.6534, 0.0, 0, 0)),
    "Br": Group("bromo", Properties(78.896, 0.7625, 0.0, 0, 0)),
    "C": Group("methyl", Properties(14.027, 0.3084, 0.0, 0, 0)),
    "C(F)(F)F": Group("trifluoromethyl", Properties(67.997, 1.0188, 0.0, 0, 0)),
    "O": Group("hydroxy", Properties(15.999, -0.2944, 20.23, 1, 1)),
    "OC": Group("methoxy", Properties(30.026, 0.0086, 9.23, 0, 1)),
    "N": Group("amino", Properties(15.015, -0.4178, 26.02, 1, 1)),
    "N(C)C": Group("dimethylamino", Properties(43.069, 0.0660, 3.24, 0, 1)),
    "C#N": Group("cyano", Properties(25.010, -0.1283, 23.79, 0, 1)),
    "C(=O)O": Group("carboxy", Properties(44.009, -0.3018, 37.30, 1, 1)),
    "C(N)=O": Group("carbamoyl", Properties(43.025, -0.9011, 43.09, 1, 1)),
    "C(C)=O": Group("acetyl", Properties(42.037, 0.2026, 17.07, 0, 1)),
    "S(C)(=O)=O": Group("mesyl", Properties(78.092, -0.5965, 34.14, 0, 2)),
    "NC(C)=O": Group("acetamido", Properties(57.052, -0.0416, 29.10, 1, 1)),
}
"""By SMILES, which begins at the atom that stands on the ring; "H" is none."""


def total(*parts: Properties) -> Properties:
    """The sum, rounded to the digits that RDKit's own tables have."""
    weight = logp = tpsa = 0.0
    donors = acceptors = 0
    for part in parts:
        weight, logp, tpsa = weight + part.weight, logp + part.logp, tpsa + part.tpsa
        donors, acceptors = donors + part.donors, acceptors + part.acceptors
    return Properties(round(weight, 3), round(logp, 4), round(tpsa, 2), donors, acceptors)
