"""Does an environment keep the contract? `burnish/…` environments are held to it in the tests; run it on yours.

    print(render(check_environment("my-team/Riddles-v0", {"level": 2})))

Each check makes fresh environments, runs in a thread of its own under a deadline, and passes, fails or is skipped with one line that
says what was seen.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

from ..contract import ENVS, INFO_KEYS, ConversationEnv, StepInfo, StepResult, make_env, read_reset, read_step, with_declared_parts
from ..failures import said_by, short_traceback
from ..named import import_module, try_environment
from ..places import own_places
from ..registry import is_plugin_module
from ..spaces import UnicodeText
from ..types import Task
from .conformance import HOSTILE_TEXTS, Broken, Check, Report, Skipped, percentiles, render, run_checks

__all__ = ["CHECKS", "Check", "Report", "check_environment", "render"]

MAX_TURNS = 200
PROCESS_S = 50.0
PLAIN_REPLIES = ("", "1", "I do not know.", "0", "2", "yes", "3", "The answer is 7.")
# What gymnasium's checker says of every wrapped environment, and of one made without gymnasium.make; both are as they should be.
_EXPECTED_WARNINGS = ("is different from the unwrapped version", "not having a spec")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

Transcript = list[Any]


@dataclass(frozen=True, slots=True)
class _Subject:
    """What the checks work on: a maker of fresh environments, seeds, and replies to play with."""

    make: Callable[[], ConversationEnv]
    id: str | None
    kwargs: Mapping[str, Any] | None
    seeds: tuple[int, ...]
    replies: tuple[str, ...]
    single_start: bool
    other_process: bool


def check_environment(
    environment: str | Callable[..., ConversationEnv],
    kwargs: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    *,
    replies: Sequence[str] = (),
    single_start: bool = False,
    other_process: bool = True,
    deadline_s: float = 60.0,
) -> Report:
    """Run every check on a registered id, or on a factory called with `kwargs`.

    seeds: at least two. replies: texts that mean something to this environment (tool calls, answers), played before the general ones.
    single_start: the task is the same for every seed, so seeds need not differ. other_process: False leaves out the check
    that starts one, and says so. deadline_s: seconds each check may take.
    Raises ValueError when the id or a kwarg is unknown, or the environment of that id cannot be made; the rest is in the report.
    """
    if len(set(seeds)) < 2:
        raise ValueError(f"check_environment needs at least two different seeds, not {list(seeds)}")
    given = dict(kwargs or {})
    make: Callable[[], ConversationEnv]
    id: str | None = None
    if isinstance(environment, str):
        id = name = environment
        spec_kwargs: dict[str, Any] | None = given
        make = lambda: make_env(name, **given)  # noqa: E731
        try_environment(name, given)
    else:
        name, spec_kwargs = getattr(environment, "__name__", repr(environment)), None
        factory = environment
        make = lambda: factory(**given)  # noqa: E731
    subject = _Subject(make, id, spec_kwargs, tuple(seeds), (*replies, *PLAIN_REPLIES), single_start, other_process)
    checks = run_checks(CHECKS, subject, deadline_s, "something in reset, step or close waits without a deadline")
    healthy = all(check.status != "fail" for check in checks)
    return Report(name, checks, _latency(subject) if healthy else {})


def _gymnasium(subject: _Subject) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_env(subject.make(), skip_render_check=True)
        except Exception as error:
            if own_places(error):
                raise
            raise Broken(f"gymnasium's checker says: {said_by(error)}") from error
    said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    unexpected = [text for text in said if not any(expected in text for expected in _EXPECTED_WARNINGS)]
    if unexpected:
        raise Broken(f"gymnasium's checker warns: {_COLOUR.sub('', unexpected[0])}")
    return "gymnasium's check_env is content"


def _five_tuple(subject: _Subject) -> str:
    env, steps = subject.make(), 0
    for seed in subject.seeds:
        steps += len(_play(env, seed, subject.replies)) - 1
    options = {"task": Task("check", subject.seeds[0]), "episode_id": "check/0"}
    read_reset(env.reset(seed=subject.seeds[0], options=options), "reset")
    return f"{len(subject.seeds)} resets, {steps} steps; takes a task in its options"


def _info(subject: _Subject) -> str:
    env = subject.make()
    keys: set[str] = set()
    for raw in _raw_infos(env, subject):
        for key in raw.keys() - set(INFO_KEYS):
            close = difflib.get_close_matches(str(key), INFO_KEYS, n=1, cutoff=0.75)
            if close:
                raise Broken(f"info has a key {key!r} that nothing reads; did you mean {close[0]!r}?")
        try:
            info = StepInfo.read(raw)
        except ValueError as error:
            raise Broken(str(error)) from None
        try:
            json.dumps({"data": dict(info.data), "tools": [dict(tool) for tool in info.tools]}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise Broken(f'info["data"] and info["tools"] must be JSON, to reach verifiers: {error}') from error
        for tool in info.tools:
            if tool.get("type") != "function" or not isinstance(tool.get("function", {}).get("name"), str):
                raise Broken(f'info["tools"] holds {dict(tool)!r:.80}, which is no OpenAI function schema')
        keys |= raw.keys()
    return f"keys: {', '.join(sorted(map(str, keys))) or 'none'}"


def _reward_parts(subject: _Subject) -> str:
    """An episode may be cut short after any step: what is reported as success must exist then, too."""
    whole, cut = list[set[str]](), list[set[str]]()
    for seed in subject.seeds:
        env = subject.make()
        (_, start), *steps = _play(env, seed, subject.replies)
        infos = [with_declared_parts(env, "reset", start), *(step.info for step in steps)]
        whole.append({name for info in infos for name in info.reward_parts})
        cut.append({name for info in infos[:2] for name in info.reward_parts})
    late = sorted(name for name in set.union(*whole) if not all(name in names for names in cut))
    if late:
        names = "".join(f'"{name}", ' for name in late).rstrip()
        raise Broken(
            f"an episode that a limit cuts short after its first step has no part {late[0]!r}; declare what is not given with every step, "
            f"by an attribute reward_parts = ({names}) of the environment: it is 0 until it is given"
        )
    return f"{', '.join(sorted(set.union(*whole))) or 'none'}; also when an episode is cut short"


def _determinism(subject: _Subject) -> str:
    for seed in subject.seeds:
        first, second = (_play(subject.make(), seed, subject.replies) for _ in range(2))
        _compare(first, second, f"seed {seed}, played twice with the same replies")
        used = subject.make()
        _play(used, seed + 1, subject.replies)
        _compare(first, _play(used, seed, subject.replies), f"seed {seed}, in a fresh environment and in a used one")
    return f"{len(subject.seeds)} seeds, fresh and used environments"


def _seeds_differ(subject: _Subject) -> str:
    if subject.single_start:
        raise Skipped("every seed has the same task, as declared")
    transcripts = [repr(_play(subject.make(), seed, subject.replies)) for seed in subject.seeds]
    if len(set(transcripts)) == 1:
        seeds = ", ".join(map(str, subject.seeds))
        raise Broken(
            f"seeds {seeds} give the same episode; draw the task from self.np_random after super().reset(seed=seed). With one task for all "
            "seeds, held-out tasks are those that were trained on"
        )
    return f"{len(set(transcripts))} different episodes from {len(transcripts)} seeds"


def _hostile_text(subject: _Subject) -> str:
    sampler = UnicodeText(seed=subject.seeds[0])
    texts = [*HOSTILE_TEXTS, *(sampler.sample() for _ in range(50))]
    env = subject.make()
    for text in texts:
        read_reset(env.reset(seed=subject.seeds[0]), "reset")
        try:
            read_step(env.step(text), "step")
        except BaseException as error:  # argparse over a reply exits
            raise Broken(f"the reply {text[:40]!r} ({len(text)} characters) makes step fail: {short_traceback(error)}") from error
    return f"{len(texts)} replies: empty, huge, control characters, Unicode, broken tool calls"


def _after_end(subject: _Subject) -> str:
    env = subject.make()
    results = _play(env, subject.seeds[0], subject.replies)
    last = results[-1]
    if not (isinstance(last, StepResult) and (last.terminated or last.truncated)):
        raise Skipped(f"the episode did not end within {len(results) - 1} steps; pass replies that end it")
    try:
        env.step(subject.replies[0])
    except Exception as error:
        return f"refused: {type(error).__name__}"
    raise Broken("a step after the end is accepted; raise gymnasium.error.ResetNeeded, so that a mistake in the caller shows")


def _independent(subject: _Subject) -> str:
    seeds = subject.seeds[:2]
    alone = [_play(subject.make(), seed, subject.replies) for seed in seeds]
    envs = [subject.make() for _ in seeds]
    if envs[0] is envs[1]:
        raise Broken("the factory returned the same environment twice; every episode needs a fresh one")
    mixed: list[Transcript] = [[read_reset(env.reset(seed=seed), "reset")] for env, seed in zip(envs, seeds, strict=True)]
    for turn in range(max(map(len, alone)) - 1):
        for env, transcript, reference in zip(envs, mixed, alone, strict=True):
            if turn + 1 < len(reference):
                transcript.append(read_step(env.step(subject.replies[turn % len(subject.replies)]), "step"))
    for seed, first, second in zip(seeds, alone, mixed, strict=True):
        _compare(first, second, f"seed {seed}, alone and beside another environment")
    return "two environments stepped in turn do not disturb each other"


def _threads(subject: _Subject) -> str:
    reference = _play(subject.make(), subject.seeds[0], subject.replies)
    env = subject.make()
    transcript: Transcript = [read_reset(env.reset(seed=subject.seeds[0]), "reset")]
    errors: list[BaseException] = []

    def step(text: str) -> None:
        try:
            transcript.append(read_step(env.step(text), "step"))
        except BaseException as error:
            errors.append(error)

    for turn in range(len(reference) - 1):
        thread = threading.Thread(target=step, args=(subject.replies[turn % len(subject.replies)],), daemon=True)
        thread.start()
        thread.join()
        if errors:
            raise Broken(f"step fails in another thread than reset's: {short_traceback(errors[0])}")
    _compare(reference, transcript, "in one thread and with each step in another")
    return "each step may run in another thread"


def _spec(subject: _Subject) -> str:
    if subject.kwargs is None:
        raise Skipped("a factory was given; register it to name it in a recipe")
    try:
        json.dumps(subject.kwargs, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Broken(f"kwargs cannot be written in a recipe or sent to another process: {error}") from error
    spec = subject.make().spec
    assert spec is not None, "make_env sets the spec"
    try:
        again = EnvSpec.from_json(spec.to_json())
    except ValueError as error:
        raise Broken(f"the spec is not JSON ({error}); register a class or function at the top of an importable module") from error
    if (again.id, again.entry_point) != (spec.id, spec.entry_point):
        raise Broken(f"the spec does not survive JSON: {spec} became {again}")
    return f"{spec.id} and its kwargs are JSON"


def _another_process(subject: _Subject) -> str:
    if not subject.other_process:
        raise Skipped("left out by whoever asked for these checks")
    if subject.id is None:
        raise Skipped("a factory was given; register it to make it in another process")
    seed = subject.seeds[0]
    try:
        order = json.dumps([subject.id, _source(subject.id), subject.kwargs, seed, subject.replies])
    except TypeError as error:
        raise Broken(f"kwargs cannot be sent to another process: {error}") from error
    command = [sys.executable, "-P", "-m", __name__]
    place = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ran = subprocess.run(command, input=order, capture_output=True, text=True, timeout=PROCESS_S, env=place, check=False)
    if ran.returncode:
        raise Broken(f"it cannot be made or played in another process: {(ran.stderr.strip() or 'no output').splitlines()[-1]}")
    here, there = [repr(turn) for turn in _play(subject.make(), seed, subject.replies)], json.loads(ran.stdout.splitlines()[-1])
    for turn, (a, b) in enumerate(zip_longest(here, there, fillvalue="nothing")):
        if a != b:
            raise Broken(
                f"seed {seed}, in another process: {f'step {turn}' if turn else 'reset'} differs\nhere   {a:.300}\nthere  {b:.300}"
            )
    return "made anew from its id and kwargs in another process, it plays the same episode"


def _source(id: str) -> str:
    """The module that registers the environment, or for a plug-in the file."""
    module = ENVS.get(id).__module__
    file = getattr(sys.modules.get(module), "__file__", None)
    return str(file) if is_plugin_module(module) and file else module


def _play_order() -> None:
    """What the other process does: read an order from stdin, play it, and print each turn on stdout, as JSON."""
    id, source, kwargs, seed, replies = json.load(sys.stdin)
    import_module(source, "environment")
    print(json.dumps([repr(turn) for turn in _play(make_env(id, **kwargs), seed, replies)]))


def _close(subject: _Subject) -> str:
    env = subject.make()
    env.reset(seed=subject.seeds[0])
    for _ in range(2):
        env.close()
    return "closing twice is harmless"


CHECKS: Mapping[str, Callable[[_Subject], str]] = {
    "gymnasium": _gymnasium,
    "five-tuple": _five_tuple,
    "info": _info,
    "reward parts": _reward_parts,
    "determinism": _determinism,
    "seeds differ": _seeds_differ,
    "hostile text": _hostile_text,
    "step after end": _after_end,
    "independence": _independent,
    "threads": _threads,
    "spec": _spec,
    "another process": _another_process,
    "close": _close,
}


def _play(env: ConversationEnv, seed: int, replies: Sequence[str], turns: int = MAX_TURNS) -> Transcript:
    """Reset, then reply in rotation until the end or `turns`: what reset returned, then every StepResult."""
    transcript: Transcript = [read_reset(env.reset(seed=seed), "reset")]
    for turn in range(turns):
        result = read_step(env.step(replies[turn % len(replies)]), "step")
        transcript.append(result)
        if result.terminated or result.truncated:
            break
    return transcript


def _raw_infos(env: ConversationEnv, subject: _Subject) -> list[dict[str, Any]]:
    infos = []
    for seed in subject.seeds:
        begun = env.reset(seed=seed)
        if not isinstance(begun, tuple) or len(begun) != 2:
            read_reset(begun, "reset")  # says so
        infos.append(begun[1])
        for text in subject.replies:
            done = env.step(text)
            if not isinstance(done, tuple) or len(done) != 5:
                read_step(done, "step")
            _, _, terminated, truncated, info = done
            infos.append(info)
            if terminated or truncated:
                break
    return infos


def _compare(first: Transcript, second: Transcript, what: str) -> None:
    for turn, (a, b) in enumerate(zip(first, second, strict=False)):
        if repr(a) != repr(b):
            where = "reset" if turn == 0 else f"step {turn}"
            raise Broken(f"{what}: {where} differs\nfirst  {a!r:.300}\nsecond {b!r:.300}")
    if len(first) != len(second):
        raise Broken(f"{what}: {len(first) - 1} steps and {len(second) - 1} steps")


def _latency(subject: _Subject, resets: int = 50, budget_s: float = 5.0) -> dict[str, float]:
    seconds: dict[str, list[float]] = {"reset": [], "step": []}
    env, end = subject.make(), time.monotonic() + budget_s
    for i in range(resets):
        if i > 0 and time.monotonic() > end:
            break
        started = time.perf_counter()
        env.reset(seed=i)
        seconds["reset"].append(time.perf_counter() - started)
        for text in subject.replies:
            started = time.perf_counter()
            _, _, terminated, truncated, _ = env.step(text)
            seconds["step"].append(time.perf_counter() - started)
            if terminated or truncated:
                break
    return percentiles(seconds)


if __name__ == "__main__":
    _play_order()
