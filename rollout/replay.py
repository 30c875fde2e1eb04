"""Episodes asked for again: what the policy said goes, word by word, through a fresh environment, and is judged once more.

Nothing is sampled: the engine repeats the turns of the first time. So whatever is another than before is the environment's doing, when it
answers otherwise, or a scorer's, when the same conversation gets another reward.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..envs.failures import EpisodeFailure, Failure, FailureKind
from ..envs.types import Episode, EpisodeGroup, Turn
from .engine.base import GenerateRequest
from .engine.fake import Reply, ScriptedEngine
from .worker import RolloutWorker, WorkerSetup

WORKER = "replay"
LOOK_S = 1.0
RETRY = re.compile(r"(/\d+)~\d+$")
"""What a further attempt at an episode adds to its id (`rollout.episode.play_episode`)."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One episode, and what came of it when it was played again. Example: `Replayed(episode, again).same_answers`."""

    first: Episode
    again: Episode

    @property
    def same_answers(self) -> bool:
        """Whether the environment said the same as before, word for word."""
        return self.first.messages == self.again.messages


def can_replay(group: EpisodeGroup) -> bool:
    """Whether every member ended in a reward, by what it said: one whose time ran out stopped where no turn tells."""
    return all(episode.reward is not None and episode.truncation != "time" for episode in group.episodes)


def replay(setup: WorkerSetup, groups: Sequence[EpisodeGroup], stall_s: float = 600.0) -> list[Replayed]:
    """Play groups again, whole, since rewards may compare their members; in this process, with environments and scorers made anew.

    setup: what they were played with. An episode that the environment did not end where it ended the first time is a failure. Raises
    ValueError for a group that `can_replay` refuses, TimeoutError when no call of environments or rewards ends for `stall_s` seconds.
    """
    for group in groups:
        if not can_replay(group):
            raise ValueError(f"task {group.task.id} has an episode that failed or ran out of time, and cannot be played again")
    said = {episode.id: episode.turns for group in groups for episode in group.episodes}
    engine = ScriptedEngine(lambda request: _repeat(said, request), name=WORKER, max_context=setup.engine.max_context)
    worker = RolloutWorker(setup, WORKER, engine=engine)
    again: dict[str, Episode] = {}
    try:
        for size in sorted({len(group.episodes) for group in groups}):
            worker.submit([group.task for group in groups if len(group.episodes) == size], size, setup.rollout.temperature)
        last, ended = time.monotonic(), 0
        while len(again) < len(said):
            found = worker.sample(LOOK_S)
            again |= {episode.id: episode for group in found for episode in group.episodes}
            if found or worker.progress.calls != ended:
                last, ended = time.monotonic(), worker.progress.calls
            elif time.monotonic() - last > stall_s:
                left = len(said) - len(again)
                raise TimeoutError(f"{left} episodes are played again, and no call of environments or rewards ended for {stall_s:g} s")
    finally:
        worker.close()
    return [Replayed(episode, again[episode.id]) for group in groups for episode in group.episodes]


def _repeat(said: Mapping[str, Sequence[Turn]], request: GenerateRequest) -> Reply:
    """What was said at this point the first time."""
    attempt, _, number = request.request_id.rpartition("/")
    turns = said[RETRY.sub(r"\1", attempt)]
    if int(number) >= len(turns):
        detail = f"episode {attempt} goes on after turn {len(turns)}, where it had ended: the environment answers otherwise than before"
        raise EpisodeFailure(Failure(FailureKind.ENV_ERROR, "environment", detail))
    turn = turns[int(number)]
    return Reply(turn.token_ids.tolist(), turn.logprobs.tolist())
