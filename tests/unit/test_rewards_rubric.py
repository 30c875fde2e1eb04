"""The rubric: composition, retries, limits, and who is to blame."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from burnish.envs.failures import EpisodeFailure, Failure, FailureKind
from burnish.envs.types import Reward, Task
from burnish.rewards.rubric import Judged, Rubric, named_labels
from burnish.rewards.terms import Term
from burnish.rewards.types import RewardInput, Score

pytestmark = pytest.mark.unit


class Scripted:
    """A scorer that plays a script: a Score is given, a kind is raised; the last entry repeats."""

    def __init__(self, name: str, *script: Score | FailureKind) -> None:
        self.name = name
        self.calls = 0
        self._script = script

    async def score(self, episode: RewardInput) -> Score:
        entry = self._script[min(self.calls, len(self._script) - 1)]
        self.calls += 1
        await asyncio.sleep(0)
        if isinstance(entry, FailureKind):
            raise EpisodeFailure(Failure(entry, f"{self.name}@somewhere", "down"))
        return entry


def given(env_reward: float = 0.5, **env_parts: float) -> RewardInput:
    return RewardInput("t/0", Task("t", 1), (), env_reward, env_parts)


async def test_total_is_weighted_and_parts_are_not() -> None:
    verdict = Scripted("verdict", Score(1.0, {"reason": 0.25}, {"expected": "scrap", "predicted": "pass"}))
    cost = Scripted("cost", Score(-0.4))
    watched = Scripted("length", Score(7.0))
    rubric = Rubric([(verdict, 2.0), (cost, 0.5), (watched, 0.0)], env_weight=0.1)
    reward, labels, _ = await rubric.score(given(0.5, polite=1.0))
    assert reward.total == pytest.approx(0.1 * 0.5 + 2.0 * 1.0 + 0.5 * -0.4)
    assert reward.parts == {"env": 0.5, "env.polite": 1.0, "verdict": 1.0, "verdict.reason": 0.25, "cost": -0.4, "length": 7.0}
    assert labels == {"verdict": {"expected": "scrap", "predicted": "pass"}}


async def test_the_size_of_a_reward_is_that_of_its_terms() -> None:
    """0.1 x 0.5 + 2 x 1.0 + 0.5 x 0.4, and 1000.5 of a range of 2 wide from 1000 on, clipped to 1000.2: 0.05 + 2 + 0.2 + 500.1."""
    verdict, cost, huge, clipped = (Scripted(name, Score(value)) for name, value in (("a", 1.0), ("b", -0.4), ("c", 7e9), ("d", 1000.5)))
    mapped = Term(clip=(1000.0, 1000.2), normalize="minmax", range=(1000.0, 1002.0))
    entries: list[tuple[Scripted, float | Term]] = [(verdict, 2.0), (cost, 0.5), (huge, 0.0), (clipped, mapped)]
    reward, *_ = await Rubric(entries, env_weight=0.1).score(given(0.5))
    assert reward.size == pytest.approx(502.35)
    bounded, *_ = await Rubric([(Scripted("a", Score(150.0)), Term(clip=(0.0, 1e9)))]).score(given(0.0))
    assert bounded.size == 150.0, "a bound that the value is far from says nothing"
    capped, *_ = await Rubric([(verdict, Term(gate=2.0)), (huge, 1.0)]).score(given(0.5))
    assert (capped.total, capped.size) == (0.0, 0.0)


async def test_the_environment_alone_is_a_rubric() -> None:
    reward, labels, _ = await Rubric([]).score(given(0.75))
    assert (reward.total, reward.parts, labels) == (0.75, {"env": 0.75}, {})


async def test_failures_are_retried_then_raised_with_their_name() -> None:
    recovers = Scripted("a", FailureKind.VERIFIER_UNAVAILABLE, FailureKind.VERIFIER_INVALID, Score(1.0))
    reward, *_ = await Rubric([(recovers, 1.0)], 0.0, retries=2, backoff_s=0.0).score(given())
    assert (reward.total, recovers.calls) == (1.0, 3)

    down = Scripted("b", FailureKind.VERIFIER_UNAVAILABLE)
    with pytest.raises(EpisodeFailure) as caught:
        await Rubric([(down, 1.0)], retries=2, backoff_s=0.0).score(given())
    assert caught.value.failure == Failure(FailureKind.VERIFIER_UNAVAILABLE, "b@somewhere", "down (3 attempts)")
    assert down.calls == 3


async def test_cancellation_is_not_retried() -> None:
    cancelled = Scripted("a", FailureKind.CANCELLED)
    with pytest.raises(EpisodeFailure):
        await Rubric([(cancelled, 1.0)], retries=5, backoff_s=0.0).score(given())
    assert cancelled.calls == 1


async def test_backoff_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def note(seconds: float) -> None:
        waits.append(seconds)

    rubric = Rubric([(Failing("a"), 1.0)], retries=3, backoff_s=0.5)
    monkeypatch.setattr("burnish.rewards.rubric.asyncio.sleep", note)
    with pytest.raises(EpisodeFailure):
        await rubric.score(given())
    assert waits == [0.5, 1.0, 2.0]


class Failing:
    def __init__(self, name: str) -> None:
        self.name = name

    async def score(self, episode: RewardInput) -> Score:
        raise EpisodeFailure(Failure(FailureKind.REWARD_ERROR, self.name, "always"))


async def test_one_failure_cancels_the_other_scorers() -> None:
    cancelled = asyncio.Event()

    class Slow:
        name = "slow"

        async def score(self, episode: RewardInput) -> Score:
            try:
                await asyncio.sleep(30)
            finally:
                cancelled.set()
            return Score(1.0)

    with pytest.raises(EpisodeFailure, match="always"):
        await Rubric([(Slow(), 1.0), (Failing("b"), 1.0)], retries=0).score(given())
    assert cancelled.is_set()


async def test_scorers_run_together_and_each_is_limited() -> None:
    meeting = asyncio.Barrier(2)

    class Meets:
        def __init__(self, name: str) -> None:
            self.name, self.inside, self.most = name, 0, 0

        async def score(self, episode: RewardInput) -> Score:
            self.inside += 1
            self.most = max(self.most, self.inside)
            await meeting.wait()  # passes only when both scorers run at once
            self.inside -= 1
            return Score(1.0)

    a, b = Meets("a"), Meets("b")
    rubric = Rubric([(a, 1.0), (b, 1.0)], max_concurrent=1)
    await asyncio.wait_for(asyncio.gather(*(rubric.score(given()) for _ in range(5))), 10)
    assert (a.most, b.most) == (1, 1)


async def test_a_reward_of_the_environment_that_is_not_finite_is_its_failure() -> None:
    for episode, part in ((given(float("nan")), "env"), (given(0.0, polite=float("inf")), "env.polite")):
        with pytest.raises(EpisodeFailure) as caught:
            await Rubric([]).score(episode)
        assert caught.value.failure.kind is FailureKind.ENV_ERROR
        assert f"reward {part} of task t" in caught.value.failure.detail


@pytest.mark.parametrize(
    ("success", "expected"),
    [
        ("right", {"guardrail.expected": "answer", "expected": "7", "env.expected": "odd"}),
        ("guardrail.kept", {"expected": "answer", "right.expected": "7", "env.expected": "odd"}),
        ("env", {"guardrail.expected": "answer", "right.expected": "7", "expected": "odd"}),
        ("cost", {"guardrail.expected": "answer", "right.expected": "7", "env.expected": "odd"}),
        ("", {"expected": "answer", "right.expected": "7", "env.expected": "odd"}),
    ],
)
def test_the_labels_of_whoever_gives_the_success_have_their_own_names(success: str, expected: dict[str, str]) -> None:
    by_scorer = {"guardrail": {"expected": "answer"}, "right": {"expected": "7"}}
    assert named_labels(by_scorer, {"expected": "odd"}, success) == expected


@pytest.mark.parametrize("success", ["peer", "peer.kept", "own", "env", ""])
@pytest.mark.parametrize("name", ["explanation", "own.explanation", "absent.explanation", "own.kind", "env.kind", "own.own.kind"])
def test_no_label_takes_the_place_of_what_another_said(success: str, name: str) -> None:
    own = {"kind": "a", "explanation": "true reason"}
    for peer, env in (({name: "forged"}, {"kind": "b"}), ({"kind": "c"}, {name: "forged", "kind": "b"})):
        labels = named_labels({"own": own, "peer": peer}, env, success)
        assert labels["own.explanation"] == "true reason" and "absent.explanation" not in labels
        assert sorted(labels.values()) == sorted([*own.values(), *peer.values(), *env.values()])
        assert {said for said in labels if labels[said] == "forged"} == {f"{'peer' if name in peer else 'env'}.{name}"}


async def test_two_scorers_that_give_other_labels_both_judge() -> None:
    a = Scripted("a", Score(1.0, labels={"predicted": "pass"}))
    b = Scripted("b", Score(1.0, labels={"predicted": "scrap"}))
    reward, labels, _ = await Rubric([(a, 1.0), (b, 1.0)]).score(given())
    assert (reward.total, labels) == (2.5, {"a": {"predicted": "pass"}, "b": {"predicted": "scrap"}})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "a"], "two rewards are called 'a'"),
        (["env"], "'env' is taken"),
        (["total"], "'total' is taken"),
        (["a.b"], "letters, digits"),
    ],
)
def test_names_that_would_collide_are_refused(names: Sequence[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rubric([(Scripted(name, Score(0.0)), 1.0) for name in names])


def test_senseless_weights_and_limits_are_refused() -> None:
    a = Scripted("a", Score(0.0))
    with pytest.raises(ValueError, match="every reward has weight 0"):
        Rubric([(a, 0.0)], env_weight=0.0)
    with pytest.raises(ValueError, match="weight of reward 'a' must be a finite number"):
        Rubric([(a, float("nan"))])
    with pytest.raises(ValueError, match="retries >= 0"):
        Rubric([(a, 1.0)], retries=-1)


class Ranks:
    """A group scorer that plays a script as `Scripted` does, one list of values, or a kind, per call."""

    def __init__(self, name: str, *script: Sequence[Score | Failure] | FailureKind, min_members: int = 2) -> None:
        self.name = name
        self.min_members = min_members
        self.seen: list[list[str]] = []
        self._script = script

    async def score_group(self, episodes: Sequence[RewardInput]) -> Sequence[Score | Failure]:
        entry = self._script[min(len(self.seen), len(self._script) - 1)]
        self.seen.append([one.episode_id for one in episodes])
        await asyncio.sleep(0)
        if isinstance(entry, FailureKind):
            raise EpisodeFailure(Failure(entry, f"{self.name}@somewhere", "down"))
        return entry


def member(i: int, env_reward: float = 0.0, **values: float) -> Judged:
    return Judged(RewardInput(f"t/{i}", Task("t", 1), (), env_reward), {name: Score(value) for name, value in values.items()})


def rewards_of(results: Sequence[object]) -> list[Reward | Failure]:
    return [one[0] if isinstance(one, tuple) else one for one in results]  # type: ignore[misc]


async def test_the_order_is_clip_normalise_weigh_add_and_then_the_gates() -> None:
    length = Scripted("length", Score(50.0))
    verdict = Scripted("verdict", Score(0.25))
    shaped = Term(2.0, clip=(0.0, 20.0), normalize="minmax", range=(0.0, 40.0))
    reward, *_ = await Rubric([(length, shaped), (verdict, 4.0)], env_weight=0.0).score(given())
    assert reward.total == pytest.approx(2.0 * (20.0 / 40.0) + 4.0 * 0.25)
    assert reward.parts == {"env": 0.5, "length": 50.0, "verdict": 0.25}, "recorded as the scorers gave them"

    gated = Rubric([(length, shaped), (verdict, Term(4.0, gate=0.5, cap=0.75))], env_weight=0.0)
    assert (await gated.score(given()))[0] == Reward(0.75, reward.parts)


async def test_the_strictest_failed_gate_counts_and_looks_at_the_value_as_given() -> None:
    safe, right = Scripted("safe", Score(-3.0)), Scripted("right", Score(0.0))
    rubric = Rubric([(safe, Term(0.0, gate=0.0, cap=-1.0)), (right, Term(gate=0.5, cap=0.25))], env_weight=10.0)
    assert (await rubric.score(given(1.0)))[0].total == -1.0
    clipped = Rubric([(safe, Term(clip=(1.0, 2.0), gate=0.0, cap=0.0))], env_weight=1.0)
    assert (await clipped.score(given(1.0)))[0].total == 0.0, "clipped to 1, but given as -3"


async def test_a_value_outside_its_range_is_a_failure() -> None:
    rubric = Rubric([(Scripted("length", Score(50.0)), Term(normalize="minmax", range=(0.0, 10.0)))])
    with pytest.raises(EpisodeFailure, match="task t: reward 'length': 50 lies outside range") as caught:
        await rubric.score(given())
    assert caught.value.failure.kind is FailureKind.REWARD_INVALID


async def test_a_group_is_composed_once_with_what_compares_it() -> None:
    ranks = Ranks("rank", [Score(1.0, {"wins": 3.0}), Score(0.0)])
    rubric = Rubric([(Scripted("verdict", Score(0.5)), 2.0), (ranks, 0.5)], env_weight=1.0)
    assert (rubric.compares, rubric.min_members) == (True, 2)
    found = rewards_of(await rubric.score_group([member(0, 0.25, verdict=1.0), member(1, verdict=0.0)]))
    assert found == [
        Reward(0.25 + 2.0 + 0.5, {"env": 0.25, "verdict": 1.0, "rank": 1.0, "rank.wins": 3.0}),
        Reward(0.0, {"env": 0.0, "verdict": 0.0, "rank": 0.0}),
    ]
    assert ranks.seen == [["t/0", "t/1"]]
    assert not Rubric([(Scripted("verdict", Score(0.5)), 2.0)]).compares


async def test_standardising_within_the_group_is_over_the_members_that_have_a_value() -> None:
    failed = Failure(FailureKind.REWARD_ERROR, "rank", "unreadable")
    rubric = Rubric(
        [
            (Scripted("length", Score(0.0)), Term(0.5, clip=(0.0, 10.0), normalize="group")),
            (Ranks("rank", [Score(0.0), failed, Score(0.0)]), 1.0),
        ],
        env_weight=0.0,
        retries=0,
    )
    found = rewards_of(await rubric.score_group([member(0, length=2.0), member(1, length=7.0), member(2, length=99.0)]))
    assert found[1] == failed
    totals = [one.total for one in found if isinstance(one, Reward)]
    assert totals == pytest.approx([-0.5, 0.5], abs=1e-5), "2 and the 99 that was clipped to 10, one deviation from their mean"
    assert [one.parts["length"] for one in found if isinstance(one, Reward)] == [2.0, 99.0]


async def test_a_group_reward_that_fails_masks_every_member_and_is_never_a_zero() -> None:
    down = Ranks("rank", FailureKind.REWARD_ERROR)
    rubric = Rubric([(down, 1.0)], env_weight=1.0, retries=2, backoff_s=0.0)
    found = await rubric.score_group([member(0), member(1), member(2)])
    assert found == [Failure(FailureKind.REWARD_ERROR, "rank@somewhere", "down (3 attempts)")] * 3
    assert len(down.seen) == 3


async def test_a_group_reward_is_tried_again_as_a_whole() -> None:
    failed = Failure(FailureKind.REWARD_TIMEOUT, "rank", "late")
    recovers = Ranks("rank", FailureKind.REWARD_ERROR, [Score(1.0), failed], [Score(1.0), Score(0.0)])
    found = rewards_of(await Rubric([(recovers, 1.0)], retries=2, backoff_s=0.0).score_group([member(0), member(1)]))
    assert [one.total for one in found if isinstance(one, Reward)] == [1.0, 0.0]
    assert recovers.seen == [["t/0", "t/1"]] * 3

    fails_one = Ranks("rank", [Score(1.0), failed])
    found = rewards_of(await Rubric([(fails_one, 1.0)], retries=1, backoff_s=0.0).score_group([member(0), member(1)]))
    assert (found[0], found[1], len(fails_one.seen)) == (Reward(1.0, {"env": 0.0, "rank": 1.0}), failed, 2)


async def test_too_few_members_leave_the_part_out() -> None:
    ranks = Ranks("rank", [Score(1.0)], min_members=3)
    rubric = Rubric([(ranks, 1.0), (Scripted("verdict", Score(0.5)), 1.0)])
    assert rubric.min_members == 3
    found = rewards_of(await rubric.score_group([member(0, verdict=0.5), member(1, verdict=0.0)]))
    assert found == [Reward(0.5, {"env": 0.0, "verdict": 0.5}), Reward(0.0, {"env": 0.0, "verdict": 0.0})]
    assert (await rubric.score(given()))[0].parts == {"env": 0.5, "verdict": 0.5}
    assert ranks.seen == []
    assert await rubric.score_group([]) == []


async def test_values_per_turn_are_kept_by_part() -> None:
    reward, *_ = await Rubric([(Scripted("brief", Score(-0.5, turns=(-0.2, -0.3))), 2.0), (Scripted("right", Score(1.0)), 1.0)]).score(
        given()
    )
    assert reward.turns == {"brief": (-0.2, -0.3)}
    assert reward.total == pytest.approx(0.5 - 1.0 + 1.0)


async def test_a_sum_that_overflows_is_a_failure_of_its_member_alone() -> None:
    rubric = Rubric([(Ranks("rank", [Score(1e308), Score(1.0)]), 10.0)])
    found = rewards_of(await rubric.score_group([member(0), member(1)]))
    assert isinstance(found[0], Failure) and "overflows" in found[0].detail
    assert found[1] == Reward(10.0, {"env": 0.0, "rank": 1.0})
