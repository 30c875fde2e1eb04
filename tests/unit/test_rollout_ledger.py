"""The ledger balances or the run stops."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from burnish.envs.failures import Failure, FailureKind
from burnish.envs.types import Episode, EpisodeGroup, Reward, Task
from burnish.rollout.store.ledger import Ledger, LedgerError
from burnish.run.pipeline import _books_of
from burnish.run.under_way import Run

pytestmark = pytest.mark.unit

TASK = Task("train-0", 0)
DOWN = Failure(FailureKind.VERIFIER_UNAVAILABLE, "verdicts@127.0.0.1:1", "connection refused")


def episode(sample: int, outcome=None, task: Task = TASK) -> Episode:
    return Episode(task, sample, (), (), outcome or Reward(1.0))


def test_every_episode_ends_exactly_once() -> None:
    ledger = Ledger()
    ledger.issue("train-0", 4)
    ledger.settle([EpisodeGroup(TASK, (episode(0), episode(1), episode(2, DOWN), episode(3)))])
    ledger.check()
    assert ledger.row() == {"issued": 4, "trained": 3, "masked": {"verifier_unavailable": 1}, "dropped": {}, "open": []}


def test_a_dropped_group_keeps_the_cause_of_its_failures() -> None:
    ledger = Ledger()
    ledger.issue("train-0", 2)
    ledger.drop_group(EpisodeGroup(TASK, (episode(0), episode(1, DOWN))), "too_few")
    ledger.check()
    assert (dict(ledger.dropped), dict(ledger.masked)) == ({"too_few": 1}, {"verifier_unavailable": 1})


def test_the_books_of_a_step_that_is_broken_off_have_its_failures_once() -> None:
    """One group taught nothing, which the step would have entered in the books; the other waits for its step, which never comes."""
    ledger, other = Ledger(), Task("train-1", 1)
    ledger.issue("train-0", 2)
    ledger.issue("train-1", 3)
    dropped = (episode(0), episode(1, DOWN))
    waiting = (episode(0, task=other), episode(1, DOWN, other), episode(2, task=other))
    loop = SimpleNamespace(
        progress=SimpleNamespace(ledger=ledger), close_ended=lambda: ledger.drop_group(EpisodeGroup(TASK, dropped), "too_few")
    )
    run = SimpleNamespace(session=SimpleNamespace(loop=loop))
    record = _books_of(cast(Run, run), [*dropped, *waiting]).record("rft", 1)
    assert (record.issued, record.masked, record.dropped) == (5, {"verifier_unavailable": 2}, {"too_few": 1})
    assert ledger.open == {"train-1/0", "train-1/2"}, "what was not judged a failure stays open"


def test_a_lost_episode_stops_the_run() -> None:
    ledger = Ledger()
    ledger.issue("train-0", 2)
    ledger.trained(episode(0))
    with pytest.raises(LedgerError, match=r"1 open of 0 in flight \(for example train-0/1\)"):
        ledger.check()
    ledger.check(in_flight=1)


def test_an_episode_trained_twice_or_never_issued_stops_the_run() -> None:
    ledger = Ledger()
    ledger.issue("train-0", 1)
    ledger.trained(episode(0))
    with pytest.raises(LedgerError, match="train-0/0 is closed, but it is not open"):
        ledger.trained(episode(0))
    with pytest.raises(LedgerError, match="train-9/0"):
        ledger.trained(episode(0, task=Task("train-9", 9)))


def test_issuing_what_is_in_flight_stops_the_run() -> None:
    ledger = Ledger()
    ledger.issue("train-0", 2)
    with pytest.raises(LedgerError, match="issued twice"):
        ledger.issue("train-0", 1)


def test_the_books_survive_a_checkpoint_with_episodes_in_flight() -> None:
    ledger = Ledger()
    ledger.issue("train-0", 3)
    ledger.trained(episode(0))
    again = Ledger.from_row(ledger.row())
    assert again == ledger
    again.trained(episode(1))
    again.trained(episode(2))
    again.check()


def test_a_doctored_row_is_refused() -> None:
    ledger = Ledger()
    ledger.issue("train-0", 3)
    with pytest.raises(LedgerError, match="does not balance"):
        Ledger.from_row({**ledger.row(), "issued": 4})
