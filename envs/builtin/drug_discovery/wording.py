"""Every sentence of the drug discovery environment, written and read in one place."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .cases import Case
from .fragments import GROUPS, Properties
from .goals import Bound, Goal
from .molecules import Exchange, Molecule

MAX_SMILES = 120
"""Characters of an answer's SMILES. What is longer is not read: the molecules here have at most 60."""
SMILES_PATTERN = re.compile(rf"[A-Za-z0-9@+\-\[\]()=#%/\\.:~*$]{{1,{MAX_SMILES}}}")

INSTRUCTIONS = "Exchange one group so that the molecule meets the goal. End with its SMILES."

LABELS: Mapping[str, str] = {
    "weight": "weight", "logp": "logP", "tpsa": "TPSA", "donors": "donors", "acceptors": "acceptors", "rotatable": "rotatable bonds",
    "rings": "rings", "qed": "QED",
}  # fmt: skip
"""What the properties are called. Weight is in g/mol, TPSA, the topological polar surface area, in square ångströms; donors and acceptors
are those of hydrogen bonds."""

WISHES: Mapping[str, tuple[str, str]] = {
    "weight": ("lighter", "heavier"), "logp": ("lower logP", "higher logP"), "tpsa": ("lower TPSA", "higher TPSA"),
    "donors": ("fewer donors", "more donors"), "acceptors": ("fewer acceptors", "more acceptors"),
}  # fmt: skip


def request(case: Case) -> str:
    """What a chemist is given: a molecule, the properties that the goals are of, and the goals. Example:

    Molecule: c1cc(O)ccc1C(=O)Nc1ccc(Cl)s1
    Now: donors 2, logP 3.4
    Goal: donors at most 1, logP at least 3.5
    """
    values, goals = case.molecule.properties.values, ", ".join(map(goal_text, case.goals))
    now = ", ".join(value_text(goal.property, values[goal.property]) for goal in case.goals)
    return f"Molecule: {case.molecule.smiles}\nNow: {now}\nGoal: {goals}"


def value_text(name: str, value: float) -> str:
    """Examples: `logP 3.4`, `donors 2`."""
    return f"{LABELS[name]} {value + 0.0:.1f}".removesuffix(".0" if name in ("donors", "acceptors") else "\0")


def values_text(properties: Properties) -> str:
    return ", ".join(value_text(name, value) for name, value in properties.values.items())


def goal_text(goal: Goal) -> str:
    """Examples: `donors at most 1`, `logP at least 3.5`."""
    return f"{LABELS[goal.property]} {goal.bound.replace('_', ' ')} {goal.value:g}"


def wish(goal: Goal) -> str:
    """Which way a goal wants a property to go. Examples: `fewer donors`, `higher logP`."""
    return WISHES[goal.property][goal.bound == "at_least"]


def exchange_text(molecule: Molecule, exchange: Exchange) -> str:
    """Example: `O -> OC`."""
    return f"{molecule.groups[exchange.place]} -> {exchange.group}"


def note(case: Case, exchange: Exchange) -> str:
    """What a chemist writes down before the molecule. Example: `fewer donors: O -> OC`"""
    return f"{', '.join(map(wish, case.goals[: case.moves]))}: {exchange_text(case.molecule, exchange)}"


def parse_smiles(text: str) -> str | None:
    """What stands on the last line of an answer, when it can be a SMILES; whether it is a molecule is for a verifier to say."""
    lines = text.strip().splitlines()
    last = lines[-1].strip() if lines else ""
    return last if SMILES_PATTERN.fullmatch(last) else None


def shift_text(before: Properties, after: Properties) -> str:
    """What changes, and by how much. Example: `weight +14.0, logP +0.3, TPSA -11.0, donors -1`"""
    shifts = {name: after.values[name] - value for name, value in before.values.items()}
    shown = [_signed(name, shift) for name, shift in shifts.items() if abs(shift) >= 0.05]
    return ", ".join(shown) or "nothing changes"


def _signed(name: str, shift: float) -> str:
    return f"{LABELS[name]} {shift:+.0f}" if name in ("donors", "acceptors") else f"{LABELS[name]} {shift:+.1f}"


def group_fact(molecule: Molecule, exchange: Exchange) -> str:
    """What an exchange does, on any ring. Example: `Methoxy (OC) for hydroxy (O): weight +14.0, logP +0.3, TPSA -11.0, donors -1.`"""
    old, new = molecule.groups[exchange.place], exchange.group
    shift = shift_text(molecule.properties, molecule.exchanged(exchange).properties)
    return f"{GROUPS[new].name.capitalize()} ({new}) for {GROUPS[old].name} ({old}): {shift}."


def rule(name: str, bound: Bound, old: str, new: str) -> str:
    """What one exchange is good for, as a note has it (`note`). Example: `lower TPSA: O -> OC`"""
    return f"{WISHES[name][bound == 'at_least']}: {old} -> {new}"


def entry(molecule: Molecule) -> str:
    """A molecule in a table of compounds. Example: `c1cc(O)ccc1Oc1ccc(F)cc1: weight 204.2, logP 3.3, TPSA 29.5, donors 1, acceptors 2`"""
    return f"{molecule.smiles}: {values_text(molecule.properties)}"


def study(case: Case, exchange: Exchange) -> str:
    """How a goal was met, as a paper tells it."""
    after = case.molecule.exchanged(exchange)
    wishes, groups = " and ".join(map(wish, case.goals[: case.moves])), (case.molecule.groups[exchange.place], exchange.group)
    return (
        f"For {wishes}, {GROUPS[groups[0]].name} ({groups[0]}) of {case.molecule.smiles} was exchanged for {GROUPS[groups[1]].name} "
        f"({groups[1]}): {shift_text(case.molecule.properties, after.properties)}. This gave {after.smiles}."
    )


def session(case: Case, exchange: Exchange) -> str:
    """A case, a note and a molecule that meets the goals, each below who spoke."""
    return f"user\n{request(case)}\nassistant\n{answer(case, exchange, notes=True)}"


def answer(case: Case, exchange: Exchange, notes: bool) -> str:
    """The molecule after an exchange, below its note."""
    return f"{note(case, exchange)}\n" * notes + case.molecule.exchanged(exchange).smiles
