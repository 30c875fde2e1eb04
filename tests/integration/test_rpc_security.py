"""TLS, mutual TLS and tokens over real sockets, with certificates made on the fly."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.certificates import Authority, Pair

from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.envs.remote.tools import RemoteToolSet
from burnish.envs.tools import ToolContext
from burnish.envs.types import Message, Task
from burnish.hosting.process import ServiceProcess
from burnish.hosting.services import ServiceKind
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.types import RewardInput

pytestmark = pytest.mark.integration

TARGETS = Path(__file__).with_name("rpc_targets.py")
EPISODE = RewardInput("e/0", Task("e", 17), (Message("user", "hi"),), 0.5)
CONTEXT = ToolContext("train-17/0", 17, {})
Start = Callable[..., str]


class Files:
    """Two authorities, what they sign, and tokens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ours, theirs = Authority(folder, "ours"), Authority(folder, "theirs")
        self.ca, self.other_ca = ours.ca, theirs.ca
        self.server, self.client = ours.sign("server"), ours.sign("client")
        self.expired = ours.sign("expired", until=-datetime.timedelta(hours=1))
        self.stranger = theirs.sign("stranger")
        self.token, self.wrong_token = self.write("token", "s3cret"), self.write("wrong", "guess")

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def start(files: Files) -> Iterator[Start]:
    running: dict[tuple[str, ...], ServiceProcess] = {}

    def one(*arguments: str, kind: ServiceKind = "verifier") -> str:
        key = (kind, *arguments)
        if key not in running:
            target = f"{TARGETS}:puppet" if kind == "verifier" else str(TARGETS)
            running[key] = ServiceProcess(kind, target, files.folder / f"{len(running)}.log", arguments=arguments)
            running[key].start()
        return running[key].address

    yield one
    for service in running.values():
        service.stop()


def tls(pair: Pair) -> tuple[str, ...]:
    return ("--tls-cert", pair.cert, "--tls-key", pair.key)


def score(address: str) -> float:
    return asyncio.run(RemoteVerifier("verdict", address, deadline_s=20.0).score(EPISODE)).value


def refusal(address: str) -> str:
    """What the failure says, stream and unary alike."""
    remote = RemoteVerifier("verdict", address, deadline_s=20.0)
    with pytest.raises(EpisodeFailure) as caught:
        asyncio.run(remote.score(EPISODE))
    assert caught.value.failure.kind == FailureKind.VERIFIER_UNAVAILABLE
    assert caught.value.failure.culprit == f"verdict@{address.partition('?')[0]}"
    with pytest.raises(ValueError, match="does not answer") as unary:
        remote.check(10.0)
    detail = caught.value.failure.detail
    assert detail.split(": ")[-1] in str(unary.value)
    return detail


def test_tls_mutual_tls_and_tokens_let_in_who_belongs(start: Start, files: Files) -> None:
    plain_token = start("--token-file", files.token)
    assert score(f"{plain_token}?token_file={files.token}") == 0.5
    over_tls = start(*tls(files.server), "--token-file", files.token)
    assert score(f"{over_tls}?ca={files.ca}&token_file={files.token}") == 0.5
    mutual = start(*tls(files.server), "--tls-client-ca", files.ca)
    address = f"{mutual}?ca={files.ca}&cert={files.client.cert}&key={files.client.key}"
    assert score(address) == 0.5
    RemoteVerifier("verdict", address).check()


def test_a_wrong_or_missing_token_is_named(start: Start, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    address = start("--token-file", files.token)
    assert refusal(address) == "the service refuses this client: the call carries no token; configure token_env or token_file"
    assert refusal(f"{address}?token_file={files.wrong_token}") == "the service refuses this client: the token is wrong"
    assert refusal(f"{address}?token_env=BURNISH_TEST_TOKEN") == "token: environment variable BURNISH_TEST_TOKEN is not set in this process"
    monkeypatch.setenv("BURNISH_TEST_TOKEN", "s3cret")
    assert score(f"{address}?token_env=BURNISH_TEST_TOKEN") == 0.5


def test_a_certificate_that_is_not_accepted_is_named(start: Start, files: Files) -> None:
    good, old = start(*tls(files.server), "--token-file", files.token), start(*tls(files.expired))
    assert "certificate has expired" in refusal(f"{old}?ca={files.ca}")
    assert "unable to get local issuer certificate" in refusal(f"{good}?ca={files.other_ca}&token_file={files.token}")
    port = good.rpartition(":")[2]
    assert "mismatch" in refusal(f"127.0.0.1:{port}?ca={files.ca}&server_name=elsewhere.example&token_file={files.token}")


def test_mutual_tls_refuses_strangers(start: Start, files: Files) -> None:
    mutual = start(*tls(files.server), "--tls-client-ca", files.ca)
    assert "wants a certificate of this client" in refusal(f"{mutual}?ca={files.ca}")
    stranger = f"&cert={files.stranger.cert}&key={files.stranger.key}"
    assert "does not accept this client's certificate" in refusal(f"{mutual}?ca={files.ca}{stranger}")


def test_tools_are_guarded_alike(start: Start, files: Files) -> None:
    address = start(*tls(files.server), "--token-file", files.token, kind="tools")
    good = RemoteToolSet(f"{address}?ca={files.ca}&token_file={files.token}", deadline_s=20.0)
    assert good.call("add", {"a": 1, "b": 2}, CONTEXT) == "3 for train-17/0 seed 17 {}"
    for query, says in {f"ca={files.ca}": "carries no token", f"ca={files.other_ca}": "issuer certificate"}.items():
        with pytest.raises(EpisodeFailure) as caught:
            RemoteToolSet(f"{address}?{query}", deadline_s=20.0).call("add", {"a": 1, "b": 2}, CONTEXT)
        assert caught.value.failure.kind == FailureKind.TOOL_ERROR
        assert says in caught.value.failure.detail


def test_a_server_that_cannot_be_secure_does_not_start(files: Files, tmp_path: Path) -> None:
    for arguments, says in (
        (("--host", "0.0.0.0"), "is not loopback"),
        (("--host", "0.0.0.0", "--token-file", files.token), "the token would travel in the clear"),
        (("--tls-cert", files.server.cert), "the key is missing"),
        (("--tls-cert", files.server.cert, "--tls-key", "/nowhere.key"), "/nowhere.key cannot be read"),
        (("--tls-client-ca", files.ca), "no effect without TLS"),
        (("--token-env", "BURNISH_NO_SUCH_TOKEN"), "environment variable BURNISH_NO_SUCH_TOKEN is not set"),
    ):
        with pytest.raises(ValueError, match="did not start") as caught:
            ServiceProcess("verifier", f"{TARGETS}:puppet", tmp_path / "log", arguments=arguments).start()
        assert says in str(caught.value)
