"""A secret stands in no file of a run, in no log, and on no terminal, wherever it was given and whatever failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet
import pytest
from tests.integration.http_stub import Reply, Request, Stub, serve
from tests.integration.reaching import burnish

from burnish.hosting.process import ServiceProcess

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
TOKEN, WRONG, JUDGE, HANDLER = "tokenInAFile1", "tokenThatIsWrong2", "judgeKeyInAVariable3", "handlerTokenInAVariable4"
USER, PARAMETER = "passwordInAUrl5", "signatureInAUrl6"
SECRETS = (TOKEN, WRONG, JUDGE, HANDLER, USER, PARAMETER)
URL = f"https://me:{USER}@h.example/x?sig={PARAMETER}&n=2"
FAILS = f'raise RuntimeError("GET {URL} failed")'
PLUGIN = f"""
from burnish.envs.builtin.arithmetic import Arithmetic
from burnish.envs.contract import register_env
from burnish.rewards.plugin import reward
from burnish.rewards.remote.service import verifier


class Leaky(Arithmetic):
    def reset(self, *, seed=None, options=None):
        self.number = seed
        return super().reset(seed=seed, options=options)

    def step(self, action):
        if action != "yes" and self.number % 10 == 0:
            {FAILS}
        return super().step(action)


register_env("leaky/Arithmetic-v0", Leaky)


@reward("leaky/plugin-v1")
def plugin(episode):
    if episode.answer != "yes" and episode.task.seed % 10 == 1:
        {FAILS}
    return 0.5
"""
CHECKS = f"""
from burnish.rewards.remote.service import verifier


@verifier("leaky/verdict-v1")
def verdict(episode):
    if episode.answer != "yes" and episode.task.seed % 10 == 2:
        {FAILS}
    return 0.5
"""
RECIPE = """
name = "told"
model = "{model}"
environment = "leaky/Arithmetic-v0"
plugins = ["plugin.py"]
success = "env"

[services.started]
verifier = "checks.py:verdict"

[services.guarded]
address = "{address}"
token_file = "token"

[[rewards]]
verifier = "service:started"

[[rewards]]
verifier = "service:guarded"

[[rewards]]
use = "leaky/plugin-v1"

[[rewards]]
use = "burnish/openai-grader-v1"
name = "judge"

[rewards.args]
base_url = "{judge}/v1"
api_key_env = "JUDGE_KEY"
retries = 0

[rewards.args.grader]
type = "score_model"
name = "rate"
model = "judge"
input = [{{ role = "user", content = "{{{{sample.output_text}}}}" }}]

[[rewards]]
use = "burnish/reward-lambda-v1"
name = "handler"

[rewards.args]
handler = "{handler}/score"
token_env = "HANDLER_TOKEN"
chunk = 1

[rft]
steps = 2
groups_per_step = 4
group_size = 2
equal_groups = "keep"
lr = 1e-3

[rollout]
max_tokens_per_turn = 6
retries = 0
error_budget = 1.0

[engine]
max_context = 128

[learner]
threads = 1

[evaluation]
tasks = 12
error_budget = 0.99
"""


def rates(request: Request, number: int) -> Reply:
    """A judge that now and then fails, and says with which key it was asked."""
    if number % 5 == 1:
        return Reply({"error": {"message": f"wrong: {request.headers['authorization']} {URL}"}}, 401)
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "0.5"}}
    return Reply({"id": "c", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]})


def handles(request: Request, number: int) -> Reply:
    if number % 5 == 1:
        return Reply({"message": f"wrong: {request.headers['authorization']} {URL}"}, 403)
    return Reply([{"id": row["id"], "aggregate_reward_score": 0.5} for row in request.body])


@dataclass(frozen=True)
class Place:
    """A folder with a recipe, and what it uses that runs already."""

    folder: Path
    judge: Stub
    handler: Stub

    def burnish_run(self, run: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tests.integration.told_run", f"{run}.log", "recipe.toml", "--run-dir", run, *arguments]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "JUDGE_KEY": JUDGE, "HANDLER_TOKEN": HANDLER}
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=600, check=False)

    def written(self) -> Iterator[tuple[Path, str]]:
        """Every file in the folder but those that hold the secrets, as text. What is packed is unpacked."""
        given = {self.folder / name for name in ("token", "wrong", "plugin.py", "checks.py")}
        for file in sorted(self.folder.rglob("*")):
            if file.is_file() and file not in given and "__pycache__" not in file.parts:
                yield file, file.read_bytes().decode(errors="replace")
                if file.suffix == ".parquet":
                    yield file, json.dumps(pyarrow.parquet.read_table(file).to_pylist(), default=str)


@pytest.fixture
def place(tiny_model: Path, tmp_path: Path) -> Iterator[Place]:
    for name, text in (("token", TOKEN), ("wrong", WRONG), ("plugin.py", PLUGIN), ("checks.py", CHECKS)):
        (tmp_path / name).write_text(text)
    service = ServiceProcess(
        "verifier", f"{tmp_path / 'checks.py'}:verdict", tmp_path / "guarded.log", arguments=("--token-file", str(tmp_path / "token"))
    )
    with serve(rates) as judge, serve(handles) as handler:
        address = service.start()
        try:
            told = RECIPE.format(model=tiny_model, address=address, judge=judge.url, handler=handler.url)
            (tmp_path / "recipe.toml").write_text(told)
            yield Place(tmp_path, judge, handler)
        finally:
            service.stop()


def test_a_secret_stands_in_no_file_no_log_and_on_no_terminal(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    whole = place.burnish_run("whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    refused = place.burnish_run("refused", "--set", "services.guarded.token_file=wrong")
    assert refused.returncode == 2 and "the token is wrong" in refused.stderr, refused.stderr
    said = [whole.stdout, whole.stderr, refused.stdout, refused.stderr]
    for key, value in (
        ("rewards.4.args.handler", f"http://me:{USER}@127.0.0.1:1/x"), ("rewards.3.args.base_url", f"https://h.example/v1?key={PARAMETER}"),
        ("model", URL), ("environment_args.dataset", URL), ("services.guarded.address", URL), ("name", URL), (URL, "1"),
    ):  # fmt: skip
        done = burnish("run", "recipe.toml", "--run-dir", "never", "--set", f"{key}={json.dumps(value)}")
        assert done.startswith("error: ") or "\nerror: " in done, (key, done)
        said.append(done)
    assert not (place.folder / "never").exists()
    said += [burnish("rollouts", "whole", "--failed", "--limit", "99"), burnish("runs", "show", "whole")]
    assert "h.example/x?sig=…" in said[-2]

    assert {request.headers["authorization"] for request in place.judge.requests} == {f"Bearer {JUDGE}"}, "they were in use"
    assert {request.headers["authorization"] for request in place.handler.requests} == {f"Bearer {HANDLER}"}
    written = dict(place.written())
    stored = "".join(written[file] for file in written if "episodes" in file.parts)
    for failed in ("leaky/Arithmetic-v0", "leaky/plugin-v1", "started", "guarded", "answered 401", "403"):
        assert failed in stored, f"{failed} never failed, and nothing was shown of it"
    for name in ("whole/logs/started.log", "guarded.log"):
        assert "h.example/x?sig=…" in written[place.folder / name], f"{name} says what failed"
    assert "DEBUG:openai" in written[place.folder / "whole.log"]
    for secret in SECRETS:
        for number, text in enumerate(said):
            assert secret not in text, f"terminal {number}: {context(text, secret)}"
        for file, text in place.written():
            assert secret not in text, f"{file}: {context(text, secret)}"


def context(text: str, secret: str) -> str:
    at = text.index(secret)
    return text[max(0, at - 200) : at + 100]
