"""What can go wrong on the wire: typed for callers, with the codes of `burnish.v1.Code`."""

from __future__ import annotations

from ..v1 import common_pb2

CODES: dict[str, int] = {name.removeprefix("CODE_"): number for name, number in common_pb2.Code.items()}


def code_name(code: int) -> str:
    """The canonical name of a status code. Example: `14 -> "UNAVAILABLE"`."""
    return next((name for name, number in CODES.items() if number == code), f"code {code}")


class RpcError(Exception):
    """A remote call without a result. address: the service. message: one line or a few, for a person."""

    def __init__(self, address: str, message: str) -> None:
        super().__init__(f"{address}: {message}")
        self.address = address
        self.message = message

    def __reduce__(self) -> tuple[type[RpcError], tuple[str, str]]:
        return type(self), (self.address, self.message)


class RpcUnavailable(RpcError):
    """The service cannot be reached, is shutting down, or the connection broke while the call was in flight."""


class RpcRefused(RpcUnavailable):
    """The two sides do not trust each other: an expired certificate, another CA, no token or a wrong one. The message says which."""


class RpcTimeout(RpcError):
    """The call's deadline passed."""


class RpcOverloaded(RpcTimeout):
    """The call's deadline passed while the service was refusing work because it had too much."""


class RpcRemoteError(RpcError):
    """The service answered with an error. code: number of a `burnish.v1.Code`, for example `CODES["UNKNOWN"]` when its function raised."""

    def __init__(self, address: str, message: str, code: int) -> None:
        super().__init__(address, message)
        self.code = code

    def __reduce__(self) -> tuple[type[RpcError], tuple[str, str, int]]:  # type: ignore[override]
        return type(self), (self.address, self.message, self.code)


class Status(Exception):
    """Raised by a service to end an item (or a unary call) with a typed error. Example: `Status("NOT_FOUND", "no verifier 'a/b-v1'")`."""

    def __init__(self, code: str, message: str) -> None:
        assert code in CODES, f"{code} is no status code"
        super().__init__(message)
        self.code = code
        self.message = message


def error_from(address: str, code: int, message: str) -> RpcError:
    """The exception for an error a service sent."""
    if code == CODES["UNAUTHENTICATED"]:
        return RpcRefused(address, f"the service refuses this client: {message}")
    if code == CODES["UNAVAILABLE"]:
        return RpcUnavailable(address, message)
    if code == CODES["DEADLINE_EXCEEDED"]:
        return RpcTimeout(address, message)
    return RpcRemoteError(address, message, code)
