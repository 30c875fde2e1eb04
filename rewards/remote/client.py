"""A verifier behind gRPC as one more scorer of a rubric."""

from __future__ import annotations

from ...envs.failures import EpisodeFailure, Failure, FailureKind
from ...envs.registry import did_you_mean, some_of
from ...rpc.address import shown_address
from ...rpc.client import BatchedClient, describe_blocking
from ...rpc.errors import CODES, RpcError, RpcRemoteError, RpcTimeout, RpcUnavailable
from ...rpc.methods import CONTRACT, VERIFY
from ...rpc.payload import PayloadError
from ...v1 import verifier_pb2
from ..types import InvalidScore, RewardInput, Score
from .wire import check_turns, from_response, to_request

CHECK_S = 10.0


class RemoteVerifier:
    """Scores episodes with a verifier service; whatever goes wrong there is a typed failure naming verifier and address.

    name: the name of its reward parts. deadline_s: seconds one verdict may take. verifier: id of the verifier on a server that has
    several. Picklable; every process makes its own connection.

    Example: `RemoteVerifier("verdict", "127.0.0.1:50051", deadline_s=5.0)`.
    """

    def __init__(self, name: str, address: str, deadline_s: float = 10.0, verifier: str = "") -> None:
        if not deadline_s > 0:
            raise ValueError(f"verifier {name!r}: deadline_s must be a positive number of seconds, not {deadline_s!r}")
        self.name = name
        self.address = address
        self.deadline_s = deadline_s
        self.verifier = verifier
        self._client = BatchedClient(address, VERIFY)

    @property
    def culprit(self) -> str:
        """What failures name. Example: `verdict@127.0.0.1:50051`."""
        return f"{self.name}@{shown_address(self.address)}"

    async def score(self, episode: RewardInput) -> Score:
        """Raises EpisodeFailure: VERIFIER_UNAVAILABLE, VERIFIER_TIMEOUT, VERIFIER_ERROR (it raised), VERIFIER_INVALID (no finite score)."""
        try:
            request = to_request(episode, self.verifier)
            score = from_response(await self._client.call(request, self.deadline_s))
            check_turns(score, episode)
            return score
        except RpcError as error:
            raise self._failure(_kind(error), error.message) from error
        except InvalidScore as error:
            raise self._failure(FailureKind.VERIFIER_INVALID, str(error)) from error
        except PayloadError as error:
            raise self._failure(FailureKind.VERIFIER_ERROR, f"the episode cannot be sent: {error}") from error

    def check(self, timeout_s: float = CHECK_S) -> None:
        """Ask the service what it is. Raises ValueError when it cannot be reached, is no verifier service, or lacks the verifier."""
        where = f"verifier {self.name!r} at {shown_address(self.address)}"
        try:
            asked = verifier_pb2.DescribeVerifiersRequest()
            answer = describe_blocking(self.address, VERIFY.service, asked, verifier_pb2.DescribeVerifiersResponse, timeout_s)
        except RpcError as error:
            raise ValueError(f"{where} does not answer: {error.message}") from error
        if answer.contract != CONTRACT:
            raise ValueError(f"{where} speaks {answer.contract!r}; this burnish speaks {CONTRACT!r}")
        ids = [one.id for one in answer.verifiers]
        if not self.verifier and len(ids) != 1:
            raise ValueError(f"{where} serves {some_of(ids) or 'nothing'}; say which one to use: verifier_id = …")
        if self.verifier and self.verifier not in ids:
            raise ValueError(f"{where} has no verifier {self.verifier!r}{did_you_mean(self.verifier, ids)}")

    def _failure(self, kind: FailureKind, detail: str) -> EpisodeFailure:
        return EpisodeFailure(Failure(kind, self.culprit, detail))


def _kind(error: RpcError) -> FailureKind:
    if isinstance(error, RpcUnavailable):
        return FailureKind.VERIFIER_UNAVAILABLE
    if isinstance(error, RpcTimeout):
        return FailureKind.VERIFIER_TIMEOUT
    assert isinstance(error, RpcRemoteError)
    return FailureKind.VERIFIER_INVALID if error.code == CODES["DATA_LOSS"] else FailureKind.VERIFIER_ERROR
