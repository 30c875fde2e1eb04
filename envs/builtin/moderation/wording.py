"""Every sentence of the moderation environment, written and read in one place."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .cases import SMALL_TALK, Case
from .policies import DECISIONS, Condition, Decision, Facts, ModerationPolicy, ModerationRule

RULING_PATTERN = re.compile(
    rf"(?:^|\n)[^\S\n]*rule\s+(?P<rule>[0-9]{{1,2}})\s*:\s*(?P<decision>{'|'.join(DECISIONS)})\s*(?:\.\s*)?$", re.IGNORECASE
)

RULING_HELP = f"Answer 'rule N: D', N the rule that decides and D one of {', '.join(DECISIONS)}."

INSTRUCTIONS = f"Moderate the post by the policy. {RULING_HELP}"

SAYINGS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "adverts": (
        ("Half price {} in my shop, order today!", "Buy my {} now, only this week.", "Best {} in town, use my code."),
        ("lamps", "shoes", "phones", "rugs", "watches"),
    ),
    "insults": (
        ("You are a {} and everyone knows it.", "Only a {} could write this.", "Shut up, you {}."),
        ("fool", "clown", "liar", "donkey", "coward"),
    ),
    "rumours": (
        (
            "I heard that the {} will close, nobody says it aloud.",
            "They hide it, but the {} is bankrupt.",
            "Someone told me the {} is cursed.",
        ),
        ("school", "bridge", "bakery", "clinic", "museum"),
    ),
    "spoilers": (
        ("In the last chapter the {} dies.", "It turns out that the {} did it.", "The film ends when the {} wakes up."),
        ("captain", "butler", "queen", "doctor", "pilot"),
    ),
    "gambling": (
        ("Bet on {} with me, double your money.", "I won big on {}, join the table.", "Stake ten on {} tonight."),
        ("horses", "poker", "dice", "roulette", "boxing"),
    ),
    "cures": (
        ("Drink {} and the fever is gone.", "Doctors hate it: {} heals everything.", "Stop your pills, take {} instead."),
        ("vinegar", "garlic", "silver", "honey", "mud"),
    ),
    "politics": (
        ("Vote for the {} on Sunday.", "The {} will ruin this country.", "The minister should listen to the {}."),
        ("greens", "liberals", "socialists", "farmers", "conservatives"),
    ),
    "addresses": (
        ("She lives at {} Mill Lane, go and see.", "His door is number {} on Hill Road.", "Write to him at {} Park Street."),
        ("12", "27", "34", "58", "91"),
    ),
    SMALL_TALK: (
        ("What a lovely {} we had today.", "Does anyone like {} as I do?", "Good morning, the {} was fine."),
        ("breakfast", "sunset", "concert", "walk", "garden"),
    ),
}
"""By topic: sentences, and the words that stand in their gaps."""


def request(case: Case) -> str:
    """What a moderator is given. Example:

    Policy:
    1. adverts: label; remove from 2 removals on.
    2. insults: remove.
    3. rumours: escalate; allow for staff.
    4. anything else: allow.
    Author: newcomer, 3 removals, 1 label.
    Post, 2 reports: Buy my lamps now, only this week.
    """
    facts = case.facts
    author = f"Author: {facts.author}, {count(facts.removals, 'removal')}, {count(case.labels, 'label')}."
    return f"{policy_text(case.policy)}\n{author}\nPost, {count(facts.reports, 'report')}: {post_text(case)}"


def policy_text(policy: ModerationPolicy) -> str:
    """The rules, one a line, and the precedence."""
    rules = [f"{number}. {rule_text(rule)}" for number, rule in enumerate(policy.rules, 1)]
    precedence = [f"If several apply, the {policy.precedence} one counts."] if policy.precedence else []
    return "\n".join(["Policy:", *rules, *precedence])


def rule_text(rule: ModerationRule) -> str:
    """Examples: `insults: remove.`, `adverts: label; remove from 2 removals on.`, `rumours: escalate; allow for staff.`"""
    clause = f"; {rule.instead} {condition_text(rule.condition)}" if rule.condition else ""
    return f"{rule.topic or 'anything else'}: {rule.decision}{clause}."


def condition_text(condition: Condition) -> str:
    """Examples: `from 1 removal on`, `from 3 reports on`, `for staff`."""
    if condition.at_least:
        return f"from {count(condition.at_least, condition.kind.removesuffix('s'))} on"
    return f"for {condition.kind}"


def count(number: int, noun: str) -> str:
    """Examples: `1 label`, `0 labels`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def saying(topic: str, number: int) -> str:
    """One of the sentences of a topic, whatever the number."""
    sentences, words = SAYINGS[topic]
    return sentences[number % len(sentences)].format(words[number // len(sentences) % len(words)])


def post_text(case: Case) -> str:
    return " ".join(saying(topic, number) for topic, number in zip(case.facts.topics, case.sayings, strict=True))


def ruling_text(decision: Decision, rule: int) -> str:
    """Example: `rule 1: remove`."""
    return f"rule {rule}: {decision}"


def parse_ruling(text: str) -> tuple[Decision, int] | None:
    """The decision and rule at the end of the policy's answer, after notes or on their own; None when there is not exactly one."""
    match = RULING_PATTERN.search(text)
    if match is None or len(re.findall(r"\brule\s+[0-9]+\s*:", text, re.IGNORECASE)) > 1:
        return None
    return next(decision for decision in DECISIONS if decision == match["decision"].lower()), int(match["rule"])


def note(rule: ModerationRule, facts: Facts) -> str:
    """What a moderator writes down before a ruling: the rule, and what its condition asks about.

    Examples: `insults: remove.`, `adverts: label; remove from 2 removals on. 3 removals.`, `rumours: escalate; allow for staff. member.`
    """
    if rule.condition is None:
        return rule_text(rule)
    asked = {"removals": count(facts.removals, "removal"), "reports": count(facts.reports, "report")}
    return f"{rule_text(rule)} {asked.get(rule.condition.kind, facts.author)}."


def explanation(rule: ModerationRule, facts: Facts) -> str:
    """A note, and what the rule asks for then. Example: `adverts: label; remove from 2 removals on. 3 removals. remove`"""
    return f"{note(rule, facts)} {rule.decide(facts)}"


def topic_note(case: Case) -> str:
    """A post and what it is about. Example: `Buy my lamps now, only this week. (adverts)`"""
    return f"{post_text(case)} ({', '.join(case.facts.topics)})"


def session(case: Case) -> str:
    """A case, a note and the right ruling, each below who spoke."""
    decision, number = case.ruling.decision, case.ruling.rules[0]
    written = f"{note(case.policy.rules[number - 1], case.facts)}\n{ruling_text(decision, number)}"
    return f"user\n{request(case)}\nassistant\n{written}"
