"""A deployment with the real parts: Ray Serve, two versions of a model under vLLM, and clients that ask all the time."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from tests.integration.replicas import engine_of, replica_of
from tests.integration.taught import taught_model

from burnish.serving.fleet import DeploymentHandle, start_deployment
from burnish.serving.key_files import new_key
from burnish.serving.routes import VersionShare, version_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

QUESTION = "Which version are you?"
TEXT = """
[service]
port = 0
keys_file = "{folder}/keys.toml"
audit_file = "{folder}/audit.jsonl"

[models.clerk.versions.v1]
model = "{folder}/one"
weight = {v1}
adapters.loud = "{folder}/loud"

[models.clerk.versions.v2]
model = "{folder}/two"
weight = {v2}
{more}
"""
ROLLED_BACK_S = 2.0
WAIT_S = 300.0


class Deployed:
    """A deployment of two versions, and a key for each of twenty callers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "deployment.toml"
        self.keys = {f"caller-{i}": new_key(folder / "keys.toml", f"caller-{i}") for i in range(20)}
        self.watching = new_key(folder / "keys.toml", "watch", routes=("metrics",))
        for name, answer in (("one", "I am the first one."), ("two", "I am the second.")):
            taught_model(folder / name, {QUESTION: answer})
        self.loud = adapted(folder / "one", folder / "loud")
        self.said: list[str] = []
        self.write(50, 50)
        self.handle: DeploymentHandle = start_deployment(self.file, self.said.append)

    def write(self, v1: float, v2: float, more: str = "") -> None:
        draft = self.folder / "draft.toml"
        draft.write_text(TEXT.format(folder=self.folder, v1=v1, v2=v2, more=more))
        draft.replace(self.file)

    def ask(self, caller: str, model: str = "clerk", **fields: Any) -> str:
        with openai.OpenAI(base_url=f"{self.handle.url}/v1", api_key=self.keys[caller], max_retries=0, timeout=WAIT_S) as client:
            messages: Any = [{"role": "user", "content": QUESTION}]
            answer: Any = client.chat.completions.create(model=model, messages=messages, temperature=0, **fields)
            if not fields.get("stream"):
                return str(answer.choices[0].message.content)
            return "".join(choice.delta.content or "" for chunk in answer for choice in chunk.choices)

    def under_way(self, caller: str) -> bool:
        """Whether a request of a caller is being answered."""
        with httpx.Client(trust_env=False, headers={"authorization": f"Bearer {self.watching}"}) as client:
            return f'burnish_requests_under_way{{key="{caller}"}} 1.0' in client.get(f"{self.handle.url}/metrics", timeout=120).text

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]

    def expected(self, caller: str, v1: float, v2: float) -> str:
        version = version_for({"clerk": (VersionShare("v1", v1), VersionShare("v2", v2))}, "clerk", caller)
        return {"clerk:v1": "I am the first one.", "clerk:v2": "I am the second."}[version]


def adapted(base: Path, folder: Path) -> str:
    """An adapter of a model in `folder`, and what the model answers under it, asked greedily, by transformers and peft."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(5)
    form = LoraConfig(r=4, lora_alpha=200, target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"], init_lora_weights=False)
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), form)
    model.save_pretrained(folder)
    talk = [{"role": "user", "content": QUESTION}]
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**ids, max_new_tokens=12, do_sample=False)[0][ids["input_ids"].shape[1] :]
    return str(tokenizer.decode(written, skip_special_tokens=True))


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    made = Deployed(tmp_path_factory.mktemp("deployed"))
    with made.handle:
        yield made


def until(true: Callable[[], bool], what: str, wait_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + wait_s
    while not true():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.05)


def test_callers_are_shared_by_weight_stay_where_they_are_and_may_ask_for_a_version(deployed: Deployed) -> None:
    answers = {caller: deployed.ask(caller) for caller in deployed.keys}
    assert answers == {caller: deployed.expected(caller, 50, 50) for caller in deployed.keys}
    assert len(set(answers.values())) == 2
    assert {caller: deployed.ask(caller, stream=True) for caller in deployed.keys} == answers
    assert deployed.ask("caller-0", "clerk:v2") == "I am the second."
    until(lambda: len(deployed.lines()) == 41, "the last line, which is written after its answer")
    assert {line["version"] for line in deployed.lines()} == {"clerk:v1", "clerk:v2"}
    assert [line["model"] for line in deployed.lines()] == ["clerk"] * 40 + ["clerk:v2"]
    with openai.OpenAI(base_url=f"{deployed.handle.url}/v1", api_key=deployed.keys["caller-0"], max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["clerk", "clerk:v1", "clerk:v2", "clerk:loud", "clerk:v1:loud"]


def test_an_adapter_answers_beside_its_base_from_the_same_engine(deployed: Deployed) -> None:
    assert deployed.loud not in {"I am the first one.", "I am the second."}
    callers = list(deployed.keys)[:6]
    with ThreadPoolExecutor(6) as pool:  # in one batch
        asked = ["clerk:v1", "clerk:loud"] * 3
        answers = list(pool.map(lambda caller, model: deployed.ask(caller, model, max_tokens=12), callers, asked))
    assert answers == ["I am the first one.", deployed.loud] * 3
    assert deployed.ask(callers[0], "clerk:v1:loud", max_tokens=12, stream=True) == deployed.loud


def test_a_shadow_gets_copies_that_nobody_sees_and_both_answers_are_compared(deployed: Deployed) -> None:
    deployed.write(100, 0, "shadow = 1.0")
    until(lambda: "clerk: v1 100.0%, v2 shadows 100.0%" in deployed.said, "the shadow")
    answers = {deployed.ask(caller, stream=i % 2 == 0) for i, caller in enumerate(deployed.keys)}
    assert answers == {"I am the first one."}

    def copied() -> list[dict[str, Any]]:
        return [line for line in deployed.lines() if line["route"] == "shadow"]

    until(lambda: len(copied()) == len(deployed.keys), "the last comparison")
    assert {(line["version"], line["of"], line["outcome"], line["status"]) for line in copied()} == {
        ("clerk:v2", "clerk:v1", "different", 200)
    }
    assert not {"messages", "answers"} & copied()[0].keys(), "the log holds no prompts"
    deployed.write(50, 50)
    until(lambda: all(deployed.ask(caller) == deployed.expected(caller, 50, 50) for caller in deployed.keys), "going back")


def test_a_rollback_takes_less_than_two_seconds_and_fails_no_request(deployed: Deployed) -> None:
    over, answers, failed = threading.Event(), list[tuple[float, str, str]](), list[BaseException]()

    def keep_asking(caller: str) -> None:
        while not over.is_set():
            try:
                began = time.monotonic()
                answers.append((began, caller, deployed.ask(caller, stream=len(answers) % 2 == 0)))
            except BaseException as error:
                failed.append(error)

    with ThreadPoolExecutor(8) as pool:
        for caller in list(deployed.keys)[:8]:
            pool.submit(keep_asking, caller)
        try:
            until(lambda: len(answers) >= 16, "asking")
            edited = time.monotonic()
            deployed.write(100, 0)
            until(lambda: sum(began > edited + ROLLED_BACK_S for began, *_ in answers) >= 16, "asking on")
        finally:
            over.set()
    assert failed == []
    late = Counter(answer for began, _, answer in answers if began > edited + ROLLED_BACK_S)
    assert list(late) == ["I am the first one."]
    deployed.write(50, 50)
    until(lambda: all(deployed.ask(caller) == deployed.expected(caller, 50, 50) for caller in deployed.keys), "going back")


def test_a_bad_edit_is_said_and_changes_nothing(deployed: Deployed) -> None:
    good = deployed.file.read_text()
    deployed.file.write_text("[models")
    until(lambda: any("not followed" in line and "not TOML" in line for line in deployed.said), "saying so")
    assert deployed.ask("caller-0") == deployed.expected("caller-0", 50, 50)
    deployed.file.write_text(good)


def test_a_replica_that_is_killed_loses_no_request_that_had_no_answer_yet(deployed: Deployed) -> None:
    replica = replica_of("clerk:v1")
    engine_of(replica).suspend()  # it takes a request, and does not answer
    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(deployed.ask, f"caller-{i}", "clerk:v1", stream=stream) for i, stream in enumerate((False, True))]
        until(lambda: deployed.under_way("caller-0") and deployed.under_way("caller-1"), "asking")
        time.sleep(1.0)  # from the gateway to the replica
        assert not any(one.done() for one in asking)
        os.kill(replica.pid, signal.SIGKILL)
        answers = [one.result(WAIT_S) for one in asking]
    assert answers == ["I am the first one."] * 2, "another answers what was in flight"
    assert replica_of("clerk:v1").pid != replica.pid
    for caller in deployed.keys:
        assert deployed.ask(caller) == deployed.expected(caller, 50, 50)


def test_a_version_that_is_taken_out_ends_when_it_has_answered_what_it_has(deployed: Deployed) -> None:
    replica = replica_of("clerk:v2")
    engine = engine_of(replica)
    engine.suspend()
    try:
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(deployed.ask, "caller-0", "clerk:v2", stream=True)
            until(lambda: deployed.under_way("caller-0"), "asking")
            deployed.file.write_text(deployed.file.read_text().partition("[models.clerk.versions.v2]")[0])
            until(lambda: "clerk:v2: ending" in deployed.said, "the end of v2")
            assert not asking.done()
            engine.resume()
            assert asking.result(WAIT_S) == "I am the second."
    finally:
        engine.resume()
    assert {deployed.ask(caller) for caller in deployed.keys} == {"I am the first one."}
    with pytest.raises(openai.NotFoundError):
        deployed.ask("caller-0", "clerk:v2")
    psutil.wait_procs([replica, engine], timeout=WAIT_S)
    assert not replica.is_running() and not engine.is_running()
