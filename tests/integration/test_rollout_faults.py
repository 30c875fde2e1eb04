"""What becomes of episodes when their verifier fails: a typed failure that is retried, then masked and counted under its cause; never a
reward of zero. Real services over sockets; the policy is scripted."""

from __future__ import annotations

import asyncio
import datetime
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import gymnasium
import pytest
from tests.integration.certificates import Authority
from tests.unit.scripted import ScriptedLearner

from burnish.envs.contract import ENVS, register_env
from burnish.envs.failures import Failure
from burnish.envs.spaces import MessagesSpace, UnicodeText
from burnish.envs.types import EpisodeGroup, Float32, Int32, Message, Task
from burnish.hosting.process import ServiceProcess
from burnish.rewards.remote.client import RemoteVerifier
from burnish.rewards.rubric import Rubric
from burnish.rollout.collect import collect
from burnish.rollout.config import RolloutConfig
from burnish.rollout.conversation import EpisodeParts
from burnish.rollout.engine.fake import Reply, ScriptedEngine
from burnish.rollout.renderers import TemplateRenderer
from burnish.rollout.weights import SyncReceipt
from burnish.trainer.loop import LoopSettings, PolicyLoop
from burnish.trainer.models.tokenizer import train_tokenizer
from burnish.trainer.phases.rft import RFTPhaseConfig

pytestmark = pytest.mark.integration

TARGETS = Path(__file__).with_name("fault_targets.py")
ENV_ID = "tests/Once-v0"
PHASE = RFTPhaseConfig(groups_per_step=3, group_size=4, max_refills=0)
ISSUED = 12


class Once(gymnasium.Env[Any, str]):
    """Asks, and ends with the answer; the verifier says what it was worth."""

    observation_space, action_space = MessagesSpace(), UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return (Message("user", "say done"),), {}

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return (), 0.0, True, False, {}


class LocalFleet:
    """Runs groups in this process."""

    def __init__(self, parts: EpisodeParts) -> None:
        self.parts, self.given = parts, list[tuple[list[Task], int, float]]()

    def submit(self, tasks: Sequence[Task], group_size: int, temperature: float) -> None:
        self.given.append((list(tasks), group_size, temperature))

    def stop(self) -> None:
        self.given.clear()

    def poll(self) -> list[EpisodeGroup]:
        async def every() -> list[EpisodeGroup]:
            return [group async for group in collect(self.parts, *self.given.pop())]

        return asyncio.run(every())

    def sync(self, snapshot: int) -> list[SyncReceipt]:
        return [SyncReceipt("scripted", snapshot, 1, 1, 0.0, 0.0)]

    def score(self, sequences: Sequence[Int32]) -> dict[str, list[Float32]]:
        return {"scripted": asyncio.run(self.parts.engine.score([ids.tolist() for ids in sequences]))}


def books(address: str, retries: int = 1, deadline_s: float = 0.3) -> tuple[int, dict[str, int], dict[str, int]]:
    """Trained, masked and dropped after one step against the verifier at `address`, whose ledger balances and whose failures are none."""
    if ENV_ID not in ENVS._loaded:
        register_env(ENV_ID, Once)
    tokenizer = train_tokenizer(["say done"] * 20, vocab_size=400, max_length=512)
    limits = RolloutConfig(max_tokens_per_turn=16, retries=retries, error_budget=1.0)
    rubric = Rubric([(RemoteVerifier("verdict", address, deadline_s=deadline_s), 1.0)], 0.0, retries=retries, backoff_s=0.3)
    engine = ScriptedEngine([Reply([*tokenizer.encode("done", add_special_tokens=False), tokenizer.eos_token_id])])
    with ThreadPoolExecutor(16) as threads:
        fleet = LocalFleet(EpisodeParts(ENV_ID, {}, engine, TemplateRenderer(tokenizer), rubric, limits, threads, seed=3))
        stream = lambda at, count: [Task(f"train-{i}", i) for i in range(at, at + count)]  # noqa: E731
        loop = PolicyLoop(fleet, ScriptedLearner(), LoopSettings(PHASE, limits, "verdict"), stream)
        step = loop.step()
    for episode in step.collected.episodes:
        if isinstance(episode.outcome, Failure):
            assert episode.reward is None and episode.outcome.culprit.startswith("verdict@127.0.0.1:")
        else:
            assert episode.outcome.parts["verdict"] == episode.sample, "a reward is what the verifier said"
    ledger = loop.progress.ledger
    assert ledger.issued == ISSUED == ledger.trained_count + ledger.masked.total() + ledger.dropped.total()
    return ledger.trained_count, dict(ledger.masked), dict(ledger.dropped)


def test_a_verifier_ten_times_slower_than_its_deadline_masks_what_it_is_slow_at(tmp_path: Path) -> None:
    with ServiceProcess("verifier", f"{TARGETS}:slow", tmp_path / "log") as service:
        assert books(service.address, deadline_s=2.0) == (9, {"verifier_timeout": 3}, {})


def test_a_flapping_verifier_is_asked_again_and_costs_nothing(tmp_path: Path) -> None:
    with ServiceProcess("verifier", f"{TARGETS}:flapping", tmp_path / "log") as service:
        assert books(service.address, deadline_s=10.0) == (12, {}, {})


def test_every_cause_has_its_own_count(tmp_path: Path) -> None:
    with ServiceProcess("verifier", f"{TARGETS}:broken", tmp_path / "log") as service:
        assert books(service.address, deadline_s=10.0) == (6, {"verifier_error": 3, "verifier_invalid": 3}, {})


def test_a_verifier_that_is_killed_and_comes_back_costs_nothing(tmp_path: Path) -> None:
    service = ServiceProcess("verifier", f"{TARGETS}:steady", tmp_path / "log")
    address = service.start()
    service.port = int(address.rpartition(":")[2])
    assert service.pid is not None

    def kill_and_restart(pid: int) -> None:
        time.sleep(0.1)  # each verdict takes 0.2 s
        os.kill(pid, signal.SIGKILL)
        service.stop()
        service.start()

    fault = threading.Thread(target=kill_and_restart, args=(service.pid,))
    fault.start()
    try:
        assert books(address, retries=8, deadline_s=10.0) == (12, {}, {})
    finally:
        fault.join()
        service.stop()


def test_a_verifier_that_stays_away_masks_everything_as_unavailable(tmp_path: Path) -> None:
    with ServiceProcess("verifier", f"{TARGETS}:steady", tmp_path / "log") as service:
        address = service.address
    assert books(address) == (0, {"verifier_unavailable": 12}, {})


def test_a_wrong_token_and_an_expired_certificate_mask_everything_as_unavailable(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    expired = authority.sign("expired", until=-datetime.timedelta(hours=1))
    token, wrong = tmp_path / "token", tmp_path / "wrong"
    token.write_text("s3cret")
    wrong.write_text("guess")
    guarded = {
        f"?token_file={wrong}": ("--token-file", str(token)),
        f"?ca={authority.ca}": ("--tls-cert", expired.cert, "--tls-key", expired.key),
    }
    for query, arguments in guarded.items():
        with ServiceProcess("verifier", f"{TARGETS}:steady", tmp_path / "log", arguments=arguments) as service:
            assert books(service.address + query, deadline_s=5.0) == (0, {"verifier_unavailable": 12}, {})


# ------------------------------------------------------------------------------------------------- servers that are not ours


class Garbage(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # a class without parameters at run time
    """Answers every call to a verifier, unary or stream, with bytes that are no message; `Describe` with a contract of another version."""

    def service(self, details: Any) -> Any:
        if not details.method.startswith("/burnish.v1."):
            return None
        if details.method.endswith("/Describe"):
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"\x0a\x0aburnish.v9")
        if details.method.endswith("Stream"):
            return grpc.stream_stream_rpc_method_handler(lambda requests, context: (b"\xff\xff\xff" for _ in requests))
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"\xff\xff\xff")


@pytest.fixture
def garbage() -> Iterator[str]:
    with ThreadPoolExecutor(8) as threads:
        server = grpc.server(threads, handlers=[Garbage()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait(10)


def test_garbage_is_a_typed_failure_for_every_episode(garbage: str) -> None:
    trained, masked, dropped = books(garbage, deadline_s=5.0)
    assert (trained, sum(masked.values()), dropped) == (0, 12, {})
    assert set(masked) <= {"verifier_unavailable", "verifier_error", "verifier_invalid"}, "a broken stream takes what was in flight with it"


def test_another_version_of_the_contract_is_refused_before_a_run(garbage: str) -> None:
    with pytest.raises(ValueError, match=r"verifier 'verdict' at 127\.0\.0\.1:\d+ .*'burnish\.v9'.*'burnish\.v1'"):
        RemoteVerifier("verdict", garbage).check(10.0)
