"""How a ruling of `burnish/ContentModeration-v0` is judged: the reward `burnish/moderation-v1`, and the same as a verifier over gRPC,
`burnish serve-verifier burnish.rewards.builtin.moderation:verdict`.

It goes by the task's data alone, so it judges rows of your own as well: `decision`, what the policy asks for, and `rules`, the numbers of
the rules that say so.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from ...envs.builtin.moderation.policies import DECISIONS, Decision
from ...envs.builtin.moderation.wording import parse_ruling
from ..plugin import reward
from ..remote.service import verifier
from ..types import RewardInput, Score

DECISION_RIGHT: Final = 0.6
RULE_RIGHT: Final = 0.3
FORM_RIGHT: Final = 0.1
"""What a right ruling is worth, 1 in all. Most is for the decision, which happens to the post; the rule is what its author is told."""

OVER_REMOVAL: Final = 0.2
UNDER_REMOVAL: Final = 0.4
NEEDLESS_ESCALATION: Final = 0.1
"""What a mistake costs. A post that is taken down wrongly wrongs its author, who can appeal; one that stays up wrongly harms all who read
it, hence twice as much; one that a person looks at needlessly costs that person's minutes, hence half as much."""

NO_RULING = "no ruling"

Price = Annotated[float, Field(ge=0)]


@reward("burnish/moderation-v1")
def moderation(
    episode: RewardInput,
    *,
    over_removal: Price = OVER_REMOVAL,
    under_removal: Price = UNDER_REMOVAL,
    needless_escalation: Price = NEEDLESS_ESCALATION,
) -> Score:
    """What a ruling is worth: 0.6 for the right decision, 0.3 for a rule that it rests on, 0.1 for the form, less the price of a mistake.

    over_removal: the price of removing what the policy does not remove. under_removal: of letting stand (allow, label) what it removes or
    escalates. needless_escalation: of escalating what it does not. An answer that is no ruling decides nothing: it costs the dearest of
    them, whatever the policy asks for. parts: `correct` (decision and rule), `decision`, `rule`, `form`, and `over_removal`,
    `under_removal`, `needless_escalation` where that mistake was made, each 0 or 1. labels: the decision expected and given.

    Raises ValueError when the task's data has no `decision` and `rules`, or they are of another form.

    Example: removing by rule 2, where rule 2 says to label, gives 0.3 + 0.1 - 0.2 = 0.2.
    """
    decision, rules = _asked_for(episode)
    given = parse_ruling(episode.answer) if episode.answer is not None else None
    said, named = given if given is not None else (None, None)
    over = said == "remove" and decision != "remove"
    under = said in ("allow", "label") and decision in ("escalate", "remove")
    needless = said == "escalate" and decision != "escalate"
    price = over * over_removal + under * under_removal + needless * needless_escalation
    if given is None:
        price = max(over_removal, under_removal, needless_escalation)
    right, rule = said == decision, named in rules
    parts = {
        "correct": right and rule, "decision": right, "rule": rule, "form": given is not None,
        "over_removal": over, "under_removal": under, "needless_escalation": needless,
    }  # fmt: skip
    value = DECISION_RIGHT * right + RULE_RIGHT * rule + FORM_RIGHT * (given is not None) - price
    return Score(value, parts, {"expected": decision, "predicted": said or NO_RULING})


@verifier("burnish/moderation-verdict-v1")
def verdict(episode: RewardInput) -> Score:
    """What a ruling is worth, at the prices of `burnish/moderation-v1`."""
    return moderation(episode)


def _asked_for(episode: RewardInput) -> tuple[Decision, list[int]]:
    """The decision and the rules that the task's data has. Over the wire its numbers may be floats."""
    said, rules = episode.data.get("decision"), episode.data.get("rules")
    decision = next((decision for decision in DECISIONS if decision == said), None)
    if decision is None:
        raise ValueError(f"the task's data must have `decision`, one of {', '.join(DECISIONS)}, not {said!r:.40}")
    if (
        not isinstance(rules, list | tuple)
        or not rules
        or not all(type(rule) in (int, float) and float(rule).is_integer() for rule in rules)
    ):
        raise ValueError(f"the task's data must have `rules`, the numbers of the rules that its decision rests on, not {rules!r:.40}")
    return decision, [int(rule) for rule in rules]
