"""Measuring a suite over a fleet of engines: tasks are played and judged as in training, texts are scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ....envs.failures import Failure
from ....envs.types import Episode, EpisodeGroup, Int32, Reward, Task
from ....rollout.store.episodes import text
from ...playing import Fleet, run_tasks
from ..evaluate import check_version
from ..statistics import EvaluationFailed, SuccessWatch
from .scores import ItemScore, Scores
from .suite import Suite

AGAIN = "~again"
"""Behind the ids of tasks that are played once more: they are sampled with other random numbers."""
TEXTS = 8
"""Texts that are scored in one call of the engine, whose deadline holds for all of them."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How suites are asked. items: of each, its own number when None. samples: of each item, at a temperature (0 is greedy, and then there
    is one). error_budget: share of the samples that may fail of the infrastructure. again: with other random numbers than without.

    Example: `Asking(samples=4, temperature=1.0)`.
    """

    items: int | None = None
    samples: int = 1
    temperature: float = 0.0
    error_budget: float = 0.1
    again: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for samples that would all be one."""
        if self.samples > 1 and not self.temperature:
            raise ValueError(f"{self.samples} samples at temperature 0 would say the same; give a temperature")

    def count(self, suite: Suite) -> int:
        """How many items a suite is asked for."""
        return self.items or suite.items

    def size(self, suite: Suite) -> int:
        """How many items that are, where a suite has fewer."""
        asked = suite.tasks or suite.texts
        assert asked is not None
        return len(asked(self.count(suite)))


def tasks_of(suite: Suite, asking: Asking) -> list[Task]:
    """The tasks of a suite, each with the suite as its environment. Raises ValueError when it has none, or two of one id."""
    assert suite.tasks is not None
    again = AGAIN if asking.again else ""
    tasks = [replace(one, id=f"{suite.id}:{one.id}{again}", environment=suite.id) for one in suite.tasks(asking.count(suite))]
    twice = [id for id, times in Counter(one.id for one in tasks).items() if times > 1]
    if twice or not tasks:
        raise ValueError(f"suite {suite.id}: {f'two of its items are called {twice[0]}' if twice else 'has no item'}")
    return tasks


def measure(
    fleet: Fleet,
    suite: Suite,
    asking: Asking,
    model: Path,
    max_context: int,
    on_item: Callable[[], None] = lambda: None,
    version: int = 0,
) -> Scores:
    """Ask every item of a suite of the fleet's engines, which were set up with `suite.played_by`.

    model: whose tokenizer reads texts, in pieces of at most max_context tokens. on_item: called as each ends. version: the weights that
    are measured; an engine starts with those of 0. Raises SyncProofError when a turn was sampled by others, EvaluationFailed when
    more samples failed than the error budget allows, ValueError when the success part turns out missing or out of range.
    """
    if suite.texts is not None:
        return Scores.of(suite, 0.0, list(_read(fleet, suite, asking, model, max_context, on_item)))
    watch, samples = SuccessWatch(suite.success), dict[str, list[ItemScore]]()
    tasks = tasks_of(suite, asking)
    for group in run_tasks(fleet, tasks, asking.samples, asking.temperature):
        check_version(group, version)
        samples[group.task.id] = list(_samples(group, watch))
        on_item()
    found = [sample for task in tasks for sample in samples[task.id]]
    _check_failures(suite, found, asking.error_budget)
    watch.check()
    return Scores.of(suite, asking.temperature, found)


def item_of(task: Task) -> str:
    """The item that a task asks, as the suite calls it."""
    return task.id.removeprefix(f"{task.environment}:").removesuffix(AGAIN)


def _samples(group: EpisodeGroup, watch: SuccessWatch) -> Iterator[ItemScore]:
    for episode in group.episodes:
        outcome = episode.outcome
        score = watch.value(episode, outcome) if isinstance(outcome, Reward) else None
        tokens = sum(len(turn.token_ids) for turn in episode.turns)
        failure = outcome.kind.value if isinstance(outcome, Failure) else ""
        yield ItemScore(item_of(group.task), episode.sample, group.task.seed, score, _answer(episode), tokens, failure)


def _answer(episode: Episode) -> str:
    """The policy's last words, as Parquet can hold them."""
    said = episode.said
    return text(said[-1].text) if said else ""


def _check_failures(suite: Suite, samples: Sequence[ItemScore], error_budget: float) -> None:
    failures = Counter(sample.failure for sample in samples if sample.failure)
    if failures.total() > error_budget * len(samples) or failures.total() == len(samples):
        kinds = ", ".join(f"{count} {kind}" for kind, count in failures.items())
        raise EvaluationFailed(f"suite {suite.id} has no result: {failures.total()} of {len(samples)} samples failed ({kinds})")


def _read(fleet: Fleet, suite: Suite, asking: Asking, model: Path, max_context: int, on_item: Callable[[], None]) -> Iterator[ItemScore]:
    """Each text's log-probability, by the first of the engines: all of them hold the same weights."""
    texts = _pieces(suite, asking, model, max_context)
    for first in range(0, len(texts), TEXTS):
        batch = texts[first : first + TEXTS]
        scored = iter(next(iter(fleet.score([piece for pieces in batch for piece in pieces]).values())))
        for number, pieces in enumerate(batch, start=first):
            given = [next(scored) for _ in pieces]
            yield ItemScore(str(number), 0, number, float(sum(float(one.sum()) for one in given)), "", sum(map(len, given)))
            on_item()


def _pieces(suite: Suite, asking: Asking, model: Path, max_context: int) -> list[list[Int32]]:
    """The tokens of each text behind the model's own begin, in pieces that overlap by one token, so that each is predicted once."""
    from ....rollout.control_tokens import ControlTokens
    from ....rollout.tokenizer import load_tokenizer
    from ...data.supervised import cpt_examples
    from ...models.tokenizer import document_frame

    assert suite.texts is not None
    tokenizer = load_tokenizer(model)
    control, (begin, _) = ControlTokens(tokenizer), document_frame(tokenizer)
    pieces = []
    for one in suite.texts(asking.count(suite)):
        ids = list(tokenizer(control.broken(one.text), add_special_tokens=False)["input_ids"])
        if ids:
            pieces.append([example.token_ids for example in cpt_examples([ids[:-1]], begin, ids[-1], max_context - 1)])
    if not pieces:
        raise ValueError(f"suite {suite.id}: has no text")
    return pieces
