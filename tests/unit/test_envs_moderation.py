"""The moderation world: rulings worked out by hand, policies held out by their rules, balanced decisions, a history that errs."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
from gymnasium.error import ResetNeeded

from burnish.envs.builtin.moderation import corpus, wording
from burnish.envs.builtin.moderation.cases import AUTHORS, SMALL_TALK, TRAIN_SEEDS, Case, make_case
from burnish.envs.builtin.moderation.moderators import EXPERT, Habits, moderate
from burnish.envs.builtin.moderation.policies import (
    DECISIONS,
    LEVELS,
    THRESHOLDS,
    TOPICS,
    Condition,
    Facts,
    ModerationPolicy,
    ModerationRule,
    Precedence,
    Ruling,
)
from burnish.envs.contract import make_env
from burnish.trainer.data.config import TRAIN_SEEDS as RECIPES_TRAIN_SEEDS

pytestmark = pytest.mark.unit

ID = "burnish/ContentModeration-v0"
HELD_OUT = 1_500_000_000

RULES = (
    ModerationRule("adverts", "label", Condition("removals", 2), "remove"),
    ModerationRule("insults", "remove"),
    ModerationRule("rumours", "remove", Condition("staff"), "allow"),
    ModerationRule("cures", "allow", Condition("reports", 3), "escalate"),
    ModerationRule("politics", "label", Condition("newcomers"), "remove"),
    ModerationRule(None, "allow"),
)


def facts(*topics: str, author: str = "member", removals: int = 0, reports: int = 0) -> Facts:
    return Facts(topics, author, removals, reports)


@pytest.mark.parametrize(
    ("post", "ruling"),
    [
        (facts("adverts", removals=1), Ruling("label", (1,))),
        (facts("adverts", removals=2), Ruling("remove", (1,))),
        (facts("insults", author="staff"), Ruling("remove", (2,))),
        (facts("rumours"), Ruling("remove", (3,))),
        (facts("rumours", author="staff"), Ruling("allow", (3,))),
        (facts("cures", reports=2, removals=4), Ruling("allow", (4,))),
        (facts("cures", reports=3), Ruling("escalate", (4,))),
        (facts("politics", author="newcomer"), Ruling("remove", (5,))),
        (facts("gambling", removals=4, reports=6), Ruling("allow", (6,))),
        (facts(SMALL_TALK), Ruling("allow", (6,))),
    ],
)
def test_a_policy_asks_for_what_its_rules_say(post: Facts, ruling: Ruling) -> None:
    assert ModerationPolicy(RULES).ruling(post) == ruling


@pytest.mark.parametrize(
    ("precedence", "post", "ruling"),
    [
        (None, facts("insults", "adverts"), Ruling("label", (1,))),
        ("first", facts("insults", "adverts"), Ruling("label", (1,))),
        ("strictest", facts("insults", "adverts"), Ruling("remove", (2,))),
        ("strictest", facts("insults", "adverts", removals=2), Ruling("remove", (1, 2))),
        ("strictest", facts("cures", "adverts", reports=3), Ruling("escalate", (4,))),
        ("first", facts("gambling", "politics"), Ruling("label", (5,))),
    ],
)
def test_where_several_rules_apply_precedence_says_which_counts(precedence: Precedence | None, post: Facts, ruling: Ruling) -> None:
    assert ModerationPolicy(RULES, precedence).ruling(post) == ruling


def test_a_request_says_all_that_a_ruling_needs_and_not_the_ruling() -> None:
    policy = ModerationPolicy((RULES[0], RULES[3], RULES[2], RULES[5]))
    case = Case(7, policy, facts("adverts", author="newcomer", removals=3, reports=1), labels=1, sayings=(1,))
    text = """Policy:
1. adverts: label; remove from 2 removals on.
2. cures: allow; escalate from 3 reports on.
3. rumours: remove; allow for staff.
4. anything else: allow.
Author: newcomer, 3 removals, 1 label.
Post, 1 report: Buy my lamps now, only this week."""
    assert wording.request(case) == text
    strictest = replace(case, policy=replace(policy, precedence="strictest"))
    assert wording.request(strictest) == text.replace("allow.\nAuthor", "allow.\nIf several apply, the strictest one counts.\nAuthor")


def every_rule() -> list[ModerationRule]:
    """Every rule of the grammar, of counted conditions one number each."""
    rules = [ModerationRule(topic, decision) for topic in TOPICS for decision in DECISIONS]
    for topic in TOPICS:
        for mild, strict in combinations(DECISIONS, 2):
            for kind, counts in THRESHOLDS.items():
                normal, instead = (strict, mild) if kind == "staff" else (mild, strict)
                rules.append(ModerationRule(topic, normal, Condition(kind, counts[0]), instead))
    return rules


def test_every_topic_and_every_kind_of_condition_has_rules_on_both_sides() -> None:
    rules = every_rule()
    assert len(rules) == 8 * (4 + 6 * 4)
    for held_out in (True, False):
        side = [rule for rule in rules if rule.held_out == held_out]
        assert {rule.topic for rule in side} == set(TOPICS)
        assert {rule.condition.kind if rule.condition else None for rule in side} == {None, *THRESHOLDS}
    assert 0.1 < sum(rule.held_out for rule in rules) / len(rules) < 0.2
    assert not ModerationRule(None, "remove").held_out, "the last rule is of every policy"


def test_the_number_in_a_rule_decides_nothing_about_its_side() -> None:
    for rule in every_rule():
        if rule.condition is not None and rule.condition.at_least:
            others = [replace(rule, condition=replace(rule.condition, at_least=n)) for n in THRESHOLDS[rule.condition.kind]]
            assert {other.held_out for other in others} == {rule.held_out}


@pytest.mark.parametrize("level", LEVELS)
def test_a_held_out_policy_has_a_rule_that_no_policy_of_training_has(level: int) -> None:
    def kinds(policy: ModerationPolicy) -> set[ModerationRule]:
        return {replace(rule, condition=rule.condition and Condition(rule.condition.kind)) for rule in policy.rules[:-1]}

    seen = set().union(*(kinds(make_case(seed, level).policy) for seed in range(600)))
    for seed in range(HELD_OUT, HELD_OUT + 150):
        assert kinds(make_case(seed, level).policy) - seen


def test_what_is_for_training_here_is_what_recipes_train_on() -> None:
    assert RECIPES_TRAIN_SEEDS == (0, TRAIN_SEEDS)


@pytest.mark.parametrize("first", [0, HELD_OUT])
def test_decisions_are_balanced_and_no_simple_reading_of_the_policy_does_well(first: int) -> None:
    cases = [make_case(seed, 0) for seed in range(first, first + 1000)]
    counts = Counter(case.ruling.decision for case in cases)
    assert all(200 < counts[decision] < 300 for decision in DECISIONS)
    ruled = [(case.policy.rules[case.ruling.rules[0] - 1], case) for case in cases]
    holds = sum(rule.condition is not None and rule.condition.holds(case.facts) for rule, case in ruled) / len(cases)
    fails = sum(rule.condition is not None and not rule.condition.holds(case.facts) for rule, case in ruled) / len(cases)
    assert 0.2 < holds < 0.4 and 0.2 < fails < 0.4
    assert {case.facts.author for case in cases} == set(AUTHORS)


def test_a_seed_is_a_case() -> None:
    assert [make_case(seed, 1) for seed in (3, HELD_OUT)] == [make_case(seed, 1) for seed in (3, HELD_OUT)]
    assert make_case(3, 0) != make_case(4, 0)


@pytest.mark.parametrize("level", LEVELS)
def test_the_expert_is_right(level: int) -> None:
    for seed in range(200):
        given, asked = wording.parse_ruling(moderate(seed, level, EXPERT)[-1].text), make_case(seed, level).ruling
        assert given is not None and given[0] == asked.decision and given[1] in asked.rules


def test_the_history_slips_and_overlooks_conditions_as_often_as_it_says() -> None:
    cases = [make_case(seed, 0) for seed in range(1000)]

    def right(habits: Habits, holds: bool) -> float:
        """The share of right rulings where the condition of the rule that decides holds, or where it does not or there is none."""
        found = []
        for case in cases:
            rule = case.policy.rules[case.ruling.rules[0] - 1]
            if (rule.condition is not None and rule.condition.holds(case.facts)) == holds:
                given = wording.parse_ruling(moderate(case.seed, 0, habits)[-1].text)
                assert given is not None and given[1] == case.ruling.rules[0]
                found.append(given[0] == case.ruling.decision)
        return sum(found) / len(found)

    assert right(Habits(overlook=0.6), holds=False) == 1
    assert right(Habits(overlook=0.6), holds=True) == pytest.approx(0.4, abs=0.09)
    assert right(Habits(slip=0.2), holds=False) == pytest.approx(0.8, abs=0.05)
    assert right(Habits(slip=0.2, overlook=0.6), holds=True) == pytest.approx(0.8 * 0.4, abs=0.09)


@pytest.mark.parametrize(
    ("rule", "note"),
    [
        (RULES[0], "adverts: label; remove from 2 removals on. 3 removals."),
        (RULES[1], "insults: remove."),
        (RULES[2], "rumours: remove; allow for staff. newcomer."),
        (RULES[3], "cures: allow; escalate from 3 reports on. 1 report."),
        (RULES[5], "anything else: allow."),
    ],
)
def test_a_note_is_the_rule_and_what_its_condition_asks_about(rule: ModerationRule, note: str) -> None:
    post = facts(rule.topic or SMALL_TALK, author="newcomer", removals=3, reports=1)
    assert wording.note(rule, post) == note
    assert wording.explanation(rule, post) == f"{note} {rule.decide(post)}"


def test_who_overlooks_a_condition_writes_nothing_of_it_down() -> None:
    for seed in range(100):
        case = make_case(seed, 0)
        rule = case.policy.rules[case.ruling.rules[0] - 1]
        whole, half = (moderate(seed, 0, Habits(overlook=overlook, notes=True))[-1].text for overlook in (0.0, 1.0))
        said = f"rule {case.ruling.rules[0]}: "
        assert whole == f"{wording.note(rule, case.facts)}\n{said}{case.ruling.decision}"
        assert half == f"{wording.rule_text(ModerationRule(rule.topic, rule.decision))}\n{said}{rule.decision}"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("rule 2: remove", ("remove", 2)),
        (" Rule 12: Escalate. \n", ("escalate", 12)),
        ("adverts, three removals\nrule 1: label", ("label", 1)),
        ("remove", None),
        ("rule 2: delete", None),
        ("rule 2: remove because it is an insult", None),
        ("rule 1: allow\nrule 2: remove", None),
        ("by rule 2: remove", None),
        ("rule 123: remove", None),
        ("rule ٢: remove", None),
        ("", None),
    ],
)
def test_a_ruling_is_read_at_the_end_of_an_answer_or_not_at_all(text: str, read: tuple[str, int] | None) -> None:
    assert wording.parse_ruling(text) == read


def test_no_sentence_is_of_two_topics() -> None:
    said = [wording.saying(topic, n) for topic in (*TOPICS, SMALL_TALK) for n in range(15)]
    assert len(set(said)) == len(said)


def test_an_episode_is_one_answer_and_what_is_right_stays_hidden() -> None:
    env = make_env(ID)
    for seed in range(50):
        messages, info = env.reset(seed=seed)
        case = make_case(seed, 0)
        assert [message.role for message in messages] == ["system", "user"]
        assert info == {"data": {"decision": case.ruling.decision, "rules": list(case.ruling.rules)}}
        assert wording.ruling_text(case.ruling.decision, case.ruling.rules[0]) not in messages[-1].text
    assert env.step("whatever")[1:4] == (0.0, True, False)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step("again")
    with pytest.raises(ValueError, match="levels 0, 1; level 2 does not exist"):
        make_env(ID, level=2)


def test_training_text_is_of_policies_for_training() -> None:
    """Also that of seeds that a user chose beyond the range of recipes."""
    texts = list(corpus.policy_texts(5, 300))
    assert list(corpus.policy_texts(5, 300)) == texts
    held_out = [wording.rule_text(rule) for rule in every_rule() if rule.held_out]
    assert not [rule for rule in held_out for text in texts if rule in text]
    talks = list(corpus.rulings(17, 200))
    assert not [rule for rule in held_out for talk in talks if rule in talk[1].text]
    assert [talk[:2] for talk in talks] == [moderate(seed, 0)[:2] for seed in range(17, 217)]


@pytest.mark.parametrize("level", LEVELS)
def test_handbook_pages_and_rulings_are_of_every_kind(level: int) -> None:
    kinds = Counter(
        "session" if text.startswith("user\n") else "rules" if ": " in text else "topics" for text in corpus.policy_texts(1, 400, level)
    )
    assert kinds["session"] > kinds["rules"] > kinds["topics"] > 0
    assert any(text.startswith("user\nPolicy:") for text in corpus.vocabulary(0, 50, level))


@pytest.mark.parametrize("text", ["\n" * 300_000, "rule 1: remove" + " " * 300_000 + "x"])
def test_no_answer_takes_the_square_of_its_length_to_read(text: str) -> None:
    started = time.process_time()
    assert wording.parse_ruling(text) is None
    assert time.process_time() - started < 20, "it takes milliseconds; one look at each pair of characters takes minutes"
    assert wording.parse_ruling("Notes.\n\n  Rule 1: remove .  \n") == ("remove", 1)
