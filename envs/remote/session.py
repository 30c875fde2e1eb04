"""One episode on an environment server: a fresh environment, the order of its steps, and the answers that may be asked for again."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from ...rpc.errors import Status
from ...rpc.payload import PayloadError
from ...rpc.user_code import is_asked_for
from ...v1 import environment_pb2
from ..contract import ConversationEnv, StepResult, make_env, read_reset, read_step, with_declared_parts
from ..failures import EpisodeFailure, short_traceback
from .client_kwargs import check_client_kwargs
from .held import SessionShare
from .users import Users
from .wire import decode_object, info_into_wire, info_to_wire, messages_into_wire, messages_to_wire, task_from_wire

log = logging.getLogger("burnish.envs")
T = TypeVar("T")

Answer = environment_pb2.EpisodeResponse | Status
"""What a call ended with; an error is kept and given again like a response."""


class EpisodeSession:
    """An episode from its reset to its close. What reads or sets the order of steps runs on the server's event loop.

    `begin`, `play` and `close_env` work on the environment, in threads, never two at a time: `run` does the first two, and whoever
    discards the session while one of them is busy leaves it to that one to close the environment.
    """

    def __init__(
        self,
        env_id: str,
        kwargs: Mapping[str, Any],
        allowed: Collection[str],
        request: environment_pb2.ResetRequest,
        share: SessionShare,
        now: float,
    ) -> None:
        """allowed: the arguments that clients may set. share: of the bytes that episodes hold. now: seconds, of the clock that tells
        idleness."""
        self.episode_id = request.episode_id
        self._share = share
        self._forgotten: set[asyncio.Future[Answer]] = set()  # what stands for answers that are not kept
        self.used = now
        self.waiting = 0
        self.steps = 0
        self._reset, self._seed = _digest_of(request), request.seed
        self._action = b""
        self.began: asyncio.Future[Answer]
        self.answer: asyncio.Future[Answer]
        self._env_id, self._kwargs, self._allowed = env_id, kwargs, allowed
        self._request: environment_pb2.ResetRequest | None = request
        self._env: ConversationEnv | None = None
        self._users = Users(f"episode {self.episode_id!r} was closed")

    def is_begun_by(self, request: environment_pb2.ResetRequest) -> bool:
        """Whether the reset is the one that this episode began with. Its digest is kept, for a request may be large and an episode long."""
        return _digest_of(request) == self._reset

    def take(self, action: str) -> None:
        """The next step is at work from here on. Raises Status RESOURCE_EXHAUSTED where there is no room for it."""
        said = action.encode()
        if not self._share.hold("action", len(said)):
            raise self._share.room.full
        self.steps += 1
        self._action = digest(said)

    def keep(self, done: asyncio.Future[Answer]) -> None:
        """Keep an answer for whoever asks for it again; where there is no room, only whether the episode goes on after it."""
        self._share.hold("action", 0)
        answer = Status("CANCELLED", "") if done.cancelled() else done.result()
        if isinstance(answer, Status) or self._share.keep("began" if done is self.began else "answer", answer.ByteSize()):
            return
        stands_for: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        step = environment_pb2.StepResponse(terminated=answer.step.terminated, truncated=answer.step.truncated)
        stands_for.set_result(environment_pb2.EpisodeResponse(step=step))
        self.began, self.answer = (stands_for if one is done else one for one in (self.began, self.answer))
        self._forgotten = {one for one in (self.began, self.answer) if one is stands_for or one in self._forgotten}

    def kept(self, answer: asyncio.Future[Answer]) -> asyncio.Future[Answer]:
        """An answer that is asked for again. Raises Status FAILED_PRECONDITION where it is not kept."""
        if answer in self._forgotten:
            raise self._refusal(f"that was answered, and the answer is not kept: {self._share.room.full.message}")
        return answer

    def is_repeated(self, request: environment_pb2.StepRequest) -> bool:
        """Whether the step is the last one again; otherwise it is the next one. Raises Status FAILED_PRECONDITION when it is neither,
        or no step can be taken any more."""
        if self.steps and request.step_id == self.steps - 1:
            if digest(request.action.encode()) != self._action:
                raise self._refusal(f"step {request.step_id} was taken already, with another action")
            return True
        if request.step_id != self.steps:
            last = f", and step {self.steps - 1} may be asked again" if self.steps else ""
            raise self._refusal(f"step {request.step_id} is out of order: the next is step {self.steps}{last}")
        before = f"step {self.steps - 1}" if self.steps else "its reset"
        if not self.answer.done():
            raise self._refusal(f"{before} is still at work; ask for its answer before step {self.steps}")
        outcome = self.answer.result()
        if isinstance(outcome, Status):
            raise self._refusal(f"{before} failed and left the environment in an unknown state; begin another episode. {outcome.message}")
        if outcome.step.terminated or outcome.step.truncated:
            raise self._refusal(f"the episode ended with {before}; begin another one")
        return False

    def run(self, work: Callable[[], T]) -> T:
        """Do `work` on the environment. Raises Status CANCELLED when the session was discarded before."""
        return self._users.guard(work, self._close_left)

    def discard(self) -> bool:
        """Let no further work begin; True when the caller is to call `close_env`."""
        self._share.release()
        return self._users.discard()

    def begin(self) -> environment_pb2.EpisodeResponse:
        """Make the environment and reset it. Raises Status, INVALID_ARGUMENT also when the request cannot be read, or sets what its client
        may not set."""
        request, self._request = self._request, None  # it may be large, and its task is the environment's from here on
        assert request is not None, "an episode begins once"
        kwargs, options = self._read(request)
        try:
            self._env = env = _user_code(lambda: make_env(self._env_id, **kwargs), ValueError)
        except ValueError as error:
            raise Status("INVALID_ARGUMENT", str(error)) from error
        task = options.get("task")
        raw = _user_code(lambda: env.reset(seed=self._seed, options=options))
        messages, info = _checked(lambda: read_reset(raw, self._env_id, asked=bool(task and task.prompt)))
        info = _checked(lambda: with_declared_parts(env, self._env_id, info))
        return _encoded(
            lambda: environment_pb2.EpisodeResponse(
                reset=environment_pb2.ResetResponse(messages=messages_to_wire(messages), info=info_to_wire(info), environment=self._env_id)
            )
        )

    def _read(self, request: environment_pb2.ResetRequest) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the environment is made with, and the options of its reset. Raises Status INVALID_ARGUMENT."""
        try:
            given = decode_object("kwargs_json", request.kwargs_json)
            options: dict[str, Any] = {"episode_id": request.attempt_id or request.episode_id}
            if request.HasField("task"):
                options["task"] = task_from_wire(request.task)
        except PayloadError as error:
            raise Status("INVALID_ARGUMENT", str(error)) from None
        check_client_kwargs(self._env_id, given, self._allowed)
        return {**self._kwargs, **given}, options

    def play(self, action: str) -> environment_pb2.EpisodeResponse:
        """Step the environment. Raises Status."""
        env = self._env
        assert env is not None, "only a session that began is stepped"
        raw = _user_code(lambda: env.step(action))
        step = _checked(lambda: read_step(raw, self._env_id))
        return _encoded(lambda: _step_response(step))

    def close_env(self) -> None:
        """Close the environment, if one was made. Raises Status UNKNOWN when it raises."""
        env, self._env = self._env, None
        if env is not None:
            _user_code(env.close)

    def _close_left(self) -> None:
        try:
            self.close_env()
        except Status as error:
            log.warning("%s: closing the environment of an abandoned episode failed: %s", self.episode_id, error.message)

    def _refusal(self, why: str) -> Status:
        return Status("FAILED_PRECONDITION", f"episode {self.episode_id!r}: {why}")


def _digest_of(request: environment_pb2.ResetRequest) -> bytes:
    """Tells a reset from any other."""
    return digest(request.SerializeToString(deterministic=True))


def digest(said: bytes) -> bytes:
    """What is kept of what was said, to know it again."""
    return hashlib.blake2b(said, digest_size=16).digest()


def _step_response(step: StepResult) -> environment_pb2.EpisodeResponse:
    """Filled in place, since protobuf copies the messages that a constructor is given. Raises PayloadError."""
    response = environment_pb2.EpisodeResponse()
    wire = response.step
    messages_into_wire(step.messages, wire.messages)
    wire.reward, wire.terminated, wire.truncated = step.reward, step.terminated, step.truncated
    info_into_wire(step.info, wire.info)
    return response


def _user_code(call: Callable[[], T], *passing: type[Exception]) -> T:
    try:
        return call()
    except passing:
        raise
    except EpisodeFailure as error:  # of a tool, say: the message keeps its own attribution
        raise Status("UNKNOWN", str(error)) from error
    except BaseException as error:  # a sys.exit would end the server
        if is_asked_for(error):
            raise
        raise Status("UNKNOWN", short_traceback(error)) from error


def _checked(read: Callable[[], T]) -> T:
    try:
        return read()
    except EpisodeFailure as error:
        raise Status("DATA_LOSS", error.failure.detail) from error


def _encoded(encode: Callable[[], T]) -> T:
    try:
        return encode()
    except PayloadError as error:
        raise Status("DATA_LOSS", f"what the environment returned cannot be sent: {error}") from error
