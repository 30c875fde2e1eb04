"""TLS, mutual TLS and tokens over real sockets, with certificates made on the fly."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.integration.certificates import Authority, Pair
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.envs.failures import EpisodeFailure, FailureKind
from burnish.envs.remote.tools import RemoteToolSet
from burnish.envs.tools import ToolContext
from burnish.envs.types import Message, Task
from burnish.hosting.process import ServiceProcess
from burnish.hosting.services import ServiceKind
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.types import RewardInput
from burnish.trainer.models.importing import ModelSize, new_model

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


def test_no_log_holds_a_secret_of_a_url_nor_a_token(start: Start, files: Files, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the service's nor this process's, at its most talkative, nor the failure that the run stores."""
    caplog.set_level(logging.DEBUG, "burnish")
    address, url = start("--token-file", files.token), "https://me:hunter2@h.example/x?token=abc123&n=2"
    remote = RemoteVerifier("verdict", f"{address}?token_file={files.token}", deadline_s=20.0)
    with pytest.raises(EpisodeFailure) as caught:
        asyncio.run(remote.score(replace(EPISODE, data={"do": "fetch", "url": url})))
    failure = caught.value.failure
    served = "".join(log.read_text() for log in files.folder.glob("*.log"))
    assert "h.example/x?token=…&n=2 failed" in failure.detail and "h.example/x?token=…&n=2 failed" in served
    ours = "".join(record.getMessage() for record in caplog.records if record.name.startswith("burnish"))
    for secret in ("s3cret", "hunter2", "abc123"):
        assert secret not in f"{served}{ours}{failure.culprit}{failure.detail}{caught.value}"


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
    assert "the server speaks TLS and this client does not; give the CA of its certificate" in refusal(good)
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
        (("--host", "0.0.0.0", *tls(files.server)), "whoever reaches the port may call"),
        (("--host", "0.0.0.0", "--insecure"), "whoever reaches the port may call"),
        (("--tls-cert", files.server.cert), "the key is missing"),
        (("--tls-cert", files.server.cert, "--tls-key", "/nowhere.key"), "/nowhere.key cannot be read"),
        (("--tls-client-ca", files.ca), "no effect without TLS"),
        (("--host", "host.invalid", *tls(files.server), "--token-file", files.token), "host.invalid cannot be looked up"),
        (("--token-env", "BURNISH_NO_SUCH_TOKEN"), "environment variable BURNISH_NO_SUCH_TOKEN is not set"),
    ):
        with pytest.raises(ValueError, match="did not start") as caught:
            ServiceProcess("verifier", f"{TARGETS}:puppet", tmp_path / "log", arguments=arguments).start()
        assert says in str(caught.value)
        assert "listening on" not in (tmp_path / "log").read_text(), "what does not start does not say that it listens"


def burnish_command(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


TIDY = """
from burnish import RewardInput, tool, verifier
@tool
def double(x: int) -> str:
    '''Twice a number.'''
    return str(2 * x)
@verifier("check-test/tidy-v1")
def tidy(episode: RewardInput) -> float:
    return min(1.0, len(episode.messages[-1].text) / 10)
"""


def test_a_guarded_service_is_checked_with_a_token(files: Files, tmp_path: Path) -> None:
    file = tmp_path / "tidy.py"
    file.write_text(TIDY)
    kinds: dict[ServiceKind, str] = {"verifier": f"{file}:tidy", "tools": str(file)}
    for kind, target in kinds.items():
        with ServiceProcess(kind, target, tmp_path / "log", arguments=("--token-file", files.token)) as service:
            code, said = burnish_command("check", service.address, "--token-file", files.token)
            assert code == 0, said


def test_what_a_check_lacks_is_named(start: Start, files: Files) -> None:
    for kind in ("verifier", "tools"):
        address = start("--token-file", files.token, kind=kind)
        for given, says in (
            ([], "carries no token; configure token_env or token_file (`burnish check` takes --token-env NAME or --token-file FILE"),
            (["--token-file", files.wrong_token], "the token is wrong"),
            (["--token-file", "/nowhere"], "token: file /nowhere cannot be read"),
            (["--token-file", files.token, "--arg", f"token_file={files.token}"], "--arg token_file: the checks of"),
        ):
            code, said = burnish_command("check", address, *given)
            assert (code, says in said) == (2, True), said
    code, said = burnish_command("check", "burnish/Arithmetic-v0", "--token-file", files.token)
    assert (code, "has no effect on the checks of burnish/Arithmetic-v0" in said) == (2, True)
    code, said = burnish_command("check", "h.example:1", "--token-file", files.token)
    assert (code, "the token would travel in the clear" in said) == (2, True)


def test_a_dry_run_asks_what_runs_already(start: Start, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    new_model(["two plus two is four"] * 20, tmp_path / "models" / "tiny", ModelSize(hidden=32, layers=1, heads=1, intermediate=32))
    verifier, tools = start("--token-file", files.token), start("--token-file", files.token, kind="tools")

    def dry_run(**services: dict[str, str]) -> tuple[int, str]:
        recipe: dict[str, Any] = {
            "name": "x",
            "model": "tiny",
            "environment": "burnish/QualityInspection-v0",
            "environment_args": {"tools": "service:t"},
        }
        recipe |= {"multi_turn_rollouts": True, "rewards": [{"verifier": "service:v"}], "rollout": {"max_tokens_per_turn": 16}}
        recipe |= {"engine": {"max_context": 2048}}
        recipe |= {"services": {"v": {"address": verifier, "token_file": files.token}, "t": {"address": tools, "token_file": files.token}}}
        recipe["services"] |= services
        Path("r.json").write_text(json.dumps(recipe))
        return burnish_command("run", "r.json", "--dry-run")

    code, said = dry_run()
    assert (code, "rehearsed task heldout-1000000000: prompt " in said) == (0, True), said
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        for services, says in (
            ({"v": {"address": f"127.0.0.1:{dead.getsockname()[1]}"}}, "verifier 'v' at 127.0.0.1"),
            ({"v": {"address": verifier, "token_file": files.wrong_token}}, "the token is wrong"),
            ({"v": {"address": verifier}}, "the call carries no token"),
            ({"v": {"address": verifier, "token_file": "/nowhere"}}, "token: file /nowhere cannot be read"),
            ({"t": {"address": tools, "token_file": files.wrong_token}}, "the token is wrong"),
            ({"t": {"address": verifier, "token_file": files.token}}, "tool service at 127.0.0.1"),
        ):
            code, said = dry_run(**services)
            assert (code, says in said) == (2, True), said
    started = dry_run(v={"verifier": f"{TARGETS}:puppet"}, t={"tools": "burnish.envs.builtin.inspection.service"})
    assert started[0] == 0, started[1]
