"""What a molecule is worth, worked out by hand; what RDKit says, pinned; and that neither tricks nor nonsense pay, or fail a run."""

from __future__ import annotations

import random
from typing import Any

import pytest

from burnish.envs.builtin.drug_discovery.cases import make_case
from burnish.envs.builtin.drug_discovery.fragments import GROUPS, LINKERS, RINGS
from burnish.envs.builtin.drug_discovery.goals import JUDGED
from burnish.envs.builtin.drug_discovery.molecules import Molecule
from burnish.envs.types import Message, Task
from burnish.rewards.builtin import molecules
from burnish.rewards.builtin.drug_discovery import MAX_GROUP, PARTS, drug_discovery, verdict
from burnish.rewards.plugin import find_plugin, make_scorer
from burnish.rewards.remote.service import VERIFIERS
from burnish.rewards.types import RewardInput, Score

pytestmark = pytest.mark.unit
pytest.importorskip("rdkit", reason="burnish[chem] is not installed")

START = "c1cc(O)ccc1Oc1ccc(F)cc1"
GOALS = [{"property": "donors", "at_most": 0}, {"property": "logp", "at_least": 3.8}]
"""logP is 3.32 with a donor. Chloro for hydroxy (4.27, none) meets both, methoxy for hydroxy (3.63, none) one."""


def proposed(answer: str | None, molecule: Any = START, goals: Any = GOALS) -> RewardInput:
    messages = (Message("user", "…"), *(() if answer is None else (Message("assistant", answer),)))
    return RewardInput("t/0", Task("t", 1), messages, 0.0, data={"molecule": molecule, "goals": goals})


@pytest.mark.parametrize(
    ("smiles", "values"),
    [
        # phenol: 6 x 12.011 + 6 x 1.008 + 15.999; Ertl's hydroxy 20.23
        ("c1ccccc1O", {"weight": 94.113, "logp": 1.3922, "tpsa": 20.23, "donors": 1, "acceptors": 1, "rotatable": 0, "rings": 1}),
        # toluene: 7 x 12.011 + 8 x 1.008
        ("Cc1ccccc1", {"weight": 92.141, "logp": 1.9950, "tpsa": 0.0, "donors": 0, "acceptors": 0, "rotatable": 0, "rings": 1}),
        # aspirin, whose values are the textbook's: an ester 26.30 and an acid 37.30 of surface
        ("CC(=O)Oc1ccccc1C(=O)O", {"weight": 180.159, "logp": 1.3101, "tpsa": 63.6, "donors": 1, "acceptors": 3, "qed": 0.5501}),
    ],
)
def test_rdkits_values_are_these(smiles: str, values: dict[str, float]) -> None:
    found = molecules.properties(molecules.read(smiles))
    assert {name: found[name] for name in values} == pytest.approx(values, abs=1e-4)
    assert set(found) == set(JUDGED)


def test_the_grammar_adds_up_to_what_rdkit_computes() -> None:
    """Every pair of rings with every linker, and every group on every ring of it in turn."""
    groups, at = list(GROUPS), 0
    for first in RINGS:
        for second in RINGS:
            for linker in LINKERS:
                at += 1
                molecule = Molecule((first, second), linker, (groups[at % len(groups)], groups[at // len(groups) % len(groups)]))
                found = molecules.properties(molecules.read(molecule.smiles))
                for name, value in molecule.properties.values.items():
                    assert found[name] == pytest.approx(value, abs=0.011 if name == "weight" else 2e-3), (molecule, name)


@pytest.mark.parametrize("first", [0, 1_500_000_000])
def test_an_exchange_that_fits_by_the_grammar_is_a_success_and_no_other_is(first: int) -> None:
    for seed in range(first, first + 8):
        case = make_case(seed, 1)
        data = {"molecule": case.molecule.smiles, "goals": [goal.to_dict() for goal in case.goals]}
        for exchange in case.exchanges():
            score = drug_discovery(proposed(case.molecule.exchanged(exchange).smiles, **data))
            assert score.parts["fair"] == 1 and score.parts["success"] == (exchange in case.fitting), (case, exchange)


@pytest.mark.parametrize(
    ("answer", "value", "parts"),
    [
        ("c1cc(Cl)ccc1Oc1ccc(F)cc1", 1.0, {"success", "valid", "fair", "scaffold", "one_group", "plausible", "goals"}),
        (
            "fewer donors: O -> Cl\nClc1ccc(Oc2ccc(F)cc2)cc1",
            1.0,
            {"success", "valid", "fair", "scaffold", "one_group", "plausible", "goals"},
        ),
        ("c1cc(OC)ccc1Oc1ccc(F)cc1", 0.1 + 0.2 + 0.2 / 2, {"valid", "fair", "scaffold", "one_group", "plausible", "goals"}),
        ("c1cc(O)ccc1Oc1ccc(N)cc1", 0.1 + 0.2, {"valid", "fair", "scaffold", "one_group", "plausible"}),
        ("c1cc(Cl)ccc1Oc1ccc(Cl)cc1", 0.1, {"valid", "scaffold", "plausible"}),
        ("c1cc(O)ccc1Oc1ccc(F)cc1", 0.1, {"valid", "scaffold", "plausible", "unchanged"}),
        ("Oc1ccc(Oc2ccc(F)cc2)cc1", 0.1, {"valid", "scaffold", "plausible", "unchanged"}),
        ("C", 0.1, {"valid", "plausible"}),
        ("c1ccccc1", 0.1, {"valid", "plausible"}),
        ("c1cc(Cl)ccc1Sc1ccc(F)cc1", 0.1, {"valid", "plausible"}),
        ("c1cc(Cl)ccc1Oc1ccc(F)cn1", 0.1, {"valid", "plausible"}),
        ("c1cc(CCCC)ccc1Oc1ccc(F)cc1", 1.0, {"success", "valid", "fair", "scaffold", "one_group", "plausible", "goals"}),
        ("c1cc(CCCCC)ccc1Oc1ccc(F)cc1", 0.1, {"valid", "scaffold", "one_group"}),
        ("c1cc(Cl)ccc1Oc1ccc(F)cc1.C", 0.1, {"valid", "plausible"}),
        ("c1cc([Cl+])ccc1Oc1ccc(F)cc1", 0.1, {"valid", "scaffold", "one_group"}),
        ("c1cc([13CH3])ccc1Oc1ccc(F)cc1", 0.1, {"valid", "scaffold", "one_group"}),
        ("c1cc([Se]C)ccc1Oc1ccc(F)cc1", 0.1, {"valid", "scaffold", "one_group"}),
        ("c1cc(OOC)ccc1Oc1ccc(F)cc1", 0.1, {"valid", "scaffold", "one_group"}),
        ("c1cc([CH2])ccc1Oc1ccc(F)cc1", 0.1, {"valid", "scaffold", "one_group"}),
        ("c1cc(C(=O)Cl)ccc1Oc1ccc(F)cc1", 0.1, {"valid", "scaffold", "one_group"}),
        ("c1cc(Cl)ccc1Oc1ccc(F", 0.0, set()),
        ("c1cc(C(C)(C)(C)C)ccc1", 0.0, set()),
        ("the molecule is fine as it is", 0.0, set()),
        ("", 0.0, set()),
        (None, 0.0, set()),
    ],
)
def test_a_molecule_is_worth_what_it_meets_where_it_was_come_by_fairly(answer: str | None, value: float, parts: set[str]) -> None:
    score = drug_discovery(proposed(answer))
    assert {name for name, part in score.parts.items() if part} == parts
    assert score.value == pytest.approx(value)
    assert set(score.parts) == set(PARTS)


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("Oc1ccccc1", "Cc1ccccc1", (1, 1)),
        ("Oc1ccccc1", "c1ccc(O)cc1", (0, 0)),
        ("Oc1ccccc1", "c1ccccc1", (1, 0)),
        ("Oc1ccccc1", "Oc1ccccn1", None),
        ("Cc1ccc(O)cc1", "Cc1cc(O)ccc1", (2, 1)),  # a group that moves is gone at one place and new at another
        ("Cc1ccc(O)cc1", "Cc1ccc(OCC)cc1", (1, 3)),
        ("c1cc[nH]c1", "c1ccn(C)c1", (1, 1)),
        ("O=C(Nc1ccccc1)c1ccccc1", "O=C(N(C)c1ccccc1)c1ccccc1", (1, 1)),  # at the linker
        ("O=C(Nc1ccccc1)c1ccccc1", "O=S(=O)(Nc1ccccc1)c1ccccc1", None),
        ("C[C@H](O)c1ccccc1", "C[C@@H](O)c1ccccc1", (0, 0)),
        ("CCO", "CCO", None),
        ("Oc1ccccc1", "Cc1ccccc1.Cl", None),
    ],
)
def test_groups_are_compared_at_each_place_of_the_scaffold(before: str, after: str, changed: tuple[int, int] | None) -> None:
    assert molecules.groups_changed(molecules.read(before), molecules.read(after)) == changed


def test_what_was_absurd_before_may_stay_and_not_grow() -> None:
    start, goals = "c1cc([N+](=O)[O-])ccc1Oc1ccc(F)cc1", [{"property": "weight", "at_least": 1}]
    assert drug_discovery(proposed("c1cc([N+](=O)[O-])ccc1Oc1ccc(Cl)cc1", start, goals)).parts["fair"] == 1
    assert drug_discovery(proposed("c1cc([N+](=O)[O-])ccc1Oc1ccc([N+](=O)[O-])cc1", start, goals)).parts["plausible"] == 0


def test_a_rows_own_limit_counts() -> None:
    pentyl = proposed("c1cc(CCCCC)ccc1Oc1ccc(F)cc1")
    assert drug_discovery(pentyl).value == pytest.approx(0.1) and drug_discovery(pentyl, max_group=MAX_GROUP + 1).value == 1
    with pytest.raises(ValueError, match="max_group"):
        make_scorer("burnish/drug-discovery-v1", params={"max_group": 0})


def test_no_answer_fails_a_run_whatever_a_policy_writes() -> None:
    """Rubbish of SMILES' own letters, and molecules with letters struck out, doubled and put in: a low reward at worst."""
    rng = random.Random(5)
    alphabet = "CNOSPFIcnos()[]=#+-@/\\%.0123456789:*$HBrlKUu"
    for turn in range(600):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 40)))
        if turn % 2:
            text = START
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(text))
                text = text[:at] + rng.choice(("", text[at] * 2, rng.choice(alphabet))) + text[at + 1 :]
        score = drug_discovery(proposed(text))
        assert 0 <= score.value <= 1 and (score.parts["success"] == 0 or score.parts["fair"] == 1)


@pytest.mark.parametrize("text", ["C" * 120, "c1" * 60, "C1CC2" * 24, "[" * 120, "(" * 60 + ")" * 60, "C%99" * 30, "N#N" * 40])
def test_the_longest_answers_are_judged_soon(text: str) -> None:
    assert drug_discovery(proposed(text)).value <= 0.1
    assert molecules.read("C" * 121) is None


def test_it_runs_in_processes_that_can_be_killed_and_the_verifier_says_the_same() -> None:
    assert find_plugin("burnish/drug-discovery-v1").isolation == "process"
    assert VERIFIERS.get("burnish/drug-discovery-verdict-v1") is verdict and verdict.isolation == "process"
    for answer in ("c1cc(Cl)ccc1Oc1ccc(F)cc1", "C", "…"):
        assert verdict.function(proposed(answer)) == drug_discovery(proposed(answer))
    assert isinstance(verdict.function(proposed("…")), Score)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"molecule": "CCO"}, "must have `molecule`, the SMILES of one molecule with a ring, not 'CCO'"),
        ({"molecule": "no"}, "not 'no'"),
        ({"molecule": "c1ccccc1.Cl"}, "not 'c1ccccc1.Cl'"),
        ({"molecule": None}, "not None"),
        ({"goals": []}, r"must have `goals`, a list of at least one, not \[\]"),
        ({"goals": [{"property": "smell", "at_least": 1}]}, "a goal is"),
    ],
)
def test_data_that_does_not_say_what_is_asked_is_a_mistake_of_the_task_and_no_reward(data: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        drug_discovery(proposed("c1ccccc1", **data))
