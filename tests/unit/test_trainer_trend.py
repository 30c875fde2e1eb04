"""Change told from noise: the test by hand, and how often it is wrong, or misses, over whole runs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from burnish.trainer.watch.trend import LEVEL, Change, change, change_note, held_out_change, metric_change, reward_change, success_change

pytestmark = pytest.mark.unit


def rows(successes: list[float], episodes: int = 64) -> list[dict[str, float]]:
    return [{"success": value, "episodes": float(episodes), "failed": 0.0, "rewarded": float(episodes)} for value in successes]


def test_the_windows_are_thirds_and_the_test_is_welchs() -> None:
    values = [0.1, 0.3, 0.2, 0.9, 0.0, 0.5, 0.6, 0.7, 0.9]
    found = change(values)
    expected = stats.ttest_ind(values[-3:], values[:3], equal_var=False)
    assert found is not None
    assert (found.before, found.after, found.p_value) == pytest.approx((0.2, 2.2 / 3, float(expected.pvalue)))
    long = change(list(range(100)))
    assert long is not None and (long.before, long.after) == (np.mean(range(8)), np.mean(range(84, 100)))
    assert change(values[:8]) is None, "too early to say"


def test_steps_that_agree_by_chance_are_no_surer_than_counting_allows() -> None:
    surest = change([0.0] * 3 + [0.5] * 3 + [1.0] * 3)
    assert surest is not None and surest.p_value == 0.0 and surest.rose
    few = success_change(rows([0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25], episodes=4))
    assert few is not None and not few.beyond_noise, "of 12 episodes at the end, 3 succeeded"
    assert change([0.5] * 9) == Change(0.5, 0.5, 1.0)


def test_what_the_line_says() -> None:
    assert change_note(rows([0.4] * 8)) == ""
    assert change_note(rows([0.4, 0.5, 0.45] * 4)) == "no change beyond noise yet"
    assert change_note(rows([0.2, 0.21, 0.2, 0.3, 0.4, 0.5, 0.6, 0.61, 0.6] + [0.6, 0.61, 0.6] * 3)).endswith("points since the start")
    fallen = change_note(rows([0.8, 0.81, 0.79, 0.8] * 3 + [0.3, 0.31, 0.29, 0.3] * 3))
    assert fallen == "-50 points since the start"


def test_steps_without_a_reward_are_left_out() -> None:
    empty: dict[str, float] = {"episodes": 8.0, "failed": 8.0}
    full: list[dict[str, float]] = [{**row, "reward_mean": 1.0, "reward_std": 0.5} for row in rows([0.5] * 8)]
    assert success_change([*full, empty]) is None and reward_change([*full, empty]) is None
    assert metric_change([{"episode/turns": 2.0}] * 9, "episode/turns") == Change(2.0, 2.0, 1.0)


def test_episodes_of_other_environments_make_a_change_no_surer() -> None:
    """48 of 64 were played elsewhere: success and reward are of 16, whose counting error is twice that of 64."""
    own = rows([0.0] * 3 + [0.1] * 3 + [0.2] * 3, episodes=16)
    blended = [{**row, "episodes": 64.0, "failed": 3.0, "reward_mean": row["success"], "reward_std": 0.4} for row in own]
    assert success_change(blended) == success_change(own)
    found, spread = reward_change(blended), 2 * 0.4**2 / 16 / 3
    assert found is not None and found.p_value == pytest.approx(2 * float(stats.t.sf(0.2 / spread**0.5, 4)))


def test_means_that_differ_by_rounding_have_not_changed() -> None:
    assert change([0.3] * 6 + [0.1 + 0.2] * 3) == Change(0.3, 0.1 + 0.2, 1.0)


def simulated(generator: np.random.Generator, steps: int, tasks: int, before: float, after: float) -> list[dict[str, float]]:
    """A run whose success goes from one value to another in a straight line, over tasks of every difficulty, 8 attempts each."""
    path = np.linspace(before, after, steps)
    means = [generator.binomial(8, generator.beta(p, 1 - p, tasks)).mean() / 8 for p in path]
    return rows([float(value) for value in means], tasks * 8)


def ever(run: list[dict[str, float]]) -> bool:
    """Whether the line claimed a change after any of the steps."""
    return any(found is not None and found.beyond_noise for found in (success_change(run[:n]) for n in range(9, len(run) + 1)))


def test_of_runs_in_which_nothing_changes_hardly_one_says_otherwise_at_any_step() -> None:
    generator = np.random.default_rng(0)
    wrong = sum(ever(simulated(generator, 60, 8, p, p)) for p in (0.1, 0.5) for _ in range(60))
    assert wrong <= 4, f"{wrong} of 120 runs claimed a change that was none, at a level of {LEVEL}"


def test_a_rise_is_found_by_the_end() -> None:
    generator = np.random.default_rng(1)

    def found(rise: float) -> float:
        ends = [success_change(simulated(generator, 60, 24, 0.4, 0.4 + rise)) for _ in range(60)]
        return float(np.mean([one is not None and one.rose for one in ends]))

    assert found(0.3) >= 0.95
    assert found(0.2) >= 0.5


def learned(generator: np.random.Generator, training: tuple[float, float], held_out: tuple[float, float], tasks: int) -> bool:
    """Whether in 60 steps of 8 x 8, measured every ten, held-out tasks are ever told to part from training. The ends: of the chance of
    success on a task of middling difficulty, in logits, from the first step to the last."""
    difficulty, luck, rows = generator.normal(0, 1.2, tasks), generator.random(tasks), list[dict[str, float]]()
    for step in range(1, 61):
        now, then = (ends[0] + (ends[1] - ends[0]) * step / 60 for ends in (training, held_out))
        won = generator.random((8, 8)) < 1 / (1 + np.exp(-now - generator.normal(0, 1.2, (8, 1))))
        rows.append({"reward_mean": float(won.mean()), "reward_std": float(won.std()), "rewarded": 64.0})
        if step % 10 == 0:
            right = luck < 1 / (1 + np.exp(-then - difficulty))  # the same numbers each time
            measured = {"success": right.mean(), "reward_mean": right.mean(), "reward_std": right.std(), "tasks": tasks}
            rows[-1] |= {f"held_out/{name}": float(value) for name, value in measured.items()}
            found = held_out_change(rows)
            if found is not None and (found.apart or (found.training.rose and found.success.fell)):
                return True
    return False


def test_held_out_tasks_that_follow_are_not_told_to_part_and_those_that_do_not_are() -> None:
    generator = np.random.default_rng(3)
    for ends in ((0.0, 0.0), (-1.0, 2.0)):
        assert sum(learned(generator, ends, ends, 50) for _ in range(20)) == 0
    assert sum(learned(generator, (-1.0, 2.0), (-1.0, 1.0), 50) for _ in range(20)) <= 1, "they follow two thirds of the way"
    assert sum(learned(generator, (-1.0, 2.5), (-1.0, -1.0), 50) for _ in range(20)) >= 18, "by heart"
