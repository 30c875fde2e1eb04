"""The rubric: composition, retries, limits, and who is to blame."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from burnish.envs.failures import EpisodeFailure, Failure, FailureKind
from burnish.envs.types import Task
from burnish.rewards.rubric import Rubric
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
    reward, labels = await rubric.score(given(0.5, polite=1.0))
    assert reward.total == pytest.approx(0.1 * 0.5 + 2.0 * 1.0 + 0.5 * -0.4)
    assert reward.parts == {"env": 0.5, "env.polite": 1.0, "verdict": 1.0, "verdict.reason": 0.25, "cost": -0.4, "length": 7.0}
    assert labels == {"expected": "scrap", "predicted": "pass"}


async def test_the_environment_alone_is_a_rubric() -> None:
    reward, labels = await Rubric([]).score(given(0.75))
    assert (reward.total, reward.parts, labels) == (0.75, {"env": 0.75}, {})


async def test_failures_are_retried_then_raised_with_their_name() -> None:
    recovers = Scripted("a", FailureKind.VERIFIER_UNAVAILABLE, FailureKind.VERIFIER_INVALID, Score(1.0))
    reward, _ = await Rubric([(recovers, 1.0)], 0.0, retries=2, backoff_s=0.0).score(given())
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


async def test_scorers_that_disagree_about_a_label_are_named() -> None:
    a = Scripted("a", Score(1.0, labels={"predicted": "pass"}))
    b = Scripted("b", Score(1.0, labels={"predicted": "scrap"}))
    with pytest.raises(EpisodeFailure, match="a says label predicted is 'pass', b says 'scrap'"):
        await Rubric([(a, 1.0), (b, 1.0)]).score(given())


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
