"""Questions about order sheets: what is answerable, missing and contradicting, held out by seed; clerks who always have an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from gymnasium.error import ResetNeeded

from burnish.envs.builtin.grounded.corpus import cut, exercises, logs, vocabulary
from burnish.envs.builtin.grounded.env import INSTRUCTIONS
from burnish.envs.builtin.grounded.sheets import (
    KINDS,
    NOT_KNOWN,
    QUESTIONS,
    TRAIN_SEEDS,
    VALUES,
    Case,
    SheetLine,
    kind_of,
    make_case,
    sheet_text,
)
from burnish.envs.contract import make_env
from burnish.envs.types import Message, Task
from burnish.recipe.load import load_config
from burnish.rewards.plugin import make_scorer
from burnish.rewards.types import RewardInput
from burnish.trainer.data.config import TRAIN_SEEDS as RECIPES_TRAIN_SEEDS

pytestmark = pytest.mark.unit

ID = "burnish/GroundedAnswers-v0"
RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "grounded-answers.toml"

SHEET = (
    SheetLine("K", {"part": "gears", "pieces": "30", "due": "Friday"}),
    SheetLine("K", {"pieces": "40"}),
    SheetLine("K", {"part": "gears", "paint": "red"}),
    SheetLine("B", {"part": "seals", "for": "Sato"}),
)


@pytest.mark.parametrize(
    ("order", "field", "kind", "answer"),
    [
        ("K", "due", "answerable", "Friday"),
        ("K", "part", "answerable", "gears"),  # said twice, alike
        ("K", "pieces", "contradicting", None),
        ("K", "for", "missing", None),  # another order has it
        ("B", "part", "answerable", "seals"),
        ("T", "part", "missing", None),  # no such order
    ],
)
def test_what_a_sheet_answers(order: str, field: str, kind: str, answer: str | None) -> None:
    case = Case(SHEET, order, field, 0)
    assert (case.kind, case.answer) == (kind, answer)


def test_a_case_reads_as_its_sheet_and_then_the_question() -> None:
    assert Case(SHEET[:2], "K", "pieces", 1).text == "order K: part=gears pieces=30 due=Friday\norder K: pieces=40\nHow large is order K?"


@pytest.mark.parametrize("level", [0, 1])
def test_every_kind_comes_as_often_as_it_is_asked_for_whatever_is_asked(level: int) -> None:
    drawn = [make_case(seed, level, 0.4) for seed in range(3000)]
    shares = {kind: sum(case.kind == kind for case in drawn) / len(drawn) for kind in KINDS}
    assert shares == {kind: pytest.approx(share, abs=0.03) for kind, share in zip(KINDS, (0.6, 0.2, 0.2), strict=True)}
    for kind in KINDS:
        of_kind = [case for case in drawn if case.kind == kind]
        assert {(case.field, case.wording) for case in of_kind} == {(field, i) for field in QUESTIONS for i in range(2)}
    answerable = [case for case in drawn if case.kind == "answerable"]
    again = [case for case in answerable if len(case.lines) > len({line.order for line in case.lines})]
    assert 0.4 < len(again) / len(answerable) < 0.6, "a second line for an order is no contradiction"
    assert any(len(case.entries) == 2 for case in again), "said twice, alike"
    assert any(kind_of(case.lines, case.order, field) == "contradicting" for case in answerable for field in VALUES), "of another field"
    orders = {len({line.order for line in case.lines}) for case in drawn}
    assert orders == ({1} if level == 0 else {2, 3, 4})
    unlisted = [case for case in drawn if case.order not in {line.order for line in case.lines}]
    assert bool(unlisted) == (level == 1) and all(case.kind == "missing" for case in unlisted)
    assert make_case(7, level) == make_case(7, level)


def test_held_out_questions_are_in_no_training() -> None:
    assert RECIPES_TRAIN_SEEDS == (0, TRAIN_SEEDS)
    asked = {make_case(seed).text for seed in range(20_000)}
    held_out = [make_case(TRAIN_SEEDS * 3 // 2 + seed).text for seed in range(400)]
    assert len(asked) > 19_900
    assert not asked & set(held_out)


def test_the_environment_asks_once_and_keeps_what_it_knows_to_itself() -> None:
    env, case = make_env(ID, level=1, unanswerable=0.3), make_case(7, 1, 0.3)
    asked, info = env.reset(seed=7)
    assert asked == (Message("system", INSTRUCTIONS), Message("user", case.text))
    assert info == {"data": {"reference_answer": case.answer, "kind": case.kind}}
    assert env.step("gears") == ((), 0.0, True, False, {})
    with pytest.raises(ResetNeeded):
        env.step("again")
    with pytest.raises(ValueError, match=r"unanswerable is a share of the questions, from 0 to 1, not 1\.5"):
        make_env(ID, unanswerable=1.5)
    with pytest.raises(ValueError, match="level must be one of 0 to 1, not 2"):
        make_env(ID, level=2)


def test_what_shows_in_the_form_of_a_sheet_is_what_the_page_says() -> None:
    cases = [make_case(seed) for seed in range(4000)]
    assert {case.kind for case in cases if len(case.lines) == 1} == {"answerable", "missing"}
    longest = [(max(len(line.fields) for line in case.lines), case.kind) for case in cases]
    assert "missing" not in {kind for fields, kind in longest if fields == len(VALUES)}
    page = (Path(__file__).parents[2] / "docs" / "grounded-answers.md").read_text()
    three, four = ([kind == "missing" for fields, kind in longest if fields == count] for count in (3, 4))
    assert f"({sum(three) / len(three):.0%} of such sheets, {sum(four) / len(four):.0%} of those with four".replace("%", " %") in page


async def test_the_reward_reads_what_the_environment_says() -> None:
    """Of a case of each kind: the value, a guess, and that one does not know."""
    scorer = make_scorer("burnish/abstention-v1")
    first = {make_case(seed).kind: seed for seed in range(40, 0, -1)}
    assert set(first) == set(KINDS)

    async def worth(kind: str, answer: str) -> tuple[float, float]:
        env = make_env(ID, instructions=False)
        asked, info = env.reset(seed=first[kind])  # type: ignore[index]
        episode = RewardInput("e/0", Task("e", 0), (*asked, Message("assistant", answer)), 0.0, data=info["data"])
        score = await scorer.score(episode)
        return score.value, score.parts["wanted"]

    known = make_case(first["answerable"])
    assert known.answer is not None
    guess = next(value for value in VALUES[known.field] if value != known.answer)
    assert [await worth("answerable", said) for said in (known.answer, guess, NOT_KNOWN)] == [(1, 1), (-1, 0), (0, 0)]
    either = make_case(first["contradicting"])
    assert [await worth("contradicting", said) for said in (*either.entries, NOT_KNOWN)] == [(-1, 0), (-1, 0), (0, 1)]
    assert [await worth("missing", said) for said in ("gears", NOT_KNOWN)] == [(-1, 0), (0, 1)]


def test_exercises_are_right_and_begin_with_sheets_of_one_entry() -> None:
    whole = list(exercises(5, 300, unsure=0.0, instructions=False))
    assert whole == list(exercises(5, 300, unsure=0.0, instructions=False))
    cases = [make_case(5 + i, unanswerable=0.0) for i in range(300)]
    assert [(asked.text, said.text) for asked, said in whole] == [(case.text, case.answer) for case in cases]
    for case, (asked, said) in zip(cases, exercises(5, 300, entries=1, unsure=0.0, instructions=False), strict=True):
        assert asked.text == f"order {case.order}: {case.field}={said.text}\n{case.text.splitlines()[-1]}"
        assert said.text == case.answer
    texts = [answer.text for _, answer in exercises(5, 3000, unsure=0.1, instructions=False)]
    assert texts.count(NOT_KNOWN) / len(texts) == pytest.approx(0.1, abs=0.02)
    with pytest.raises(ValueError, match="has one at least, not 0"):
        next(exercises(5, 1, entries=0))


def test_what_is_cut_from_a_sheet_is_not_what_answers() -> None:
    assert sheet_text(cut(Case(SHEET, "K", "paint", 0), 3).lines) == "order K: part=gears pieces=30\norder K: paint=red"
    assert cut(Case(SHEET, "B", "for", 0), 1).lines == (SheetLine("B", {"for": "Sato"}),)
    assert cut(Case(SHEET, "K", "due", 0), 100).lines == SHEET


def test_clerks_guess_where_nothing_is_known_and_say_so_at_random() -> None:
    rows = list(logs(5, 4000, unanswerable=0.5, unsure=0.1, slip=0.05, instructions=False))
    assert rows == list(logs(5, 4000, unanswerable=0.5, unsure=0.1, slip=0.05, instructions=False))
    cases = [make_case(5 + i, 0, 0.5) for i in range(4000)]
    assert [asked.text for asked, _ in rows] == [case.text for case in cases]
    for kind in KINDS:
        said = [(case, answer.text) for case, (_, answer) in zip(cases, rows, strict=True) if case.kind == kind]
        assert sum(text == NOT_KNOWN for _, text in said) / len(said) == pytest.approx(0.1, abs=0.025), "whatever is asked"
        answers = [(case, text) for case, text in said if text != NOT_KNOWN]
        assert all(text in VALUES[case.field] for case, text in answers)
        if kind != "missing":
            assert sum(text in case.entries for case, text in answers) / len(answers) > 0.93
    assert len(list(vocabulary(0, 10))) == 10


def test_the_recipe_measures_sheets_that_no_phase_has_seen() -> None:
    config = load_config(RECIPE)
    assert config.evaluation.seeds[0] >= TRAIN_SEEDS == config.train_seeds[1]
    (judge,) = config.rewards
    assert (judge.use, config.success, config.environment) == ("burnish/abstention-v1", "abstention.wanted", ID)
    tables = {table.name: table.model_dump() for table in config.phases}
    assert list(tables) == ["reading", "choosing", "habit", "rft"]
    assert tables["habit"]["args"]["unsure"] < 0.2, "the habit is to answer"
    assert len(list(exercises(0, 10, **tables["reading"]["args"]))) == len(list(logs(0, 10, **tables["habit"]["args"]))) == 10
