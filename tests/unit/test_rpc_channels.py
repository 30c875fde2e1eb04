"""When a channel to a service is ready, against a stand-in for gRPC's."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from burnish.rpc.address import Target
from burnish.rpc.errors import RpcRefused, RpcUnavailable
from burnish.rpc.security import ClientSecurity
from burnish.rpc.transport import channels


class ReadyAfter:
    """A channel that is connected after so many seconds, and could not be before."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def channel_ready(self) -> None:
        await asyncio.sleep(self.seconds)


def connecting(
    monkeypatch: pytest.MonkeyPatch, ready_s: float, look_s: float, reason: str, timeout_s: float, patient: bool = True
) -> float:
    """Seconds that it took until the channel was ready, where a look into why it is not takes `look_s` and finds a reason."""

    async def look(*_: object) -> str:
        await asyncio.sleep(look_s)
        return reason

    async def fails(_: object) -> None:
        await asyncio.sleep(0)

    async def run() -> float:
        start = time.monotonic()
        channel: Any = ReadyAfter(ready_s)
        await channels.channel_ready(channel, Target("127.0.0.1:1"), ClientSecurity(), timeout_s, patient)
        return time.monotonic() - start

    monkeypatch.setattr(channels, "LOOK_S", 0.01)
    monkeypatch.setattr(channels, "diagnose", look)
    monkeypatch.setattr(channels, "until_failure", fails)
    return asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("patient", [True, False])
def test_a_channel_that_is_ready_while_its_delay_is_looked_into_is_used_at_once(monkeypatch: pytest.MonkeyPatch, patient: bool) -> None:
    """A look of up to four seconds was waited for, while the deadline of the call went by."""
    assert connecting(monkeypatch, 0.2, 20.0, "TLS: no", 10.0, patient) < 5


def test_a_reason_that_is_found_ends_the_wait_and_none_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RpcRefused, match="TLS: no"):
        connecting(monkeypatch, 30.0, 0.05, "TLS: no", 20.0)
    assert connecting(monkeypatch, 0.3, 0.01, "", 20.0) >= 0.3
    with pytest.raises(RpcUnavailable, match="could not connect within"):
        connecting(monkeypatch, 30.0, 20.0, "TLS: no", 0.2)
    with pytest.raises(RpcUnavailable, match="could not connect again"):
        connecting(monkeypatch, 30.0, 0.05, "", 20.0, patient=False)
    with pytest.raises(RpcRefused, match="TLS: no"):
        connecting(monkeypatch, 30.0, 0.05, "TLS: no", 20.0, patient=False)
