"""For tests of your own environments and rewards: remote verifiers and tools answered by Python functions, without a socket.

    with mock_verifier(lambda episode: 1.0, "verdicts.example:50051"), mock_tools(count, address="tools.example:50052"):
        ...                                  # whatever asks at these addresses in this process gets these answers

`MockTransport` is what both are made of; it answers with messages of the contract, for any method.
"""

from __future__ import annotations

from burnish.envs.remote.mock import mock_tools
from burnish.rewards.remote.mock import mock_verifier
from burnish.rpc.transport.mock import MockCall, MockTransport

__all__ = ["MockCall", "MockTransport", "mock_tools", "mock_verifier"]
