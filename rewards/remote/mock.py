"""A verifier for tests, answered by a function of this process, without a socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...rpc.transport.mock import MockTransport
from .service import Verifier, VerifierFunction, VerifierService

MOCK_ID = "mock/verifier-v1"


@contextmanager
def mock_verifier(judge: Verifier | VerifierFunction, address: str = "mock:1") -> Iterator[MockTransport]:
    """Have `judge` answer whoever asks the verifier at `address`, as long as the block runs.

    judge: a verifier, or any function from a `RewardInput` to what a verifier returns. What it gets and gives is turned into messages and
    back, as on the way to a real service: data that is no JSON, scores that are none and exceptions become the failures they would be.
    `calls` of the mock holds what arrived.

    Example: `with mock_verifier(lambda episode: 1.0, "127.0.0.1:50051") as mock: …`.
    """
    service = VerifierService([judge if isinstance(judge, Verifier) else Verifier(MOCK_ID, judge)])

    async def answer(method: str, request: Any) -> Any:
        return await (service.Describe(request, None) if method == "Describe" else service.answer(request))

    try:
        with MockTransport(answer, address) as mock:
            yield mock
    finally:
        service.close()
