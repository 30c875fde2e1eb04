"""What RDKit says about molecules: reading SMILES that nobody vouches for, properties, and what became of another molecule.

RDKit is native code that reads hostile text here, so it belongs behind `isolation = "process"` (`drug_discovery.py`). It is imported by the
first call: a module that rewards are registered in stays light.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from ...envs.builtin.drug_discovery.wording import MAX_SMILES
from ...rpc.extras import require

MAX_MATCHES = 64
"""Ways in which a scaffold is laid over a molecule: symmetric ones have a few."""

ELEMENTS = frozenset({1, 6, 7, 8, 9, 15, 16, 17, 35, 53})
"""Atomic numbers that drug-like molecules are made of: H, C, N, O, F, P, S, Cl, Br, I."""

FLAWS: Mapping[str, str] = {
    "bonded heteroatoms": "[#7,#8,#9,#17,#35,#53]!@[#7,#8,#9,#17,#35,#53]",  # peroxides, N-halides: unstable
    "chained sulphur": "[#16]!@[#16,#17,#35,#53]",
    "acid halide": "[#6,#16](=O)[F,Cl,Br,I]",
    "allene or cumulene": "*=[#6]=*",
}
"""SMARTS of what no chemist would propose. They count where a proposal has more of one than the molecule it came from."""

Mol = Any
"""An rdkit.Chem.Mol: RDKit is not there where types are checked."""


def read(smiles: str) -> Mol | None:
    """The molecule, or None: too long, no SMILES, impossible valences, or no atom at all. Raises ValueError without RDKit."""
    require("judging molecules", ["rdkit"], "chem")
    from rdkit import Chem, rdBase

    if not smiles or len(smiles) > MAX_SMILES:
        return None
    with rdBase.BlockLogs():  # what it has to say about a line of a policy's is not for the log
        molecule = Chem.MolFromSmiles(smiles)
    return molecule if molecule is not None and molecule.GetNumAtoms() else None


def properties(molecule: Mol) -> dict[str, float]:
    """Weight (g/mol), Crippen's logP, TPSA (Å²), Lipinski's donors and acceptors, rotatable bonds, rings, and QED (0 to 1), by the names of
    `burnish.envs.builtin.drug_discovery.goals.JUDGED`."""
    from rdkit.Chem import QED, Crippen, Descriptors, Lipinski, rdMolDescriptors

    return {
        "weight": round(Descriptors.MolWt(molecule), 3),
        "logp": round(Crippen.MolLogP(molecule), 4),
        "tpsa": round(rdMolDescriptors.CalcTPSA(molecule), 2),
        "donors": Lipinski.NumHDonors(molecule),
        "acceptors": Lipinski.NumHAcceptors(molecule),
        "rotatable": rdMolDescriptors.CalcNumRotatableBonds(molecule),
        "rings": rdMolDescriptors.CalcNumRings(molecule),
        "qed": round(QED.qed(molecule), 4),
    }


def scaffold(molecule: Mol) -> str:
    """Bemis and Murcko's scaffold (J. Med. Chem. 1996, 39, 2887), as canonical SMILES without stereochemistry; "" without a ring."""
    from rdkit import Chem
    from rdkit.Chem.Scaffolds import MurckoScaffold

    return str(Chem.MolToSmiles(MurckoScaffold.GetScaffoldForMol(molecule), isomericSmiles=False))


def pieces(molecule: Mol) -> int:
    """How many molecules it is: a salt's ions are two."""
    from rdkit import Chem

    return len(Chem.GetMolFrags(molecule))


def groups_changed(before: Mol, after: Mol) -> tuple[int, int] | None:
    """At how many places of their scaffold two molecules have other groups, and the heavy atoms of the largest group that is new there.

    None when their scaffolds differ, they have none, or one of them is several molecules. Of the ways to lay one over the other, the one
    with the fewest counts.

    Example: phenol and toluene, (1, 1); phenol and phenol written in another way, (0, 0); phenol and pyridine, None.
    """
    from rdkit import Chem

    core = scaffold(before)
    if not core or core != scaffold(after) or pieces(before) > 1 or pieces(after) > 1:
        return None
    pattern = Chem.MolFromSmiles(core)
    (one,) = before.GetSubstructMatches(pattern, maxMatches=1)
    old = _arms(before, one)
    ways = (_arms(after, way) for way in after.GetSubstructMatches(pattern, uniquify=False, maxMatches=MAX_MATCHES))
    return min((_differing(old, new) for new in ways), default=None)


def flaws(molecule: Mol) -> Counter[str]:
    """What is absurd about a molecule, each counted: what FLAWS has, elements that drugs are not made of, charges, radicals, isotopes."""
    found = Counter({name: len(molecule.GetSubstructMatches(pattern)) for name, pattern in _flaw_patterns()})
    for atom in molecule.GetAtoms():
        found["element"] += atom.GetAtomicNum() not in ELEMENTS
        found["charge"] += atom.GetFormalCharge() != 0
        found["radical"] += atom.GetNumRadicalElectrons() != 0
        found["isotope"] += atom.GetIsotope() != 0
    return found


Arms = Mapping[int, tuple[tuple[str, int], ...]]
"""By position in the scaffold: the groups there, each its SMILES from that bond on and its number of heavy atoms."""


def _arms(molecule: Mol, core: tuple[int, ...]) -> Arms:
    found: dict[int, tuple[tuple[str, int], ...]] = {}
    for position, index in enumerate(core):
        bonds = [bond for bond in molecule.GetAtomWithIdx(index).GetBonds() if bond.GetOtherAtomIdx(index) not in core]
        found[position] = tuple(sorted(_arm(molecule, bond, bond.GetOtherAtomIdx(index), frozenset(core)) for bond in bonds))
    return found


def _arm(molecule: Mol, bond: Any, root: int, core: frozenset[int]) -> tuple[str, int]:
    from rdkit import Chem

    atoms = sorted(_beyond(molecule, root, core))
    smiles = Chem.MolFragmentToSmiles(molecule, atomsToUse=atoms, rootedAtAtom=root, isomericSmiles=False)
    return f"{bond.GetBondType()} {smiles}", len(atoms)


def _beyond(molecule: Mol, root: int, core: frozenset[int]) -> Iterator[int]:
    """The atoms that hang on the scaffold by this one."""
    seen, queue = {root}, [root]
    for index in queue:
        yield index
        around = (atom.GetIdx() for atom in molecule.GetAtomWithIdx(index).GetNeighbors())
        fresh = [other for other in around if other not in seen and other not in core]
        seen.update(fresh)
        queue += fresh


def _differing(old: Arms, new: Arms) -> tuple[int, int]:
    places = [position for position in old if old[position] != new[position]]
    sizes = [size for position in places for _, size in (Counter(new[position]) - Counter(old[position])).elements()]
    return len(places), max(sizes, default=0)


@lru_cache(maxsize=1)
def _flaw_patterns() -> tuple[tuple[str, Mol], ...]:
    from rdkit import Chem

    return tuple((name, Chem.MolFromSmarts(smarts)) for name, smarts in FLAWS.items())
