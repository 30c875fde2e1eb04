"""`burnish/verifier-v1`: a verifier behind gRPC as a detector of guardrail policies.

    [[detectors]]
    use = "burnish/verifier-v1"
    name = "judge"
    category = "weapons"
    args = { address = "127.0.0.1:50051", below = 0.5 }

The verifier gets an episode of one message, the text, and what it scores below `below` is found.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, Field

from ...envs.types import Message, Task
from ...guardrails.policy import DetectorUse, Policy, detector_options
from ...guardrails.registry import Find, detector
from ...guardrails.types import Match
from ..types import RewardInput
from .client import RemoteVerifier


class VerifierOptions(BaseModel):
    """Options of `burnish/verifier-v1`.

    address: `host:port` of a verifier service. verifier_id: which of its verifiers, where it has several. below: the score below which a
    text belongs to the category. deadline_s: seconds one verdict may take.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    address: str = Field(min_length=1)
    verifier_id: str = ""
    below: float = 0.5
    deadline_s: float = Field(default=10.0, gt=0, le=60)


@detector("burnish/verifier-v1", reads=("original",), whole=True, asks=True)
def verifier(policy: Policy, use: DetectorUse) -> Find:
    """Raises ValueError on unfit options.

    What it makes raises EpisodeFailure (VERIFIER_* kinds) when the service does not judge: text that could not be looked at does not go on.
    """
    options = detector_options(VerifierOptions, policy, use)
    remote = RemoteVerifier(use.name, options.address, options.deadline_s, options.verifier_id)

    def find(text: str) -> Iterator[Match]:
        if not text:
            return
        said = (Message("assistant", text),)
        episode = RewardInput(f"guardrail-{uuid.uuid4().hex}", Task("guardrail", 0), said, 0.0)
        score = asyncio.run(remote.score(episode)).value
        if score < options.below:
            yield Match(use.name, use.category, 0, len(text), score=max(0.0, min(1.0, 1.0 - score)))

    return find
