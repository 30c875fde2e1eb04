"""Does a verifier keep its contract? Whatever language it is written in: everything is asked over gRPC, as training does.

    print(render(check_verifier(short_answer)))                       # a function with @verifier, served here for the occasion
    print(render(check_verifier_service("127.0.0.1:50051")))          # a service that runs

Each check runs in a thread of its own under a deadline, and passes, fails or is skipped with one line that says what was seen.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

from ...envs.checks.conformance import HOSTILE_TEXTS, Broken, Check, NeedsSample, Report, Skipped, no_difference, percentiles, run_checks
from ...envs.checks.services import check_health, check_reflection, expect_code, offers_stream, outcome_of_one, outcomes, quiet_server
from ...envs.failures import EpisodeFailure, FailureKind
from ...envs.registry import some_of
from ...rpc.background import background
from ...rpc.bounds import answers_of
from ...rpc.client import describe_blocking
from ...rpc.errors import CODES, code_name
from ...rpc.methods import CONTRACT, VERIFY
from ...rpc.probe import call_raw, exchange
from ...rpc.server import Server
from ...v1 import verifier_pb2
from ..remote.client import RemoteVerifier
from ..remote.service import Verifier, VerifierService
from ..remote.wire import to_request
from ..types import RewardInput, Score, in_full
from .reward import sample_episodes

UNARY = "/burnish.v1.VerifierService/Verify"
CONCURRENT = 32
LATE_S = 2.0
"""Seconds after its deadline at which a verdict is late beyond doubt."""

Verdict = tuple[int, Any]


@dataclass(frozen=True, slots=True)
class _Subject:
    """What the checks work on. verifier: the id to ask for, empty when the service has only one. streams: whether it offers the stream.
    made_up: the episodes know nothing of what this verifier is for."""

    address: str
    verifier: str
    episodes: tuple[RewardInput, ...]
    call_s: float
    streams: bool
    made_up: bool

    def request(self, episode: RewardInput) -> verifier_pb2.VerifyRequest:
        return to_request(episode, self.verifier)

    def verdicts(self, episodes: Sequence[RewardInput], timeout_s: float | None = None) -> list[Verdict]:
        """Every verdict in the order of the episodes, asked for in one batch of one stream where there is one."""
        if not self.streams:
            return [self.unary(episode, timeout_s) for episode in episodes]
        items = [
            VERIFY.item(request_id=str(i), timeout_s=self.call_s if timeout_s is None else timeout_s, request=self.request(episode))
            for i, episode in enumerate(episodes)
        ]
        return outcomes(exchange(self.address, VERIFY, items, self.call_s), len(items))

    def unary(self, episode: RewardInput, timeout_s: float | None = None) -> Verdict:
        code, payload, _ = call_raw(self.address, UNARY, self.request(episode).SerializeToString(), timeout_s or self.call_s)
        return code, answers_of(verifier_pb2.VerifyResponse)(payload) if code == 0 else None

    def scores(self, episodes: Sequence[RewardInput], at_once: bool = False) -> list[Score]:
        """Scores by burnish's own client, one after the other or all at once. Raises EpisodeFailure."""
        remote = RemoteVerifier("check", self.address, self.call_s, self.verifier)

        async def ask() -> list[Score]:
            if at_once:
                return list(await asyncio.gather(*(remote.score(episode) for episode in episodes)))
            return [await remote.score(episode) for episode in episodes]

        return asyncio.run(ask())


def check_verifier(verifier: Verifier, episodes: Sequence[RewardInput] = (), *, deadline_s: float = 60.0) -> Report:
    """Serve the verifier on a free port of this machine, run every check on it, and stop the server.

    episodes: ones that it can judge, where it finds no use in the made-up ones. deadline_s: seconds each check may take.
    """
    home = background()
    server = Server([VerifierService([verifier])])
    address = home.run(server.start(), deadline_s)
    try:
        with quiet_server():
            report = check_verifier_service(address, verifier.id, episodes, deadline_s=deadline_s)
    finally:
        home.run(server.stop(), deadline_s)
    return replace(report, subject=verifier.id)


def check_verifier_service(address: str, verifier: str = "", episodes: Sequence[RewardInput] = (), *, deadline_s: float = 60.0) -> Report:
    """Run every check on the service at `address`.

    verifier: the id to ask for, on a service that has several. episodes and deadline_s: as for `check_verifier`. What cannot be reached,
    or lacks the verifier, raises ValueError; the rest is in the report.
    """
    RemoteVerifier("check", address, verifier=verifier).check()
    call_s = deadline_s / 3
    streams = offers_stream(address, VERIFY, call_s)
    subject = _Subject(address, verifier, tuple(episodes or sample_episodes()), call_s, streams, not episodes)
    waits = "the service waits without a deadline, or leaves a stream open"
    checks = run_checks(SERVICE_CHECKS, subject, deadline_s, waits)
    judged = checks[-1].status == "pass"
    if judged:
        checks += run_checks(VERDICT_CHECKS, subject, deadline_s, waits)
    else:
        checks += tuple(Check(title, "skip", "it needs scores to look at") for title in VERDICT_CHECKS)
    report = Report(f"{verifier or 'verifier'} at {address}", checks)
    return replace(report, latency_ms=_latency(subject)) if report.passed else report


def _describe(subject: _Subject) -> str:
    asked = verifier_pb2.DescribeVerifiersRequest()
    answer = describe_blocking(subject.address, VERIFY.service, asked, verifier_pb2.DescribeVerifiersResponse, subject.call_s)
    if answer.contract != CONTRACT:
        raise Broken(f"Describe says contract {answer.contract!r}; this burnish speaks {CONTRACT!r}")
    return f"{some_of([row.id for row in answer.verifiers])}; {answer.server_version or 'no server_version'}"


def _reflection(subject: _Subject) -> str:
    return check_reflection(subject.address, VERIFY.service, subject.call_s)


def _health(subject: _Subject) -> str:
    return check_health(subject.address, VERIFY.service, subject.call_s)


def _scores(subject: _Subject) -> str:
    try:
        values = [score.value for score in subject.scores(subject.episodes)]
    except EpisodeFailure as error:
        if subject.made_up and error.failure.kind is FailureKind.VERIFIER_ERROR:
            fix = "if the made-up episodes do not suit it, give some that do: --sample FILE.jsonl"
            raise NeedsSample(f"{error.failure}\n{fix}") from None
        raise Broken(str(error.failure)) from None
    line = f"{len(values)} episodes: {', '.join(in_full(value) for value in values[:8])}"
    return "\n".join([line, *no_difference(values)])


def _determinism(subject: _Subject) -> str:
    first, second = (_scored(subject, subject.episodes) for _ in range(2))
    _same(first, second, "asked twice")
    return f"{len(first)} episodes judged twice, equal"


def _unary_and_stream(subject: _Subject) -> str:
    _needs_stream(subject)
    streamed = subject.verdicts(subject.episodes)
    for episode, (code, response) in zip(subject.episodes, streamed, strict=True):
        alone = subject.unary(episode)
        if _without_words(alone) != _without_words((code, response)):
            raise Broken(f"episode {episode.episode_id}: unary {_verdict(alone)}, on the stream {_verdict((code, response))}")
    return f"{len(streamed)} equal verdicts, each item answered once"


def _policy_text(subject: _Subject) -> str:
    *before, last = subject.episodes[0].messages
    for text in HOSTILE_TEXTS:
        episode = replace(subject.episodes[0], messages=(*before, replace(last, content=text)))
        code, response = subject.verdicts([episode])[0]
        if code:
            what = f"the answer {text[:40]!r} ({len(text)} characters)"
            raise Broken(f"{what} ends with {code_name(code)}; what the policy writes must be judged, or its episode is lost to training")
        if not math.isfinite(response.score):
            raise Broken(f"the answer {text[:40]!r} scores {response.score}, which is no finite number")
    silent = replace(subject.episodes[0], messages=tuple(before), metrics={}, truncation="max_turns")
    code, _ = subject.verdicts([silent])[0]
    return f"{len(HOSTILE_TEXTS)} answers judged; an episode without an answer {'is judged too' if not code else f'is {code_name(code)}'}"


def _garbage(subject: _Subject) -> str:
    good = subject.request(subject.episodes[0])
    for field in ("data_json", "task.data_json", "role"):
        bad = verifier_pb2.VerifyRequest()
        bad.CopyFrom(good)
        if field == "data_json":
            bad.data_json = "{no json"
        elif field == "task.data_json":
            bad.task.data_json = "[1]"
        else:
            bad.messages[0].role = 0  # type: ignore[assignment]
        expect_code("INVALID_ARGUMENT", call_raw(subject.address, UNARY, bad.SerializeToString(), subject.call_s)[0], f"{field}, unary")
        if subject.streams:
            expect_code("INVALID_ARGUMENT", outcome_of_one(subject.address, VERIFY, bad, subject.call_s)[0], f"{field}, on the stream")
    code, _, _ = call_raw(subject.address, UNARY, b"\xff\xff\xff\xff", subject.call_s)
    if code == 0:
        raise Broken("bytes that are no message get a verdict")
    _scored(subject, subject.episodes[:1])
    return f"malformed fields are INVALID_ARGUMENT, bytes that are no message {code_name(code)}; it serves on"


def _unknown_verifier(subject: _Subject) -> str:
    other = replace(subject, verifier="nobody/has-this-v1")
    expect_code("NOT_FOUND", other.unary(subject.episodes[0])[0], "an unknown verifier, unary")
    expect_code("NOT_FOUND", other.verdicts(subject.episodes[:1])[0][0], "an unknown verifier, on the stream")
    return "an unknown verifier is NOT_FOUND"


def _deadlines(subject: _Subject) -> str:
    started = time.monotonic()
    codes = [code for code, _ in subject.verdicts([subject.episodes[0]] * CONCURRENT, timeout_s=0.001)]
    took = time.monotonic() - started
    strange = [code_name(code) for code in codes if code not in (0, CODES["DEADLINE_EXCEEDED"])]
    if strange:
        raise Broken(f"a deadline of 1 ms ends with {strange[0]}; late verdicts are DEADLINE_EXCEEDED")
    if took > LATE_S:
        raise Broken(f"{CONCURRENT} verdicts with a deadline of 1 ms took {took:.1f} s; the deadline of an item is not kept")
    late = sum(code != 0 for code in codes)
    return f"{CONCURRENT} verdicts with a deadline of 1 ms: {CONCURRENT - late} in time, {late} DEADLINE_EXCEEDED, in {took:.2f} s"


def _cancelling(subject: _Subject) -> str:
    request = subject.request(subject.episodes[0])
    _needs_stream(subject)
    items = [VERIFY.item(request_id="a", timeout_s=subject.call_s, request=request), VERIFY.item(request_id="a", cancel={})]
    ((code, _),) = outcomes(exchange(subject.address, VERIFY, items, subject.call_s), 1)
    if code not in (0, CODES["CANCELLED"]):
        raise Broken(f"a cancelled item ends with {code_name(code)}, not with CANCELLED or its verdict")
    return f"a cancelled item gets one result: {'its verdict, it was done' if code == 0 else 'CANCELLED'}"


def _concurrency(subject: _Subject) -> str:
    many = [replace(subject.episodes[i % len(subject.episodes)], episode_id=f"check/{i}") for i in range(CONCURRENT)]
    alone = _scored(subject, subject.episodes)
    together = _scored(subject, many, at_once=True)
    _same([alone[i % len(alone)] for i in range(CONCURRENT)], together, "alone and beside others")
    return f"{CONCURRENT} episodes at once are judged as each alone"


def _pickling(subject: _Subject) -> str:
    remote = RemoteVerifier("check", subject.address, subject.call_s, subject.verifier)
    again: RemoteVerifier = ForkingPickler.loads(bytes(ForkingPickler.dumps(remote)))
    return f"the client travels to other processes ({again.culprit})"


SERVICE_CHECKS: Mapping[str, Callable[[_Subject], str]] = {
    "describe": _describe,
    "reflection": _reflection,
    "health": _health,
    "unknown verifier": _unknown_verifier,
    "pickling": _pickling,
    "scores": _scores,
}
VERDICT_CHECKS: Mapping[str, Callable[[_Subject], str]] = {
    "determinism": _determinism,
    "unary and stream": _unary_and_stream,
    "policy text": _policy_text,
    "garbage": _garbage,
    "deadlines": _deadlines,
    "cancelling": _cancelling,
    "concurrency": _concurrency,
}


def _needs_stream(subject: _Subject) -> None:
    if not subject.streams:
        raise Skipped("the service offers no stream, only unary calls")


def _scored(subject: _Subject, episodes: Sequence[RewardInput], at_once: bool = False) -> list[Score]:
    try:
        return subject.scores(episodes, at_once)
    except EpisodeFailure as error:
        raise Broken(str(error.failure)) from None


def _same(first: Sequence[Score], second: Sequence[Score], how: str) -> None:
    for a, b in zip(first, second, strict=True):
        if a != b:
            raise Broken(f"one episode, {how}, scored {in_full(a.value)} and {in_full(b.value)} ({a} and {b}); a verdict must not vary")


def _without_words(verdict: Verdict) -> Verdict:
    """Without its explanation, which may say the same otherwise."""
    code, response = verdict
    if response is None:
        return verdict
    bare = verifier_pb2.VerifyResponse()
    bare.CopyFrom(response)
    bare.ClearField("explanation")
    return code, bare


def _verdict(verdict: Verdict) -> str:
    code, response = verdict
    if code:
        return code_name(code)
    turns = f", turns {list(response.turns)}" if response.turns else ""
    return f"score {in_full(response.score)}, parts {dict(response.parts)}, labels {dict(response.labels)}{turns}"


def _latency(subject: _Subject, calls: int = 100, budget_s: float = 5.0) -> dict[str, float]:
    remote = RemoteVerifier("check", subject.address, subject.call_s, subject.verifier)
    seconds: list[float] = []

    async def measure() -> None:
        end = time.monotonic() + budget_s
        while len(seconds) < calls and (not seconds or time.monotonic() < end):
            started = time.perf_counter()
            await remote.score(subject.episodes[len(seconds) % len(subject.episodes)])
            seconds.append(time.perf_counter() - started)

    asyncio.run(measure())
    return percentiles({"verdict": seconds})
