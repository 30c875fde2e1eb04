"""`burnish/Remote-v0`: an environment behind gRPC, in any language, as a Gymnasium environment of this process."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from ...rpc.address import shown_address
from ...rpc.client import BatchedClient, Pin, describe_blocking
from ...rpc.errors import RpcError, RpcTimeout, RpcUnavailable
from ...rpc.methods import CONTRACT, EPISODE
from ...rpc.payload import PayloadError, utf8
from ...v1 import environment_pb2
from ..contract import Observation, read_reset, read_step
from ..failures import EpisodeFailure, Failure, FailureKind
from ..registry import did_you_mean, some_of
from ..spaces import MessagesSpace, UnicodeText
from ..types import Task
from .wire import encode_object, info_from_wire, messages_from_wire, task_to_wire

log = logging.getLogger("burnish.envs")

ATTEMPTS = 3
"""How often one call is sent while the service cannot be reached. Sending it again is safe: the service does nothing twice."""
RETRY_S = 0.1
CLOSE_S = 5.0


class RemoteEnv(gymnasium.Env[Observation, str]):
    """Plays in the environment service at `address` ("127.0.0.1:50053"); every reset opens a session there.

    environment: id of the environment on a server that has several. kwargs: arguments of that environment, laid over those that the
    server has. deadline_s: seconds one reset or step may take, reconnecting and waiting for a free session included; keep it below
    `rollout.step_timeout_s`, so that a failure names the service. A reset without a seed draws one. Of
    `options`, "task" and "episode_id" travel.

    Raises EpisodeFailure ENV_TIMEOUT when the deadline passes, ENV_ERROR for whatever else the service could not do, naming
    environment and address; ValueError on a malformed address, deadline or option.

    Example: `RemoteEnv("127.0.0.1:50053", kwargs={"max_operand": 20})`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  # gymnasium declares it on the instance
    observation_space = MessagesSpace()
    action_space = UnicodeText()

    def __init__(self, address: str, environment: str = "", kwargs: Mapping[str, Any] | None = None, deadline_s: float = 20.0) -> None:
        if not deadline_s > 0:
            raise ValueError(f"burnish/Remote-v0: deadline_s must be a positive number of seconds, not {deadline_s!r}")
        self._environment, self._deadline_s = environment, deadline_s
        self._client = BatchedClient(address, EPISODE)
        try:
            self._kwargs_json = encode_object("kwargs", kwargs or {})
        except PayloadError as error:
            raise ValueError(f"burnish/Remote-v0: {error}") from None
        self._culprit = f"{environment or 'environment'}@{shown_address(address)}"
        self._session, self._pin = "", Pin()
        self._steps = 0
        self._over, self._lost = True, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        given = dict(options or {})
        task: Task | None = given.pop("task", None)
        attempt_id: str | None = given.pop("episode_id", None)
        given.pop("tool_parser", None)  # no peer names what is loaded: the service says which parser it has
        if given:
            raise ValueError(f"burnish/Remote-v0: options {', '.join(map(repr, given))} cannot be sent; a task and an episode_id can")
        if seed is None:
            seed = task.seed if task else int(self.np_random.integers(2**31))
        self.close()
        request = self._reset_request(seed, task, attempt_id)
        self._session, self._pin, self._steps, self._over, self._lost = request.episode_id, Pin(), 0, True, False
        answer = self._call(environment_pb2.EpisodeRequest(reset=request), "reset").reset
        if answer.environment:
            self._culprit = f"{answer.environment}@{shown_address(self._client.address)}"
        try:
            result = messages_from_wire("messages", answer.messages), info_from_wire(answer.info)
        except PayloadError as error:
            raise self._failure(FailureKind.ENV_ERROR, f"its answer to reset is unreadable: {error}") from error
        read_reset(result, self._culprit, asked=bool(task and task.prompt))
        self._over = False
        return result

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if self._over:
            raise ResetNeeded(f"burnish/Remote-v0 ({self._culprit}): the episode is over; call reset() before step()")
        request = environment_pb2.StepRequest(episode_id=self._session, step_id=self._steps, action=utf8(action))
        self._over = True  # should this step fail, there is no other
        answer = self._call(environment_pb2.EpisodeRequest(step=request), "step").step
        try:
            messages, info = messages_from_wire("messages", answer.messages), info_from_wire(answer.info)
        except PayloadError as error:
            raise self._failure(FailureKind.ENV_ERROR, f"its answer to step is unreadable: {error}") from error
        result = messages, answer.reward, answer.terminated, answer.truncated, info
        read_step(result, self._culprit)
        self._steps += 1
        self._over = answer.terminated or answer.truncated
        return result

    def close(self) -> None:
        """End the session, so that the service need not wait for it to expire. A service that cannot be told is noted in the log."""
        session, self._session, self._over = self._session, "", True
        pin, self._pin = self._pin, Pin()
        if not session or self._lost:
            return
        request = environment_pb2.EpisodeRequest(close=environment_pb2.CloseRequest(episode_id=session))
        try:
            self._client.call_blocking(request, min(self._deadline_s, CLOSE_S), pin)
        except RpcError as error:
            log.warning("%s: closing episode %s: %s", self._culprit, session, error.message)

    def check(self, timeout_s: float = 10.0) -> None:
        """Ask the service what it is. Raises ValueError when it cannot be reached, is no environment service, or lacks the environment."""
        where = f"environment service at {shown_address(self._client.address)}"
        try:
            asked, kind = environment_pb2.DescribeEnvironmentsRequest(), environment_pb2.DescribeEnvironmentsResponse
            answer = describe_blocking(self._client.address, EPISODE.service, asked, kind, timeout_s)
        except RpcError as error:
            raise ValueError(f"{where} does not answer: {error.message}") from error
        if answer.contract != CONTRACT:
            raise ValueError(f"{where} speaks {answer.contract!r}; this burnish speaks {CONTRACT!r}")
        ids = [one.id for one in answer.environments]
        if not self._environment and len(ids) != 1:
            raise ValueError(f"{where} serves {some_of(ids) or 'nothing'}; say which one to use: environment = …")
        if self._environment and self._environment not in ids:
            raise ValueError(f"{where} has no environment {self._environment!r}{did_you_mean(self._environment, ids)}")

    def _reset_request(self, seed: int, task: Task | None, attempt_id: str | None) -> environment_pb2.ResetRequest:
        try:
            return environment_pb2.ResetRequest(
                episode_id=uuid.uuid4().hex,
                environment=self._environment,
                seed=seed,
                task=task_to_wire(task) if task else None,
                attempt_id=attempt_id,
                kwargs_json=self._kwargs_json,
            )
        except PayloadError as error:
            raise self._failure(FailureKind.ENV_ERROR, f"the task cannot be sent: {error}") from error

    def _call(self, request: environment_pb2.EpisodeRequest, what: str) -> environment_pb2.EpisodeResponse:
        deadline = time.monotonic() + self._deadline_s
        attempt = 0
        while True:
            attempt += 1
            try:
                answer = self._client.call_blocking(request, max(round(deadline - time.monotonic(), 3), 0.001), self._pin)
            except RpcError as error:
                pause = RETRY_S * 2**attempt
                broke = isinstance(error, RpcUnavailable)
                if not broke or attempt == ATTEMPTS or time.monotonic() + pause > deadline:
                    self._lost = isinstance(error, RpcUnavailable)
                    kind = FailureKind.ENV_TIMEOUT if isinstance(error, RpcTimeout) else FailureKind.ENV_ERROR
                    tried = f" ({attempt} attempts)" if attempt > 1 else ""
                    raise self._failure(kind, f"{what}: {error.message}{tried}") from error
                if what == "reset":
                    self._pin = Pin()  # nothing has begun: any replica will do
                time.sleep(pause)
            else:
                if answer.WhichOneof("answer") != what:
                    raise self._failure(FailureKind.ENV_ERROR, f"it answered {what} with {answer.WhichOneof('answer') or 'nothing'}")
                return answer

    def _failure(self, kind: FailureKind, detail: str) -> EpisodeFailure:
        return EpisodeFailure(Failure(kind, self._culprit, detail))
