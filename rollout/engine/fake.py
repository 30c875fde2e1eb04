"""An engine that says what it is told: for unit tests of everything above engines, and for breakpoints."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...envs.failures import EpisodeFailure, FailureKind
from ...envs.types import Float32
from .base import GenerateRequest, Generation
from .gate import Gate
from .layout import Shapes, check_request, check_shapes, checksum


@dataclass(frozen=True, slots=True)
class Reply:
    """One scripted answer: the tokens, and their log-probabilities (-0.5 each when left out).

    Example: `Reply([7, 9, 2], [-0.1, -0.2, -0.3])`.
    """

    token_ids: Sequence[int]
    logprobs: Sequence[float] | None = None


Script = Callable[[GenerateRequest], "Reply | Sequence[int]"]


class ScriptedEngine:
    """An `Engine` without a model.

    script: a function from the request to the tokens to answer with, or the answers in order, the last one repeated.
    faults: failures to raise, keyed by the number of the `generate` call (from 0) or by request id; a `FailureKind` becomes an
    EpisodeFailure that names this engine. delay_s: seconds each answer takes. timeout_s: seconds without a token after which it hangs, for
    what is in flight to end before new weights, and that these may hold a request. shapes: what a weight update must bring; None takes
    anything.

    An answer ends at the first of its tokens that is a stop token ("stop") or at `max_tokens` ("length"); one that has neither gets the
    stop reason "length". With `token_s` set, each token takes so many seconds more. It waits while weights change, and is of those of its
    moment, as in a real engine. What happened is recorded: `requests`, `cancelled` (request ids), `weights` (the last ones loaded).

    Example: `ScriptedEngine(script=lambda request: [request.prompt_token_ids[-1], 2])`.
    """

    def __init__(
        self,
        script: Script | Sequence[Reply | Sequence[int]],
        *,
        name: str = "scripted",
        max_context: int = 1024,
        vocab_size: int = 1 << 20,
        faults: Mapping[int | str, FailureKind | EpisodeFailure] | None = None,
        delay_s: float = 0.0,
        timeout_s: float = 60.0,
        shapes: Shapes | None = None,
    ) -> None:
        self._gate = Gate(name, silent_s=timeout_s, held_s=timeout_s)
        self._script = script if callable(script) else _in_order(script)
        self._max_context = max_context
        self._vocab_size = vocab_size
        self._faults = dict(faults or {})
        self._delay_s = delay_s
        self._timeout_s = timeout_s
        self._shapes = shapes
        self._received: dict[str, np.ndarray] = {}
        self._lost: str | None = None
        self._hangs = False
        self.requests: list[GenerateRequest] = []
        self.cancelled: list[str] = []
        self.weights: dict[str, np.ndarray] = {}
        self.token_s = 0.0

    @property
    def name(self) -> str:
        return self._gate.name

    @property
    def max_context(self) -> int:
        return self._max_context

    @property
    def weight_version(self) -> int:
        return self._gate.version

    async def generate(self, request: GenerateRequest) -> Generation:
        check_request(request, self._max_context, self._vocab_size)
        async with self._gate.admitted():
            answer, seconds = await self._gate.answered(self._play(request), request.max_seconds)
            return replace(answer, seconds=seconds)

    async def _play(self, request: GenerateRequest) -> Generation:
        number = len(self.requests)
        self.requests.append(request)
        try:
            await asyncio.sleep(self._delay_s)
            await self._gate.moving()
            await self._goes_on(number, request.request_id)
            answer = self._answer(request)
            if not self.token_s:
                self._gate.sampled(len(answer.token_ids))
                return answer
            for i in range(len(answer.token_ids)):
                await asyncio.sleep(self.token_s)
                await self._gate.moving()
                await self._goes_on(number, request.request_id)
                self._gate.sampled(1)
                answer.policy_version[i] = self.weight_version
        except asyncio.CancelledError:
            self.cancelled.append(request.request_id)
            raise
        return answer

    async def pause_generation(self, finish: bool = True) -> None:
        await self._gate.pause(self._timeout_s, finish)

    async def start_weight_update(self, shapes: Shapes) -> None:
        self._gate.start()
        if self._shapes is not None:
            try:
                check_shapes(shapes, self._shapes, self.name)
            except ValueError as error:
                self._gate.fail(str(error))
                raise
        self._received = {}

    async def update_weights(self, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
        self._gate.require_updating()
        self._received = {name: array.copy() for name, array in tensors}  # as an engine does: shared memory is not held on to

    async def finish_weight_update(self, version: int) -> Mapping[str, str]:
        self._gate.require_updating()
        self.weights = self._received
        self._gate.finish(version)
        return {name: checksum(array) for name, array in self.weights.items()}

    async def refuse_generation(self, reason: str) -> None:
        self._gate.fail(reason)

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[Float32]:
        """-0.5 for every token."""
        async with self._gate.admitted():
            return [np.full(len(ids) - 1, -0.5, np.float32) for ids in sequences]

    async def resume_generation(self) -> None:
        self._gate.resume()

    async def close(self) -> None:
        self.lose("the engine was closed")

    def lose(self, detail: str) -> None:
        """From now on every call of `generate` raises ENGINE_LOST."""
        self._lost = detail

    def hang(self) -> None:
        """From now on it samples nothing, and answers nobody."""
        self._hangs = True

    async def _goes_on(self, number: int, request_id: str) -> None:
        """Raises what it is to fail with; comes to no end when it hangs."""
        if self._lost is not None:
            raise self._gate.failure(FailureKind.ENGINE_LOST, self._lost)
        fault = self._faults.get(number, self._faults.get(request_id))
        if isinstance(fault, EpisodeFailure):
            raise fault
        if fault is not None:
            raise self._gate.failure(fault, f"scripted for request {request_id}")
        if self._hangs:
            await asyncio.Event().wait()

    def _answer(self, request: GenerateRequest) -> Generation:
        reply = self._script(request)
        if not isinstance(reply, Reply):
            reply = Reply(reply)
        tokens = list(reply.token_ids)
        logprobs = [-0.5] * len(tokens) if reply.logprobs is None else list(reply.logprobs)
        assert len(logprobs) == len(tokens), "a scripted reply has one log-probability per token"
        stop = next((i for i, token in enumerate(tokens) if token in request.stop_token_ids), None)
        count = min(len(tokens) if stop is None else stop + 1, request.max_tokens)
        return Generation(
            token_ids=np.asarray(tokens[:count], np.int32),
            logprobs=np.asarray(logprobs[:count], np.float32),
            policy_version=np.full(count, self.weight_version, np.int32),
            stop_reason="stop" if stop is not None and stop < count else "length",
            seconds=0.0,
        )


def _in_order(replies: Sequence[Reply | Sequence[int]]) -> Script:
    if not replies:
        raise ValueError("a scripted engine needs at least one reply")
    left = deque(replies)
    return lambda _: left.popleft() if len(left) > 1 else left[0]
