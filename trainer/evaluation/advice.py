"""What the numbers of a probe mean, one plain line each, and what to do about it.

Each threshold stands here with its reason. They are rules of thumb: on which side of one a start policy lies is worth a look, not a proof.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .outlook import AskedAgain, Outlook
from .step_cost import StepTable, expected_groups

Weight = Literal["stop", "mend", "know", "go"]
"""How much a line matters: "stop" before money is spent; "mend" first if it is easy; good to "know"; and what speaks for to "go"."""

MANY_FAILED = 0.05
"""Share of failed episodes: half of what `rollout.error_budget` stops a run at by default."""
SOLVED = 0.95
"""Sampled success from which there is nothing to gain: 19 of 20 episodes would teach nothing, and the last points are
mostly label noise."""
OUT_OF_REACH = 0.05
"""pass@G below which success is too rare: not one task in 20 has a single success in its group, and groups without one teach only how to
fail differently."""
UNREADABLE = 0.2
"""Share of episodes with something unreadable: every fifth is spent on the form of an answer, which a few demonstrations teach faster."""
CUT_SHORT = 0.2
"""Share of episodes that one limit cut short: every fifth is judged by where it was cut, not by what it would have said."""
HALF_FILLED = 0.5
"""Share of a step's groups that are expected to teach, after all refills, below which most of what is sampled is thrown away."""
DOUBLING = 0.1
"""What groups of twice the size must add to the share that can teach to be worth their price."""
BESIDE = 0.5
"""Share of the teaching groups in which success differs, below which the policy mostly learns what is not called success."""
SHARP = 0.15
"""Greedy minus sampled success from which the policy knows more than it samples."""


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing to know. Example: `Advice("stop", "nothing to gain: …")`."""

    weight: Weight
    text: str


ORDER: tuple[Weight, ...] = ("stop", "mend", "know", "go")


def advice(
    seen: Outlook, again: AskedAgain, table: StepTable, weights: Mapping[str, float] | None = None, before: Sequence[str] = ()
) -> list[Advice]:
    """What it means, the most important first. weights: of the reward parts that have one. before: phases of the recipe that train ahead of
    reinforcement, whose result was not what was probed."""
    lines = [*_machinery(seen, again), *_reach(seen, table), *_form(seen), *_parts(seen, weights or {}), *_before(before)]
    if not any(line.weight == "stop" for line in lines):
        lines.append(_go(seen, table))
    return sorted(lines, key=lambda line: ORDER.index(line.weight))


def _machinery(seen: Outlook, again: AskedAgain) -> Iterator[Advice]:
    """What is wrong with the environment, the services or the scorers, whatever the policy does."""
    failed = sum(seen.failures.values())
    if failed > MANY_FAILED * seen.episodes:
        kinds = ", ".join(f"{count} {kind}" for kind, count in seen.failures.items())
        yield Advice(
            "stop", f"mend the infrastructure first: {failed} of {seen.episodes} episodes failed ({kinds}); a run would stop early"
        )
    if again.changed:
        what = f"{again.changed} of {again.episodes} verdicts changed when the same conversation was judged again"
        example = f" ({again.examples[0]})" if again.examples else ""
        yield Advice("mend", f"the verifier is not deterministic: {what}{example}; what it is unsure of is noise that groups learn from")
    if again.other_answers:
        share = f"{again.other_answers} of {again.episodes} episodes"
        yield Advice(
            "know",
            f"the environment is not deterministic: in {share} it answered the same words otherwise; then members of a group may not start "
            "equal: draw from the seed of reset alone",
        )
    if again.failed:
        yield Advice(
            "mend", f"judging again failed for {again.failed} of {again.episodes} episodes; in training, as many would be tried again"
        )


def _reach(seen: Outlook, table: StepTable) -> Iterator[Advice]:
    """Whether the task is at the height of the policy."""
    sampled, best = seen.sampled.value, max(seen.pass_at.values())
    size = max(seen.pass_at)
    if sampled >= SOLVED:
        yield Advice("stop", f"nothing to gain: {sampled:.0%} sampled success already; take harder tasks")
        return
    if best < OUT_OF_REACH:
        most = max(seen.unreadable.values(), default=0.0)
        why = "answers cannot be read" if most >= UNREADABLE else "the task is too hard for it"
        yield Advice(
            "stop",
            f"SFT first, or easier tasks: success is out of reach, {best:.1%} with the best of {size} attempts ({why}); there is next to "
            "nothing to reinforce",
        )
        return
    _, trained = expected_groups(table, seen.teaching)
    filled = trained / table.groups_per_step
    if filled < HALF_FILLED:
        which = "fail" if seen.all_failed >= seen.all_succeeded else "succeed"
        tasks = "easier" if which == "fail" else "harder"
        yield Advice(
            "mend",
            f"{tasks} tasks: only {seen.teaching:.0%} of groups can teach, since most {which} throughout, so that a step would train "
            f"{trained:.1f} of {table.groups_per_step} groups",
        )
    gain = seen.teaching - seen.teaching_half
    if seen.teaching < HALF_FILLED and gain >= DOUBLING:
        yield Advice(
            "mend",
            f"larger groups: from {seen.group_size // 2} to {seen.group_size} attempts, the share that can teach rose by {gain:.0%}; "
            "doubling group_size again is likely to add as much",
        )


def _form(seen: Outlook) -> Iterator[Advice]:
    for what, share in seen.unreadable.items():
        if share >= UNREADABLE:
            yield Advice("mend", f"SFT on a few demonstrations first: {what} in {share:.0%} of the episodes")
    fixes = {
        "max_tokens": "raise rollout.max_tokens_per_turn",
        "max_turns": "raise rollout.max_turns",
        "context": "raise engine.max_context",
        "time": "raise rollout.episode_timeout_s, or make the engine faster",
        "env": "see the environment's own limit",
    }
    for limit, share in seen.truncations.items():
        if share >= CUT_SHORT:
            yield Advice(
                "mend", f"{share:.0%} of the episodes were cut short by {limit}: {fixes[limit]}, or expect the policy to learn brevity"
            )


def _parts(seen: Outlook, weights: Mapping[str, float]) -> Iterator[Advice]:
    for name, part in seen.parts.items():
        if part.constant and weights.get(name, 0.0) != 0.0:
            yield Advice("know", f"reward part {name} is always {part.mean:g}: with a weight of {weights[name]:g} it teaches nothing yet")
    if seen.teaching_own > 0 and seen.teaching_success < BESIDE * seen.teaching_own:
        yield Advice(
            "mend",
            f"the reward is about something else: {seen.teaching_own:.0%} of groups differ in reward, {seen.teaching_success:.0%} in "
            "success; lower the weights of the other parts, or the policy learns those first",
        )
    best = seen.best_constant
    if best is not None and seen.sampled.value <= best.success:
        yield Advice("know", f"a policy that always says {best.label!r} would score {best.success:.0%}: success below that proves nothing")


def _before(phases: Sequence[str]) -> Iterator[Advice]:
    if phases:
        names = " and ".join(phases)
        yield Advice(
            "know", f"this is the policy before {names}, which the recipe trains first; what they leave: --set model=RUN, of a run"
        )


def _go(seen: Outlook, table: StepTable) -> Advice:
    sampled, size = seen.sampled.value, max(seen.pass_at)
    _, trained = expected_groups(table, seen.teaching)
    room = f"sampled success {sampled:.0%}, best of {size} {seen.pass_at[size]:.0%}"
    text = f"there is something to learn: {room}, and a step would train about {trained:.0f} of {table.groups_per_step} groups"
    if seen.greedy is not None and seen.greedy.value - sampled >= SHARP:
        text += f". Greedy is at {seen.greedy.value:.0%} already: expect sampled success to move towards that, and greedy to move little"
    return Advice("go", text)
