"""How an answer of `burnish/DrugDiscovery-v0` is judged: the reward `burnish/drug-discovery-v1`, and the same as a verifier over gRPC,
`burnish serve-verifier burnish.rewards.builtin.drug_discovery:verdict`. It needs RDKit, `burnish[chem]`; over gRPC only the service does.

It goes by the task's data alone, so it judges rows of your own as well: `molecule`, the SMILES that is to be changed, and `goals`. What a
policy writes is hostile text for native code: it is short, and read in a process that is killed when it takes too long.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Final

from pydantic import Field

from ...envs.builtin.drug_discovery.goals import Goal
from ...envs.builtin.drug_discovery.wording import parse_smiles
from ..plugin import reward
from ..remote.service import verifier
from ..types import RewardInput, Score
from . import molecules

VALID: Final = 0.1
FAIR: Final = 0.2
GOALS: Final = 0.2
SUCCESS: Final = 0.5
"""What a molecule is worth, 1 in all: that it can be read; that it was come by fairly; each goal's share; and all of them together, most of
it, so that doing little, which meets every goal that asks for no change, does not pay."""

MAX_GROUP: Final = 4
"""Heavy atoms of a new group: those of tert-butyl, acetamido, trifluoromethyl and mesyl. A longer chain raises weight and logP at will."""

PARTS = ("success", "valid", "fair", "scaffold", "one_group", "plausible", "unchanged", "goals")


@reward("burnish/drug-discovery-v1", isolation="process", timeout_s=20.0)
def drug_discovery(episode: RewardInput, *, max_group: Annotated[int, Field(ge=1)] = MAX_GROUP) -> Score:
    """What a molecule is worth: 0.1 for a SMILES that can be read, 0.2 when it was come by fairly, and then 0.2 for the share of its goals
    that it meets and 0.5 when it meets all.

    Fairly: the scaffold is that of the molecule given, groups differ at exactly one place of it, the new group has at most max_group heavy
    atoms, and nothing about it is absurd that was not so before (`molecules.flaws`). An answer that is no molecule is worth 0. parts:
    `success` (fair, all goals met), `valid`, `fair`, and why: `scaffold`, `one_group`, `plausible`, `unchanged`, each 0 or 1; `goals`, the
    share met by a fair molecule, else 0.

    Raises ValueError when the task's data has no `molecule` with a ring and `goals`, or RDKit is not installed.

    Example: of phenol, with the goals `donors at most 0` and `logp at least 2`, anisole (logP 1.7) is worth 0.1 + 0.2 + 0.2 / 2 = 0.4.
    """
    before, goals = _asked_for(episode)
    smiles = parse_smiles(episode.answer) if episode.answer is not None else None
    after = molecules.read(smiles) if smiles is not None else None
    if after is None:
        return Score(0.0, dict.fromkeys(PARTS, 0.0))
    changed = molecules.groups_changed(before, after)
    places, size = changed if changed is not None else (0, 0)
    worse = molecules.flaws(after) - molecules.flaws(before)
    plausible = not worse and size <= max_group
    fair = places == 1 and plausible
    values = molecules.properties(after) if fair else {}
    share = sum(goal.met_by(values) for goal in goals) / len(goals) if fair else 0.0
    parts = {
        "success": share == 1, "valid": True, "fair": fair, "scaffold": changed is not None, "one_group": places == 1,
        "plausible": plausible, "unchanged": changed is not None and places == 0, "goals": share,
    }  # fmt: skip
    return Score(VALID + FAIR * fair + GOALS * share + SUCCESS * (share == 1), parts)


@verifier("burnish/drug-discovery-verdict-v1", isolation="process")
def verdict(episode: RewardInput) -> Score:
    """What a molecule is worth, by `burnish/drug-discovery-v1`."""
    return drug_discovery(episode)


def _asked_for(episode: RewardInput) -> tuple[Any, Sequence[Goal]]:
    """The molecule and the goals that the task's data has."""
    smiles, goals = episode.data.get("molecule"), episode.data.get("goals")
    if not isinstance(smiles, str) or (molecule := _given(smiles)) is None:
        raise ValueError(f"the task's data must have `molecule`, the SMILES of one molecule with a ring, not {smiles!r:.80}")
    if not isinstance(goals, list | tuple) or not goals:
        raise ValueError(f"the task's data must have `goals`, a list of at least one, not {goals!r:.80}")
    return molecule, [Goal.from_dict(goal) for goal in goals]


@lru_cache(maxsize=256)
def _given(smiles: str) -> Any:
    """A task's molecule, read once for all answers; None when it cannot be read, has no scaffold, or is several."""
    molecule = molecules.read(smiles)
    return molecule if molecule is not None and molecules.scaffold(molecule) and molecules.pieces(molecule) == 1 else None
