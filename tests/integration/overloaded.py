"""A verifier whose server takes four items at a time. Prints its address."""

from __future__ import annotations

import asyncio

from burnish.rewards.remote.service import VerifierService, verifier
from burnish.rewards.types import RewardInput
from burnish.rpc.batches import Limits
from burnish.rpc.server import ServerOptions, serve_until_signal


@verifier("test/slow-v1")
async def slow(episode: RewardInput) -> float:
    """Takes data["s"] seconds."""
    await asyncio.sleep(episode.data["s"])
    return 1.0


def main() -> None:
    service = VerifierService([slow], Limits(max_in_flight=4))
    asyncio.run(serve_until_signal([service], ServerOptions(), lambda address: print(address, flush=True)))


if __name__ == "__main__":
    main()
