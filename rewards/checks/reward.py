"""Does a reward keep its contract? `burnish/…` rewards are held to it in the tests; run it on yours.

    print(render(check_reward("my-team/short-answer-v1", {"limit": 100})))

Each check makes scorers of its own, without the plug-in's cache, runs in a thread of its own under a deadline, and passes, fails or is
skipped with one line that says what was seen.
"""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

from ...envs.checks.conformance import HOSTILE_TEXTS, Broken, Check, NeedsSample, Report, Skipped, no_difference, percentiles, run_checks
from ...envs.failures import EpisodeFailure, Failure, FailureKind
from ...envs.types import Message, Task
from ...rpc.urls import shown_value
from ..calling.scorers import PluginGroupScorer, scorer_for
from ..declaration import RewardPlugin
from ..plugin import check_params, default_name, find_plugin
from ..types import RewardInput, Score, in_full

ANSWERS = ("7", "It is 7.", "8", "I do not know.")
CONCURRENT = 32
CHECK_S = 120.0
HOSTILE = (*HOSTILE_TEXTS, "\ud800", "7" * 1_000_000)


def sample_episodes(count: int = len(ANSWERS)) -> list[RewardInput]:
    """Made-up attempts at one task: a question, a call of a tool, its answer, and a final answer that differs from one to the next."""
    task = Task("check", 0, data={"reference_answer": "7"})
    call, seen = Message("assistant", "add(3, 4)"), Message("tool", "7", tool_call_id="call_0", name="add")
    return [
        RewardInput(
            episode_id=f"check/{i}",
            task=task,
            messages=(Message("user", "What is 3 + 4?"), call, seen, Message("assistant", ANSWERS[i % len(ANSWERS)])),
            env_reward=1.0,
            env_parts={"correct": 1.0},
            metrics={"turns": 2.0, "tool_calls": 2.0, "cost": 3.0},
            data={
                "answer": 7,
                "reference_answer": "7",
                "tool_calls": [{"name": "add", "arguments": {"a": 3, "b": 4}, "status": "ok"}],
                "call_lines": {"call_0": [0, 9]},
            },
        )
        for i in range(count)
    ]


Case = tuple[RewardInput, ...]
Result = Score | Failure


@dataclass(frozen=True, slots=True)
class _Subject:
    """What the checks work on. cases: what is judged together, one episode each unless the reward compares a group.
    made_up: they know nothing of what this reward is for."""

    plugin: RewardPlugin
    params: Mapping[str, Any]
    options: Mapping[str, Any]
    cases: tuple[Case, ...]
    made_up: bool

    def judge(self, cases: Sequence[Case], one_by_one: bool = False) -> list[tuple[Result, ...]]:
        """What one fresh scorer says about copies of the cases, all at once or one after the other."""
        return asyncio.run(self.judge_these(copy.deepcopy(cases), one_by_one))

    async def judge_these(self, cases: Sequence[Case], one_by_one: bool = False) -> list[tuple[Result, ...]]:
        name = default_name(self.plugin.id)
        if self.plugin.level == "group":
            compared = PluginGroupScorer(self.plugin, name, self.options)

            async def judge(case: Case) -> tuple[Result, ...]:
                try:
                    return tuple(await compared.score_group(case))
                except EpisodeFailure as error:
                    return (error.failure,) * len(case)
        else:
            scorer = scorer_for(self.plugin, name, self.options)

            async def judge(case: Case) -> tuple[Result, ...]:
                try:
                    return (await scorer.score(case[0]),)
                except EpisodeFailure as error:
                    return (error.failure,)

        if one_by_one:
            return [await judge(case) for case in cases]
        return list(await asyncio.gather(*(judge(case) for case in cases)))


def check_reward(
    id: str, params: Mapping[str, Any] | None = None, episodes: Sequence[RewardInput] = (), *, deadline_s: float | None = None
) -> Report:
    """Run every check on the plug-in `id` with these options.

    episodes: ones that it can score, for a reward that finds no use in the made-up ones; attempts at one task share their task's id.
    deadline_s: seconds each check may take; None leaves room for calls that use their whole time. Raises ValueError when the id or an
    option is unknown or unfit; the rest is in the report.
    """
    plugin = find_plugin(id)
    options = check_params(plugin, params or {})
    # Without its cache: it would hide what differs. Without waiting for a batch to fill: that is no time of the function's.
    plain = replace(plugin, cache=0, max_wait_s=min(plugin.max_wait_s, 0.01))
    subject = _Subject(plain, dict(params or {}), options, _cases(plugin, episodes), not episodes)
    limit_s = deadline_s or max(CHECK_S, 3 * plugin.timeout_s)
    waits = "the function waits without a deadline, or ignores its cancellation"
    checks = run_checks(CHECKS, subject, limit_s, waits)
    if checks[-1].status == "need":
        checks += tuple(Check(title, "skip", "it needs scores to look at") for title in SCORE_CHECKS)
    else:
        checks += run_checks(SCORE_CHECKS, subject, limit_s, waits)
    report = Report(id, checks)
    return replace(report, latency_ms=_latency(subject)) if report.passed else report


def _cases(plugin: RewardPlugin, episodes: Sequence[RewardInput]) -> tuple[Case, ...]:
    if plugin.level != "group":
        return tuple((episode,) for episode in episodes or sample_episodes())
    groups: dict[str, list[RewardInput]] = {}
    for episode in episodes or sample_episodes(max(plugin.min_members, len(ANSWERS))):
        groups.setdefault(episode.task.id, []).append(episode)
    whole = tuple(tuple(group) for group in groups.values() if len(group) >= plugin.min_members)
    if not whole:
        raise ValueError(f"reward {plugin.id!r} compares at least {plugin.min_members} attempts at one task; no task has as many episodes")
    return whole


def _options(subject: _Subject) -> str:
    try:
        json.dumps(subject.params, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Broken(f"the options as given cannot be written in a recipe: {error}") from error
    try:
        ForkingPickler.dumps(dict(subject.options))
    except Exception as error:
        raise Broken(f"the checked options cannot be sent to another process: {type(error).__name__}: {error}") from error
    again = check_params(subject.plugin, json.loads(json.dumps(subject.params)))
    if repr(again) != repr(subject.options):
        raise Broken(f"checking the same options twice gives {shown_value(subject.options)} and {shown_value(again)}")
    given = ", ".join(f"{key} = {shown_value(value, key)}" for key, value in subject.options.items())
    return f"{given or 'defaults'}; JSON, and fit for another process"


def _scores(subject: _Subject) -> str:
    found = subject.judge(subject.cases)
    if subject.made_up:
        _suited(found)
    _scored(found)
    values = [result.value for case in found for result in case if isinstance(result, Score)]
    line = f"{len(values)} episodes: {', '.join(in_full(value) for value in values[:8])}{', …' if len(values) > 8 else ''}"
    return "\n".join([line, *no_difference(values)])


def _determinism(subject: _Subject) -> str:
    first = _scored(subject.judge(subject.cases))
    second = _scored(subject.judge(subject.cases))
    _same(first, second, "", "then")
    return f"{len(subject.cases)} scored twice, equal"


def _untouched(subject: _Subject) -> str:
    given = copy.deepcopy(subject.cases)
    asyncio.run(subject.judge_these(given))
    for before, after in zip(subject.cases, given, strict=True):
        if before != after:
            raise Broken("the function changes the episode it is given; other rewards see the same one: copy what you change")
    return "the episode stays as it was"


def _hostile(subject: _Subject) -> str:
    episodes = _hostile_episodes(subject.cases[0][0])
    cases = [(episode, *subject.cases[0][1:]) for episode in episodes.values()]
    failed = []
    for what, case in zip(episodes, subject.judge(cases), strict=True):
        result = case[0]
        if isinstance(result, Failure):
            if result.kind is FailureKind.REWARD_TIMEOUT:
                raise Broken(f"{what}: {result.detail}")
            failed.append(f"{what}: {ascii(result.detail.splitlines()[0])[1:-1]:.200}")
    lines = [f"{len(cases)} episodes: {len(cases) - len(failed)} scored, {len(failed)} failed with a type, all in time"]
    return "\n".join([*lines, *failed[:5], *(["such an episode is masked, neither rewarded nor punished"] if failed else [])])


def _hostile_episodes(base: RewardInput) -> dict[str, RewardInput]:
    *before, last = base.messages
    texts = {f"the answer {text[:20]!r} ({len(text)} characters)": replace(last, content=text) for text in HOSTILE}
    episodes = {what: replace(base, messages=(*before, message)) for what, message in texts.items()}
    turns = tuple(message for i in range(200) for message in (Message("user", f"question {i}"), Message("assistant", f"answer {i}")))
    episodes |= {
        "200 turns": replace(base, messages=turns, metrics={**base.metrics, "turns": 200.0}),
        "no assistant message": replace(base, messages=(Message("user", "Hello?"),), metrics={**base.metrics, "turns": 0.0}),
        "no data": replace(base, data={}, task=replace(base.task, data={})),
        "no metrics": replace(base, metrics={}, env_parts={}),
        "other data": replace(base, data={key: ["unexpected", None, 1e308] for key in base.data}),
        "an answer cut at its limit": replace(base, truncation="max_tokens"),
        "no answer, only a tool's": replace(base, messages=tuple(before), truncation="max_turns"),
    }
    return episodes


def _concurrent(subject: _Subject) -> str:
    cases = [subject.cases[i % len(subject.cases)] for i in range(CONCURRENT)]
    alone = _scored(subject.judge(subject.cases, one_by_one=True))
    together = _scored(subject.judge(cases))
    _same([alone[i % len(alone)] for i in range(CONCURRENT)], together, "alone", "beside others")
    return f"{CONCURRENT} calls at once give what they give one by one"


def _order(subject: _Subject) -> str:
    if subject.plugin.level != "group":
        raise Skipped("it does not compare episodes")
    first = _scored(subject.judge(subject.cases))
    turned = _scored(subject.judge([tuple(reversed(case)) for case in subject.cases]))
    _same(first, [tuple(reversed(case)) for case in turned], "in one order", "in the reverse order")
    return "the order of the attempts does not matter"


CHECKS: Mapping[str, Callable[[_Subject], str]] = {
    "options": _options,
    "scores": _scores,
}
SCORE_CHECKS: Mapping[str, Callable[[_Subject], str]] = {
    "determinism": _determinism,
    "input untouched": _untouched,
    "hostile episodes": _hostile,
    "concurrent calls": _concurrent,
    "order": _order,
}


def _suited(found: Sequence[tuple[Result, ...]]) -> None:
    """Raise NeedsSample when the function raised: the made-up episodes may lack what it reads."""
    for result in (result for case in found for result in case):
        if isinstance(result, Failure) and result.kind is FailureKind.REWARD_ERROR:
            raise NeedsSample(f"{result}\nif the made-up episodes do not suit it, give some that do: --sample FILE.jsonl")


def _scored(found: Sequence[tuple[Result, ...]]) -> list[tuple[Score, ...]]:
    scores = []
    for case in found:
        for result in case:
            if isinstance(result, Failure):
                raise Broken(str(result))
        scores.append(tuple(result for result in case if isinstance(result, Score)))
    return scores


def _same(first: Sequence[tuple[Score, ...]], second: Sequence[tuple[Score, ...]], how_first: str, how_second: str) -> None:
    for a, b in zip((s for case in first for s in case), (s for case in second for s in case), strict=True):
        if a != b:
            differs = (
                f"{in_full(a.value)} {how_first} and {how_second} {in_full(b.value)}"
                if a.value != b.value
                else f"{a} {how_first}, {b} {how_second}"
            )
            raise Broken(f"one episode scored {' '.join(differs.split())}; a reward must not vary between calls")


def _latency(subject: _Subject, calls: int = 100, budget_s: float = 5.0) -> dict[str, float]:
    """Percentiles over single calls, one after the other."""
    seconds: list[float] = []

    async def measure() -> None:
        end = time.monotonic() + budget_s
        while len(seconds) < calls and (not seconds or time.monotonic() < end):
            case = subject.cases[len(seconds) % len(subject.cases)]
            started = time.perf_counter()
            await timed.judge_these([case])
            seconds.append(time.perf_counter() - started)

    timed = replace(subject, plugin=replace(subject.plugin, max_wait_s=0.0))
    asyncio.run(measure())
    return percentiles({"call": seconds})
