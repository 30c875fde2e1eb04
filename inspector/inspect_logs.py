"""Evaluations as logs of Inspect (inspect-ai), so that its viewer and its tools open them: a file for each, a sample for each attempt.

Of an attempt there are the prompt, the conversation with its calls of tools, a score for the total and for every part of the reward, what
was measured, what task and environment knew, and of one that failed, the error. Tokens stay in the store.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..envs.types import Message
from ..rollout.store.episodes import text
from ..rollout.store.moments import Moment, moments
from .runs import check_run, read_object
from .stored import StoredEpisode, Which, stored_episodes
from .verdicts import verdicts

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.model import ChatMessage

TOTAL = "reward"
"""The score that holds the total; parts have their own names."""


def export_evaluations(run: Path, target: Path) -> list[Path]:
    """Write a log for each evaluation of a run into a folder, which is made, and return their paths: `rft.000040.sampled.eval`. One that
    the run takes back meanwhile is passed over.

    Raises ValueError when `run` is no run folder or has no stored evaluation, when a log is there already, or naming the file that cannot
    be read.

    Example: `export_evaluations(Path("runs/nano-1"), Path("logs"))`, then `inspect view --log-dir logs`.
    """
    from inspect_ai.log import write_eval_log

    home = check_run(run)
    evaluated = [(file, moment) for file, moment in moments(home / "episodes") if moment.split == "heldout"]
    if not evaluated:
        raise ValueError(f"{run} has no stored evaluation")
    paths = {moment: target / f"{moment.phase}.{moment.step:06}.{moment.mode}.eval" for _, moment in evaluated}
    there = next((path for path in paths.values() if path.exists() or path.is_symlink()), None)
    if there is not None:
        raise ValueError(f"{there} is there already; give another folder")
    target.mkdir(parents=True, exist_ok=True)
    config = read_object(home, "config.json")
    written = list[Path]()
    for file, moment in evaluated:
        try:
            made = datetime.fromtimestamp(file.stat().st_mtime, UTC)
        except FileNotFoundError:
            continue
        episodes = list(stored_episodes(home / "episodes", Which(moment.phase, moment.step, moment.split, moment.mode)))
        if episodes:
            write_eval_log(_log(home.name, config, moment, episodes, made), paths[moment], format="eval")
            written.append(paths[moment])
    return written


def _log(run: str, config: dict[str, Any], moment: Moment, episodes: Sequence[StoredEpisode], made: datetime) -> EvalLog:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalResults, EvalSpec

    model = text(str(config.get("model", "unknown")))
    tasks = list(dict.fromkeys(episode.task.id for episode in episodes))
    samples = [_sample(episode, model) for episode in episodes]
    spec = EvalSpec(
        run_id=text(run),
        eval_id=f"{text(run)}/{moment.phase}.{moment.step:06}.{moment.mode}",
        created=made.isoformat(),
        task=text(str(config.get("name", run))),
        dataset=EvalDataset(name=text(str(config.get("environment", ""))), samples=len(tasks), sample_ids=list(tasks)),
        model=model,
        config=EvalConfig(epochs=max((episode.sample for episode in episodes), default=0) + 1),
        metadata={"run": text(run), "phase": moment.phase, "step": moment.step, "mode": moment.mode, "by": "burnish"},
    )
    rewarded = sum(sample.error is None for sample in samples)
    results = EvalResults(total_samples=len(samples), completed_samples=rewarded, scores=_means(samples))
    return EvalLog(status="success", eval=spec, results=results, samples=samples)


def _sample(episode: StoredEpisode, model: str) -> EvalSample:
    from inspect_ai.log import EvalError, EvalSample
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import Score

    spoken = [message for message in episode.messages[len(episode.task.prompt) :] if message.role == "assistant"]
    last = text(spoken[-1].text) if spoken else ""
    known = {"task_data": dict(episode.task.data), "env_data": dict(episode.env_data), "seed": episode.task.seed}
    measured = {"metrics": dict(episode.metrics), "labels": dict(episode.labels), "truncation": episode.truncation}
    scores: dict[str, Score] = {}
    if episode.reward is not None:
        why = {one.scorer: text(one.explanation) or None for one in verdicts(episode.parts, episode.metrics, episode.labels)}
        scores = {text(name): Score(value=value, explanation=why.get(name)) for name, value in episode.parts.items()}
        scores[TOTAL] = Score(value=episode.reward, answer=text(episode.labels.get("predicted", "")) or None)
    failed = EvalError(message=episode.failure, traceback="", traceback_ansi="") if episode.failure else None
    return EvalSample(
        id=text(episode.task.id),
        epoch=episode.sample + 1,
        input=[_message(message) for message in episode.task.prompt] or "",
        target=text(str(episode.labels.get("expected", episode.task.data.get("reference_answer", "")))),
        messages=[_message(message) for message in episode.messages],
        output=ModelOutput.from_content(model, last),
        scores=scores or None,
        metadata=_clean({"episode": episode.id, **known, **measured}),
        error=failed,
    )


def _message(message: Message) -> ChatMessage:
    """A message in Inspect's classes."""
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageTool, ChatMessageUser
    from inspect_ai.tool import ToolCall

    said = text(message.text)
    if message.role == "assistant":
        calls = [
            ToolCall(id=text(call.id), function=text(call.name), arguments=_clean(dict(call.arguments))) for call in message.tool_calls
        ]
        return ChatMessageAssistant(content=said, tool_calls=calls or None)
    if message.role == "tool":
        return ChatMessageTool(
            content=said, tool_call_id=text(message.tool_call_id or "") or None, function=message.name and text(message.name)
        )
    return ChatMessageSystem(content=said) if message.role == "system" else ChatMessageUser(content=said)


def _means(samples: Sequence[EvalSample]) -> list[Any]:
    """Each score's mean over the samples that have it."""
    from inspect_ai.log import EvalMetric, EvalScore

    values: dict[str, list[float]] = {}
    for sample in samples:
        for name, score in (sample.scores or {}).items():
            values.setdefault(name, []).append(score.as_float())
    ordered = sorted(values.items(), key=lambda one: (one[0] != TOTAL, one[0]))
    return [
        EvalScore(
            name=name, scorer="burnish", scored_samples=len(all_of_it), metrics={"mean": EvalMetric(name="mean", value=_mean(all_of_it))}
        )
        for name, all_of_it in ordered
    ]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _clean(data: Any) -> Any:
    """Data with text that UTF-8 can hold."""
    if isinstance(data, dict):
        return {text(str(key)): _clean(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_clean(value) for value in data]
    return text(data) if isinstance(data, str) else data
