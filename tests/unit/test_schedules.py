"""Rollouts beside learning: who trains when, how old it may be, and books that balance. On a clock of the tests' own."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.unit.clocked import STREAM, ClockedFleet, clocked_loop, number

from burnish.envs.types import Outcome, Reward
from burnish.trainer.loop import PolicyLoop, Step
from burnish.trainer.phases.rft import RFTPhaseConfig
from burnish.trainer.playing import run_tasks
from burnish.trainer.schedule.admission import Rollouts, in_time
from burnish.trainer.schedule.progress import PolicyProgress

pytestmark = pytest.mark.unit


def trained(step: Step) -> list[int]:
    """Numbers of the tasks that a step trained on."""
    return sorted(number(group.task) for group in step.collected.groups)


def ages(loop: PolicyLoop, step: Step) -> set[int]:
    """How many updates before the one that it trained in each token was sampled."""
    assert step.batch is not None
    version = int(step.metrics["learner/updates"]) and loop.learner.version - 1
    return {version - int(v) for v in step.batch.policy_version[step.batch.mask]}


def equal(position: int) -> tuple[Outcome, ...]:
    return Reward(0.0), Reward(0.0)


def teaches_but(*positions: int):
    return lambda position: equal(position) if position in positions else (Reward(1.0), Reward(0.0))


def gone_on_from(loop: PolicyLoop, another: tuple[PolicyLoop, ClockedFleet]) -> tuple[PolicyLoop, ClockedFleet]:
    """The other, from the checkpoint of the one."""
    resumed, fleet = another
    resumed.learner.version = loop.learner.version  # type: ignore[misc]
    resumed.progress = PolicyProgress.from_row(json.loads(json.dumps(loop.progress.row())))
    resumed.sync()
    return resumed, fleet


ONE_STEP = RFTPhaseConfig(steps=6, groups_per_step=2, group_size=2, rollouts="one_step_off", checkpoint_every=4)
ASYNC = RFTPhaseConfig(steps=40, groups_per_step=2, group_size=2, rollouts="async", max_staleness=2, checkpoint_every=100)


def test_one_step_off_trains_in_each_step_what_was_issued_before_the_last_one_learned() -> None:
    loop, fleet = clocked_loop(ONE_STEP, lasts=lambda n: 3.0, learns=2.0)
    ended, found = [], []
    for _ in range(6):
        step = loop.step()
        ended.append(fleet.clock.now)
        found.append((trained(step), ages(loop, step)))
    assert found == [([0, 1], {0}), ([2, 3], {1}), ([4, 5], {1}), ([6, 7], {1}), ([8, 9], {0}), ([10, 11], {1})]
    # 3 to play and 2 to learn; then 3 to play the next ones beside 2 to learn; but from the beginning again after a checkpoint
    assert ended == [5, 8, 11, 14, 19, 22]
    assert loop.progress.ledger.trained_count == 24 and not loop.progress.open


def test_one_step_off_refills_while_the_learner_learns() -> None:
    loop, fleet = clocked_loop(ONE_STEP, lasts=lambda n: 1.0, outcomes=teaches_but(2), learns=2.0)
    assert trained(loop.step()) == [0, 1]
    assert (fleet.began[4], fleet.clock.now, fleet.version) == (2.0, 3.0, 0)  # 2 ended at 2 and taught nothing; the weights are not out
    second = loop.step()
    assert (trained(second), ages(loop, second), second.metrics["dropped/zero_variance"], fleet.version) == ([3, 4], {1}, 1, 1)


def test_async_plays_several_steps_ahead_and_takes_the_oldest_that_have_finished() -> None:
    # P = 2 and S = 2: six groups are open. Group 0 lasts long, and the step that may be the last to train it waits for it.
    phase = RFTPhaseConfig(steps=4, groups_per_step=2, group_size=2, rollouts="async", max_staleness=2)
    loop, fleet = clocked_loop(phase, lasts=lambda n: 10.0 if n == 0 else 1.0 + n / 10, learns=1.0)
    found = []
    for _ in range(4):
        step = loop.step()
        found.append((trained(step), ages(loop, step), fleet.clock.now))
    assert [row[0] for row in found] == [[1, 2], [3, 4], [0, 5], [6, 7]]
    assert found[0][1:] == ({0}, 2.2)  # 2 ended at 1.2
    assert found[1][1:] == ({1}, 3.2)  # all four under way had ended while the learner learned, but for group 0
    assert found[2][1:] == ({0, 2}, 11.0)  # group 0 began two moves ago, and has just been finished by the newest weights
    assert not loop.progress.open and loop.progress.ledger.issued == 16


def test_a_group_is_waited_for_only_when_it_would_become_too_old() -> None:
    assert in_time([], moves=9, staleness=1, per_step=2)
    assert in_time([3, 3, 4, 4], moves=4, staleness=2, per_step=2)  # the threes train at 5, the fours at 6
    assert not in_time([3, 3, 3, 4], moves=4, staleness=2, per_step=2)  # the third of them would at 6
    assert not in_time([4], moves=4, staleness=0, per_step=2)


def test_a_step_that_trains_few_groups_makes_no_room_before_the_weights_have_moved() -> None:
    """P = 3 and S = 1: of groups 0 to 5, 0 and 1 taught nothing, 2 is trained, and meanwhile 3 is dropped. With 4 and 5, two more under the
    same weights would have been four, of which the next step trains three, and the fourth would have been too old for the one after it."""
    phase = RFTPhaseConfig(steps=12, groups_per_step=3, group_size=2, rollouts="async", max_staleness=1, max_refills=0)
    loop, _ = clocked_loop(phase, lambda n: 1.0, teaches_but(0, 1, 3), learns=1.0, places=2)
    assert trained(loop.step()) == [2]
    assert {number: loop.progress.open[f"train-{number}"].move for number in range(4, 9)} == {4: 1, 5: 1, 6: 2, 7: 2, 8: 2}
    assert (trained(loop.step()), trained(loop.step()), loop.progress.ledger.dropped["stale"]) == ([4, 5], [6, 7, 8], 0)


@settings(deadline=None, max_examples=60)
@example(2, 2, 1, [1.0], {3, 4}, 9, 5.0, 1)  # two end while the learner learns, and teach in the run that goes on
@example(3, 1, 0, [1.0], {0, 1, 3}, 2, 1.0, 24)  # a step trains one group of three; four more under the same weights were one too many
@example(1, 3, 2, [1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 15.0], {0, 7, 9}, 2, 7.0, 6)  # a checkpoint has six open, and four may be issued
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 2),
    st.lists(st.floats(0.1, 30.0), min_size=1, max_size=40),
    st.sets(st.integers(0, 60), max_size=25),
    st.integers(1, 12),
    st.floats(0.1, 10.0),
    st.integers(1, 24),
)
def test_whatever_finishes_when_nothing_is_too_old_or_lost(
    per_step: int, staleness: int, refills: int, lengths: list[float], dull: set[int], places: int, learns: float, back_after: int
) -> None:
    """Also where the run goes on from the checkpoint of a step, after which those that taught nothing do."""
    phase = RFTPhaseConfig(steps=12, groups_per_step=per_step, group_size=2, rollouts="async", max_staleness=staleness, max_refills=refills)
    loop, fleet = clocked_loop(phase, lambda n: lengths[n % len(lengths)], teaches_but(*dull), learns, places)
    seen, most = Counter[int](), fleet.most
    while loop.progress.step < phase.steps and not loop.exhausted:
        moves = loop.progress.moves
        step = loop.step()  # checks the books itself
        seen.update(number(group.task) for group in step.collected.sampled)
        if step.batch is not None:
            assert max(ages(loop, step)) <= staleness
        elsewhere = loop.admission.ended.keys() | loop.admission.again.keys()  # issued again later: nobody plays it, and it does not age
        going_on = [issued for task, issued in loop.progress.open.items() if task not in elsewhere]
        assert len(step.collected.groups) <= per_step and len(going_on) <= (staleness + 1) * per_step
        assert all(issued.move > moves - 1 - staleness for issued in going_on), "one was left to become too old"
        most = max(most, fleet.most)
        if loop.progress.step == back_after:
            loop, fleet = gone_on_from(loop, clocked_loop(phase, lambda n: lengths[n % len(lengths)], learns=learns, places=places))
    ledger = loop.progress.ledger
    assert most <= (staleness + 1) * per_step and "stale" not in ledger.dropped and not loop.progress.open
    assert set(seen.values()) <= {1} and ledger.issued == 2 * loop.progress.position
    assert ledger.trained_count + ledger.dropped["zero_variance"] == 2 * len(seen)
    assert ledger.dropped["surplus"] == ledger.issued - 2 * len(seen)


def heavy(position: int) -> float:
    """Lengths whose mean is made by few: 1 / u for u evenly spread, from 1 to 101."""
    return 1.0 / (((position * 61) % 101 + 1) / 101)


def test_what_is_trained_is_as_long_as_what_is_issued_however_heavy_the_tail() -> None:
    loop, fleet = clocked_loop(ASYNC, heavy, learns=2.0, places=8)
    done = [n for _ in range(30) for n in trained(loop.step())]
    horizon = min(issued.position for issued in loop.progress.open.values())
    assert len(done) == 60 and horizon >= 60 - 6  # whatever was issued three steps ago or more has been trained, the longest too
    assert set(range(horizon)) <= set(done)
    longest = max(range(horizon), key=heavy)
    assert longest in done and heavy(longest) > 50
    while loop.progress.step < ASYNC.steps:
        done += trained(loop.step())
    assert sorted(done) == list(range(80)) == sorted(fleet.given)  # nothing was issued that was not trained


@pytest.mark.parametrize(("rollouts", "at_most"), [("one_step_off", 0.95), ("async", 0.7)])
def test_rollouts_beside_learning_take_less_time(rollouts: Rollouts, at_most: float) -> None:
    def took(name: Rollouts) -> float:
        phase = RFTPhaseConfig(steps=40, groups_per_step=8, group_size=2, rollouts=name, checkpoint_every=100)
        loop, fleet = clocked_loop(phase, heavy, learns=20.0, places=16)
        for _ in range(40):
            loop.step()
        return fleet.clock.now

    assert took(rollouts) <= at_most * took("sync")


def test_weights_that_others_moved_make_groups_too_old_and_each_is_counted() -> None:
    loop, _ = clocked_loop(ASYNC.model_copy(update={"max_refills": 4}), lasts=lambda n: 1.0, learns=0.5)
    loop.step()
    for _ in range(3):  # a loop of one's own between two steps
        loop.learner.step()
        loop.progress.moved(loop.learner.version, ASYNC.staleness)
    loop.sync()
    step = loop.step()
    assert step.metrics["dropped/stale"] == 6 and loop.progress.ledger.dropped["stale"] == 12
    assert trained(step) == [8, 9] and ages(loop, step) == {0}


def test_a_resumed_async_run_skips_no_task_and_repeats_none() -> None:
    loop, _ = clocked_loop(ASYNC, heavy, learns=2.0, places=4)
    done = [n for _ in range(5) for n in trained(loop.step())]
    row = json.loads(json.dumps(loop.progress.row()))
    assert len(row["open"]) == 6 and row["position"] == 16
    resumed, fleet = clocked_loop(ASYNC, heavy, learns=2.0, places=4)
    resumed.learner.version = loop.learner.version  # type: ignore[misc]
    resumed.progress = PolicyProgress.from_row(row)
    assert resumed.progress == loop.progress
    resumed.sync()
    while resumed.progress.step < ASYNC.steps:
        done += trained(resumed.step())
    assert fleet.given[:6] == sorted(issued.position for issued in loop.progress.open.values())
    assert sorted(done) == list(range(80)) and resumed.progress.ledger.trained_count == 160


def test_a_group_that_ends_untrained_while_the_learner_learns_is_in_the_rows_of_a_step_whatever_comes_between() -> None:
    """Group 3 ended so in step 1, which has no row of it. It was closed in the books of that step's checkpoint, and gone after a resume."""
    loop, fleet = clocked_loop(ASYNC, lambda n: 1.0 + n / 10, teaches_but(3))
    assert trained(loop.step()) == [0, 1] and 3 in fleet.ended and not loop.progress.ledger.dropped
    resumed, again = gone_on_from(loop, clocked_loop(ASYNC, lambda n: 1.0 + n / 10, teaches_but(3)))
    step = resumed.step()
    assert 3 in again.given and step.metrics["dropped/zero_variance"] == resumed.progress.ledger.dropped["zero_variance"] / 2 == 1
    assert sorted(number(group.task) for group in step.collected.sampled) == [2, 3, 4]
    loop.end_phase()  # by a budget: what no step has taken is surplus
    assert loop.progress.ledger.dropped == {"surplus": loop.progress.ledger.issued - 4}


@pytest.mark.parametrize("phase", [ONE_STEP, ASYNC], ids=["one_step_off", "async"])
def test_whoever_wants_the_fleet_gets_it_and_nothing_is_lost(phase: RFTPhaseConfig) -> None:
    loop, fleet = clocked_loop(phase, lasts=lambda n: 1.0 + n % 3)
    plain, _ = clocked_loop(phase, lasts=lambda n: 1.0 + n % 3)
    for _ in range(phase.steps):
        mine, theirs = loop.step(), plain.step()
        loop.settle()
        assert not fleet.running and fleet.version == loop.learner.version
        if phase is ONE_STEP:
            assert (trained(mine), ages(loop, mine)) == (trained(theirs), ages(plain, theirs))
    assert loop.progress.ledger.trained_count == plain.progress.ledger.trained_count == phase.steps * 4


def measured(loop: PolicyLoop) -> set[int]:
    """The weights that sampled three tasks that are no step's, played between two steps."""
    groups = list(run_tasks(loop.between_steps(), STREAM(5_000, 3), 2, 1.0))
    assert sorted(number(group.task) for group in groups) == [5000, 5001, 5002]
    return {int(v) for group in groups for one in group.episodes for v in one.trajectories[0].policy_version[1:]}


def test_async_is_measured_beside_what_is_under_way_and_nothing_is_lost() -> None:
    """Six groups are open; group 0 lasts for 40, and the measurement does not wait for it."""
    loop, fleet = clocked_loop(ASYNC, lasts=lambda n: 40.0 if n == 0 else 1.0 + n % 3)
    done = trained(loop.step())
    began, open_before = fleet.clock.now, set(loop.progress.open)
    assert measured(loop) == {loop.learner.version} == {1}
    assert fleet.clock.now - began < 5 and 0 not in fleet.ended
    assert set(loop.progress.open) == open_before, "none is issued in the place of those that finished"
    while loop.progress.step < ASYNC.steps:
        done += trained(loop.step())
        assert loop.progress.step == ASYNC.steps or measured(loop) == {loop.learner.version}
    assert sorted(done) == list(range(80)) and loop.progress.ledger.trained_count == 160


def test_one_step_off_issues_nothing_ahead_of_a_measurement() -> None:
    """After steps 2 and 4, a checkpoint; so what is trained in steps 3 and 5 is as new as the weights."""
    loop, _ = clocked_loop(ONE_STEP, lasts=lambda n: 3.0)
    loop.take(ONE_STEP, measured_every=2)
    found = []
    for step in range(1, 7):
        did = loop.step()
        found.append((trained(did), ages(loop, did)))
        if step % 2 == 0:
            assert not loop.progress.open and measured(loop) == {loop.learner.version}
    assert found == [([0, 1], {0}), ([2, 3], {1}), ([4, 5], {0}), ([6, 7], {1}), ([8, 9], {0}), ([10, 11], {1})]


def test_what_a_phase_leaves_when_nothing_can_be_learned_is_given_up_and_counted() -> None:
    loop, fleet = clocked_loop(ASYNC, lasts=lambda n: 1.0, outcomes=equal)
    while not loop.exhausted:
        loop.step()
    assert not loop.progress.open and not fleet.running
    ledger = loop.progress.ledger
    assert ledger.dropped.total() == ledger.issued and 0 < ledger.dropped["surplus"] <= 12


@pytest.mark.parametrize("phase", [ONE_STEP, ASYNC], ids=["one_step_off", "async"])
def test_what_a_phase_leaves_that_ends_before_its_last_step_is_given_up_and_the_engines_are_up_to_date(phase: RFTPhaseConfig) -> None:
    """A budget of tokens or minutes ends one so. Its checkpoint kept groups that nobody would play, and an evaluation waited for them."""
    loop, fleet = clocked_loop(phase, lasts=lambda n: 1.0 + n % 3)
    loop.step(), loop.step()
    left = len(loop.progress.open)
    loop.end_phase()
    assert left > 0 and not loop.progress.open and not fleet.running and fleet.version == loop.learner.version
    ledger, given = loop.progress.ledger, len(fleet.given)
    ledger.check(in_flight=0)
    assert ledger.dropped == {"surplus": 2 * left} and json.loads(json.dumps(loop.progress.row()))["open"] == {}
    loop.settle()
    assert len(fleet.given) == given, "no task is put in the place of another for a step that never comes"


@pytest.mark.parametrize("phase", [ONE_STEP, ASYNC], ids=["one_step_off", "async"])
def test_whoever_wants_the_fleet_after_a_resume_does_not_wait_for_what_was_not_issued_again(phase: RFTPhaseConfig) -> None:
    loop, _ = clocked_loop(phase, lasts=lambda n: 1.0 + n % 3)
    loop.step()
    resumed, fleet = clocked_loop(phase, lasts=lambda n: 1.0)
    resumed.progress = PolicyProgress.from_row(json.loads(json.dumps(loop.progress.row())))
    resumed.learner.version = loop.learner.version  # type: ignore[misc]
    resumed.sync()
    resumed.settle()
    assert not fleet.given and resumed.progress.open == loop.progress.open != {}
    resumed.step()
    assert set(fleet.given) >= {one.position for one in loop.progress.open.values()}


@pytest.mark.parametrize("phase", [ONE_STEP, ASYNC], ids=["one_step_off", "async"])
def test_the_next_phase_may_have_groups_of_another_size(phase: RFTPhaseConfig) -> None:
    loop, fleet = clocked_loop(phase, lasts=lambda n: 1.0 + n % 3)
    loop.step(), loop.step()
    left, closed, before = len(loop.progress.open), 4 * 2, loop.progress.ledger
    fleet.outcomes = lambda n: (Reward(1.0), Reward(0.0), Reward(1.0), Reward(0.0))
    loop.take(RFTPhaseConfig(groups_per_step=2, group_size=4, steps=20))
    loop.begin_phase()
    assert loop.step().metrics["groups_trained"] == 2 and loop.progress.step == 1
    assert (before.dropped, before.trained_count) == ({"surplus": 2 * left}, closed)
    books = loop.progress.ledger.record("rft2", 1)
    assert (books.issued, books.trained, books.dropped) == (8, 8, {}), "a phase has its own, and the position goes on"
    assert loop.progress.position == before.issued / 2 + 2
