"""The drug discovery world: molecules put together by hand, properties that add up, rings held out, goals neither met nor hopeless."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from burnish.envs.builtin.drug_discovery import corpus, wording
from burnish.envs.builtin.drug_discovery.cases import FEWEST, LEAST_MOVE, LEVELS, MOST, TRAIN_SEEDS, Case, make_case
from burnish.envs.builtin.drug_discovery.chemists import EXPERT, Habits, choose, work
from burnish.envs.builtin.drug_discovery.fragments import GROUPS, LINKERS, RINGS, Properties
from burnish.envs.builtin.drug_discovery.goals import Goal
from burnish.envs.builtin.drug_discovery.molecules import Exchange, Molecule, draw_molecule
from burnish.envs.contract import make_env
from burnish.trainer.data.config import TRAIN_SEEDS as RECIPES_TRAIN_SEEDS

pytestmark = pytest.mark.unit

ID = "burnish/DrugDiscovery-v0"
HELD_OUT = 1_500_000_000

PHENOL_AMIDE = Molecule(("benzene", "thiophene"), "amide", ("O", "Cl"))
FEWER_DONORS = Case(7, PHENOL_AMIDE, (Goal("donors", "at_most", 1), Goal("logp", "at_least", 3.3)), moves=1)


@pytest.mark.parametrize(
    ("molecule", "smiles"),
    [
        (PHENOL_AMIDE, "c1cc(O)ccc1C(=O)Nc1ccc(Cl)s1"),
        (Molecule(("benzene", "benzene"), "bond", ("H", "H")), "c1ccccc1-c1ccccc1"),
        (Molecule(("pyrimidine", "pyrrole"), "ether", ("C#N", "H")), "n1cc(C#N)cnc1Oc1ccc[nH]1"),
        (Molecule(("thiazole", "naphthalene"), "sulfonamide", ("H", "S(C)(=O)=O")), "s1ccnc1S(=O)(=O)Nc1ccc2cc(S(C)(=O)=O)ccc2c1"),
    ],
)
def test_a_molecule_is_written_from_left_to_right(molecule: Molecule, smiles: str) -> None:
    assert molecule.smiles == smiles


def test_the_properties_of_a_molecule_are_the_sum_of_what_its_fragments_count() -> None:
    """Diphenyl ether, by hand: 12 C, 10 H and an O weigh 170.211; one acceptor; 9.23 square ångströms (Ertl's ether)."""
    ether = Molecule(("benzene", "benzene"), "ether", ("H", "H")).properties
    assert (ether.weight, ether.tpsa, ether.donors, ether.acceptors) == (pytest.approx(170.211), 9.23, 0, 1)
    phenol = Molecule(("benzene", "benzene"), "ether", ("O", "H")).properties
    assert (phenol.weight, phenol.tpsa, phenol.donors, phenol.acceptors) == (pytest.approx(186.21), 29.46, 1, 2)


def test_an_exchange_puts_a_group_in_the_place_of_another() -> None:
    assert PHENOL_AMIDE.exchanged(Exchange(0, "OC")).smiles == "c1cc(OC)ccc1C(=O)Nc1ccc(Cl)s1"
    assert PHENOL_AMIDE.exchanged(Exchange(1, "H")).smiles == "c1cc(O)ccc1C(=O)Nc1cccs1"
    assert len(list(PHENOL_AMIDE.exchanges())) == 2 * (len(GROUPS) - 1)


def test_every_molecule_of_evaluation_has_a_ring_that_none_of_training_has() -> None:
    seen = {ring for seed in range(400) for ring in make_case(seed, 0).molecule.rings}
    new = {name for name, ring in RINGS.items() if ring.held_out}
    assert seen == set(RINGS) - new and len(new) == 3
    for seed in range(HELD_OUT, HELD_OUT + 200):
        assert set(make_case(seed, 0).molecule.rings) & new


def test_what_is_for_training_here_is_what_recipes_train_on() -> None:
    assert RECIPES_TRAIN_SEEDS == (0, TRAIN_SEEDS)


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [
        (Goal("logp", "at_least", 2.5), 2.5, True),
        (Goal("logp", "at_least", 2.5), 2.4999, False),
        (Goal("donors", "at_most", 1), 1, True),
        (Goal("donors", "at_most", 1), 2, False),
    ],
)
def test_a_goal_is_met_within_its_bound(goal: Goal, value: float, met: bool) -> None:
    assert goal.met_by({goal.property: value}) is met
    assert Goal.from_dict(goal.to_dict()) == goal


@pytest.mark.parametrize(
    "row",
    [
        {"property": "smell", "at_least": 1}, {"property": "logp"}, {"property": "logp", "at_least": 1, "at_most": 2},
        {"property": "logp", "at_least": "1"}, {"property": "logp", "at_least": True}, {"property": "logp", "at_least": float("nan")},
        {"property": "logp", "at_least": 1, "weight": 2}, "logp", None,
    ],
)  # fmt: skip
def test_what_is_no_goal_is_refused(row: object) -> None:
    with pytest.raises(ValueError, match="a goal is"):
        Goal.from_dict(row)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("first", [0, HELD_OUT])
def test_a_case_has_goals_that_the_molecule_does_not_meet_and_few_exchanges_do(level: int, first: int) -> None:
    for seed in range(first, first + 150):
        case = make_case(seed, level)
        before = case.molecule.properties.values
        assert [goal.met_by(before) for goal in case.goals] == [False] * LEVELS[level].moves + [True] * LEVELS[level].keeps
        assert case.moves == LEVELS[level].moves and FEWEST <= len(case.fitting) <= MOST * len(list(case.exchanges()))
        assert {goal.property for goal in case.goals} <= set(LEVELS[level].properties)
        assert {*case.molecule.groups, *(exchange.group for exchange in case.exchanges())} == set(LEVELS[level].groups)
    assert make_case(first, level) == make_case(first, level) != make_case(first + 1, level)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("first", [0, HELD_OUT])
def test_no_exchange_does_well_whatever_is_asked(first: int, level: int) -> None:
    cases = [make_case(seed, level) for seed in range(first, first + 600)]
    always = [Exchange(place, group) for place in (0, 1) for group in LEVELS[level].groups]
    best = max(sum(case.meets(exchange) for case in cases) for exchange in always) / len(cases)
    chance = sum(len(case.fitting) / len(list(case.exchanges())) for case in cases) / len(cases)
    assert best < 0.3 and 0.1 < chance < 0.2
    assert {case.goals[0].property for case in cases} == set(LEVELS[level].properties)
    assert Counter(case.goals[0].bound for case in cases)["at_least"] / len(cases) == pytest.approx(0.5, abs=0.15)


def test_a_request_says_all_that_an_answer_needs() -> None:
    assert wording.request(FEWER_DONORS) == (
        "Molecule: c1cc(O)ccc1C(=O)Nc1ccc(Cl)s1\nNow: donors 2, logP 3.4\nGoal: donors at most 1, logP at least 3.3"
    )
    assert wording.answer(FEWER_DONORS, Exchange(0, "OC"), notes=True) == "fewer donors: O -> OC\nc1cc(OC)ccc1C(=O)Nc1ccc(Cl)s1"
    assert wording.answer(FEWER_DONORS, Exchange(1, "H"), notes=False) == "c1cc(O)ccc1C(=O)Nc1cccs1"


def test_the_literature_says_what_an_exchange_does() -> None:
    assert wording.group_fact(PHENOL_AMIDE, Exchange(0, "OC")) == (
        "Methoxy (OC) for hydroxy (O): weight +14.0, logP +0.3, TPSA -11.0, donors -1."
    )
    assert wording.study(FEWER_DONORS, Exchange(0, "F")).startswith(
        "For fewer donors, hydroxy (O) of c1cc(O)ccc1C(=O)Nc1ccc(Cl)s1 was exchanged for fluoro (F): weight +2.0, "
    )
    assert wording.shift_text(PHENOL_AMIDE.properties, PHENOL_AMIDE.properties) == "nothing changes"
    assert wording.values_text(Properties(100.0, -0.04, 0.0, 0, 1)) == "weight 100.0, logP -0.0, TPSA 0.0, donors 0, acceptors 1"


@pytest.mark.parametrize(
    ("text", "smiles"),
    [
        ("c1ccccc1", "c1ccccc1"),
        ("fewer donors: O -> F\nc1cc(F)ccc1 \n", "c1cc(F)ccc1"),
        ("no spaces within c1ccccc1", None),
        ("c1ccccc1\nThis is it.", None),
        ("c" * 120, "c" * 120),
        ("c" * 121, None),
        ("с1ccccc1", None),  # a Cyrillic letter
        ("", None),
    ],
)
def test_a_smiles_is_read_on_the_last_line_or_not_at_all(text: str, smiles: str | None) -> None:
    assert wording.parse_smiles(text) == smiles


@pytest.mark.parametrize("level", LEVELS)
def test_the_expert_meets_every_goal(level: int) -> None:
    for seed in range(100):
        case = make_case(seed, level)
        smiles = {case.molecule.exchanged(exchange).smiles for exchange in case.fitting}
        assert wording.parse_smiles(work(seed, level, EXPERT)[-1].text) in smiles


def test_the_history_guesses_and_overlooks_goals_as_often_as_it_says() -> None:
    cases = [make_case(seed, 0) for seed in range(600)]

    def met(habits: Habits, goals: slice) -> float:
        chosen = [choose(case, habits, np.random.default_rng([case.seed, 1])) for case in cases]
        return sum(case.meets(exchange, case.goals[goals]) for case, exchange in zip(cases, chosen, strict=True)) / len(cases)

    assert met(Habits(overlook=1.0), slice(0, 1)) == 1 and met(Habits(overlook=1.0), slice(0, 2)) < 0.8
    assert met(Habits(guess=1.0), slice(0, 2)) < 0.25
    right = met(EXPERT, slice(0, 2)), met(Habits(overlook=1.0), slice(0, 2)), met(Habits(guess=1.0), slice(0, 2))
    assert right[0] == 1
    expected = 0.2 * right[2] + 0.8 * (0.5 * right[1] + 0.5 * right[0])
    assert met(Habits(guess=0.2, overlook=0.5), slice(0, 2)) == pytest.approx(expected, abs=0.06)


def test_an_episode_is_one_answer() -> None:
    env = make_env(ID)
    for seed in range(30):
        messages, info = env.reset(seed=seed)
        case = make_case(seed, 0)
        assert [message.role for message in messages] == ["system", "user"]
        assert info == {"data": {"molecule": case.molecule.smiles, "goals": [goal.to_dict() for goal in case.goals]}}
    assert env.step("whatever")[1:4] == (0.0, True, False)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step("again")
    with pytest.raises(ValueError, match="levels 0, 1, 2; level 3 does not exist"):
        make_env(ID, level=3)


def test_training_text_is_of_molecules_for_training() -> None:
    """Also that of seeds that a user chose beyond the range of recipes: new rings have no tail in it."""
    texts = list(corpus.literature(5, 300))
    assert list(corpus.literature(5, 300)) == texts
    new = [ring.tail.format("") for ring in RINGS.values() if ring.held_out]
    assert not [tail for tail in new for text in texts if f"{tail}:" in text or f"{tail}\n" in text]
    talks = list(corpus.notebooks(17, 100))
    assert [talk[:2] for talk in talks] == [work(seed, 0)[:2] for seed in range(17, 117)]


def test_a_list_says_what_exchanges_are_good_for_as_a_note_does() -> None:
    """Of hydroxy and methoxy, by Ertl's table: 20.23 and 9.23 square ångströms, and one donor and none."""
    assert wording.rule("tpsa", "at_most", "O", "OC") == "lower TPSA: O -> OC"
    assert wording.rule("donors", "at_most", "O", "OC") == wording.note(FEWER_DONORS, Exchange(0, "OC"))
    ways = {wish: (name, sign) for name, pair in wording.WISHES.items() for wish, sign in zip(pair, (-1, 1), strict=True)}
    lists = [text.splitlines() for text in corpus.literature(3, 60) if " -> " in text and not text.startswith("user\n")]
    assert lists and {len(lines) for lines in lists} == {corpus.RULES}
    for line in {line for lines in lists for line in lines}:
        wish, old, new = re.fullmatch(r"([a-zA-Z ]+): (\S+) -> (\S+)", line).groups()  # type: ignore[union-attr]
        name, sign = ways[wish]
        assert sign * (GROUPS[new].adds.values[name] - GROUPS[old].adds.values[name]) >= LEAST_MOVE[name]


@pytest.mark.parametrize("level", LEVELS)
def test_literature_is_of_every_kind(level: int) -> None:
    kinds = Counter(
        "session" if text.startswith("user\n") else "study" if text.startswith("For ") else "fact" if " for " in text
        else "list" if " -> " in text else "table" for text in corpus.literature(1, 300, level)
    )  # fmt: skip
    assert min(kinds[kind] for kind in ("fact", "table", "study")) > 15 and kinds["session"] > 40 and kinds["list"] > 120
    assert any(text.startswith("user\nMolecule:") for text in corpus.vocabulary(0, 50, level))


def test_every_fragment_is_drawn_on_the_side_it_belongs_to() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_molecule(rng, held_out) for held_out in (False, True) for _ in range(500)]
    assert {molecule.linker for molecule in drawn} == set(LINKERS)
    assert {group for molecule in drawn for group in molecule.groups} == set(GROUPS)
    assert {ring for molecule in drawn for ring in molecule.rings} == set(RINGS)
