"""`[grounding]`: answers must follow from the messages that the policy names, whoever applies it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.unit.guard_policy import TOML
from tests.unit.test_envs_tool_env import Verdicts
from tests.unit.test_serving_guarded import HANDS, Model, client, serving, streamed
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.envs.failures import EpisodeFailure
from burnish.envs.tool_env import ToolEnv
from burnish.envs.tools import ToolRejected, ToolSet, tool
from burnish.envs.types import Message, Task, ToolCall, message_from_dict
from burnish.guardrails.guard import Guard
from burnish.guardrails.policy import load_policy, read_policy
from burnish.guardrails.stream import StreamGuard
from burnish.guardrails.verdict import judge
from burnish.rewards.called import with_calls
from burnish.rewards.plugin import make_scorer
from burnish.rewards.types import RewardInput
from burnish.serving.apply_guardrail import ApplyGuardrailApp
from burnish.serving.front import Front
from burnish.trainer.data.audit import check

pytestmark = pytest.mark.unit

FACTS = """
[categories.facts]
kind = "own"
action = "refuse"
where = ["output"]
message = "The documents do not say that."

[grounding]
category = "facts"
threshold = 0.6
"""
SOURCE = "The savings account pays 2 % interest."
WRONG, MIXED = "The savings account pays 3 % interest.", f"{SOURCE} The bank is closed on Sundays."
INSTEAD = "The documents do not say that."


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "bank.toml").write_text(TOML + FACTS)
    return tmp_path / "bank.toml"


@pytest.fixture
def guard(file: Path) -> Guard:
    return Guard(load_policy(file))


def asked(source: str = SOURCE) -> list[dict[str, Any]]:
    call = {"id": "1", "type": "function", "function": {"name": "read_file", "arguments": '{"path": "/data/a"}'}}
    return [
        {"role": "user", "content": "What does the account pay?"},
        {"role": "assistant", "content": "Let me look that up.", "tool_calls": [call]},
        {"role": "tool", "content": source, "tool_call_id": "1"},
    ]


@pytest.mark.parametrize(("answer", "passes"), [(SOURCE, True), ("I do not know.", True), (WRONG, False), (MIXED, False)])
async def test_all_uses_decide_alike_on_what_an_answer_must_follow_from(file: Path, guard: Guard, answer: str, passes: bool) -> None:
    (file.parent / "source.txt").write_text(SOURCE)
    data, prompts = file.parent / "talks.jsonl", file.parent / "prompts.jsonl"
    command = ["guard", "check", str(file), "--where", "output", "--text", answer, "--context", str(file.parent / "source.txt")]
    assert (CliRunner().invoke(app, command).exit_code == 0) is passes, "the command line"
    rows = [*asked(), {"role": "assistant", "content": answer}]
    data.write_text(json.dumps({"messages": rows}))
    report = check([str(data)], guard=guard)
    assert (report.rejected == 0, report.grounded) == (passes, 1), "data"
    talk = tuple(message_from_dict(row) for row in rows)
    scorer = make_scorer("burnish/guardrail-v1", params={"policy": str(file)})
    assert ((await scorer.score(RewardInput("e", Task("e", 0, talk[:1]), talk, 0.0))).value == 1.0) is passes, "rewards"
    prompts.write_text(json.dumps({"prompt": "What does it pay?", "attack": False, "answer": answer, "context": SOURCE}))
    said = CliRunner().invoke(app, ["guard", "evaluate", str(file), str(prompts), "--json"])
    found = json.loads(said.stdout)["measured"]["all"]["false_positives"]["value"]
    assert (found == 0.0, said.stderr) == (passes, ""), "evaluations"
    request = {"source": "OUTPUT", "content": [{"text": {"text": answer}}, {"text": {"text": SOURCE, "qualifiers": ["grounding_source"]}}]}
    applied = (await client(ApplyGuardrailApp(guard, Front())).post("/guardrail/bank/version/3/apply", json=request)).json()
    assert (applied["action"] == "NONE") is passes, "ApplyGuardrail"
    for tools in ([], HANDS):
        row = {"model": "m", "messages": asked(), "tools": tools}
        service = client(serving(Model(answer), guard))
        choice = (await service.post("/v1/chat/completions", json=row)).json()["choices"][0]
        expected = (answer, "stop") if passes else (INSTEAD, "content_filter")
        assert (choice["message"]["content"], choice["finish_reason"]) == expected, "the service"
        assert streamed(await service.post("/v1/chat/completions", json={**row, "stream": True})) == [expected], "its streams"


@tool
def read_file(path: str) -> str:
    """Read a file."""
    return SOURCE


@tool
def transfer(amount: int) -> str:
    """Move money."""
    raise ToolRejected("not today")


READ = ToolCall("call_0", "read_file", {"path": "/data/a"})
CATEGORY, TABLE = FACTS[: FACTS.index("[grounding]")], FACTS[FACTS.index("[grounding]") :]
TOOLS = TOML[TOML.index("[[tools]]") :]


def small(file: Path, *tables: str) -> None:
    """Write a policy that is read at once."""
    word = '[[words]]\nname = "word"\ncategory = "facts"\nwords = ["xyzzy"]\n'
    file.write_text("\n".join(('name = "bank"', "version = 3", CATEGORY, word, *tables)))


@pytest.mark.parametrize(
    ("texts", "beside", "calls", "passes"),
    [
        (('read_file("/data/a")', SOURCE), "", (READ,), True),
        (('read_file("/data/a")', WRONG), "", (READ,), False),
        (('[read_file("/etc/passwd")]', SOURCE), "", (ToolCall("call_0", "read_file", {"path": "/etc/passwd"}),), False),
        (("transfer(900)", "Not today."), "", (ToolCall("call_0", "transfer", {"amount": 900}),), False),
        ((f'{SOURCE}\nread_file("/data/a")', SOURCE), SOURCE, (READ,), True),
        ((f'{WRONG}\nread_file("/data/a")', SOURCE), WRONG, (READ,), False),
        (('read_file("/data/a"', SOURCE), 'read_file("/data/a"', (), False),  # a service takes it for an answer, too
    ],
)
@pytest.mark.parametrize("grounded", [True, False])
async def test_a_reward_sees_the_calls_that_the_policy_wrote_as_text(
    file: Path, texts: tuple[str, ...], beside: str, calls: tuple[ToolCall, ...], passes: bool, grounded: bool
) -> None:
    small(file, TOOLS, TABLE * grounded)
    texts, env = ('read_file("/data/a")', *texts), ToolEnv(Verdicts(), ToolSet([read_file, transfer]))
    (*messages,), info = env.reset(seed=1)
    data = dict(info["data"])
    for text in texts:
        seen, *_, info = env.step(text)
        messages, data = [*messages, Message("assistant", text), *seen], data | info["data"]
    episode = RewardInput("e", Task("e", 0), tuple(messages), 0.0, metrics={"turns": 3.0}, data=data)
    given = (await make_scorer("burnish/guardrail-v1", params={"policy": str(file)}).score(episode)).value
    structured = list(messages)
    structured[1], structured[3] = Message("assistant", "", (READ,)), Message("assistant", beside, calls)
    verdict = judge(Guard(load_policy(file)), structured)
    assert given == float(verdict.kept), "data with the same calls"
    if grounded:
        assert given == float(passes)


async def test_a_reward_has_to_know_what_was_called(file: Path) -> None:
    seen = Message("tool", SOURCE, tool_call_id="call_0")
    called = (Message("user", "?"), Message("assistant", "hm"), seen, Message("assistant", SOURCE))
    unrecorded: list[dict[str, Any]] = [{}, {"tool_calls": []}, {"tool_calls": [{"name": 3, "arguments": {}}]}]
    for tables, fails in (((TOOLS,), True), ((TABLE,), True), ((), False)):
        small(file, *tables)
        scorer = make_scorer("burnish/guardrail-v1", params={"policy": str(file)})
        for data in unrecorded:
            episode = RewardInput("e", Task("e", 0), called, 0.0, data=data)
            if not fails:
                assert (await scorer.score(episode)).value == 1.0
                continue
            with pytest.raises(EpisodeFailure, match="a tool answered call 'call_0' of turn 0, and the environment does not say"):
                await scorer.score(episode)


SENT = {"name": "transfer", "arguments": {"amount": 900}}
FROM = ToolCall("x", "read_file", {"path": "/data/a"})


@pytest.mark.parametrize(
    ("said", "calls", "kept"),
    [
        ((Message("assistant", "transfer(900)"),), [SENT], False),  # the environment ended there
        ((Message("assistant", "transfer(900)"), Message("tool", "done"), Message("assistant", "Done.")), [SENT], False),  # without an id
        ((Message("assistant", "Done."),), [{"name": "read_file", "arguments": {"path": "/data/a"}}], True),
        ((Message("assistant", "", (FROM,)), Message("tool", "x", tool_call_id="x")), [SENT], False),
        ((Message("assistant", "", (FROM,)), Message("tool", "x", tool_call_id="x")), None, True),
        ((Message("assistant", "oops("), Message("tool", "Error"), Message("assistant", "Done.")), [], True),  # what could not be read
        (
            (Message("assistant", "hm"), Message("tool", "done"), Message("assistant", "Done.")),
            None,
            "a tool answered turn 0 without an id",
        ),
        ((Message("assistant", "Done."),), [{"function": SENT}], r'\["tool_calls"\]\[0\] cannot be read'),
        ((Message("assistant", "Done."),), {"0": SENT}, "as a whole cannot be read"),
        ((), [SENT], "in which the policy says nothing"),
    ],
)
def test_each_recorded_call_is_judged(file: Path, said: tuple[Message, ...], calls: Any, kept: bool | str) -> None:
    small(file, TOOLS)
    data = {} if calls is None else {"tool_calls": calls}
    episode = RewardInput("e", Task("e", 0), (Message("user", "?"), *said), 0.0, data=data)
    if isinstance(kept, str):
        with pytest.raises(ValueError, match=kept):
            with_calls(episode, strict=True)
        with_calls(episode)
        return
    assert judge(Guard(load_policy(file)), with_calls(episode, strict=True)[0]).kept is kept


async def test_without_messages_of_the_named_roles_nothing_is_held(file: Path, guard: Guard) -> None:
    row = {"model": "m", "messages": [{"role": "system", "content": SOURCE}, {"role": "user", "content": "What does it pay?"}]}
    answer = await client(serving(Model(WRONG), guard)).post("/v1/chat/completions", json=row)
    assert answer.json()["choices"][0]["message"]["content"] == WRONG
    file.write_text(TOML + FACTS + 'context = ["system"]\n')
    answer = await client(serving(Model(WRONG), Guard(load_policy(file)))).post("/v1/chat/completions", json=row)
    assert answer.json()["choices"][0]["message"]["content"] == INSTEAD


ASKS_AFTER, PROMISES = "Speak to an adviser first.", "This is no advice."
WARNED = """
[categories.advice]
kind = "own"
action = "warn"
where = ["input"]
message = "Speak to an adviser first."

[[words]]
name = "advice"
category = "advice"
words = ["savings account"]
"""


@pytest.mark.parametrize("beside", ["asked", "answered"])
@pytest.mark.parametrize("tools", [[], HANDS])
async def test_a_warning_of_the_policys_own_need_not_follow(file: Path, beside: str, tools: list[Any]) -> None:
    own = ASKS_AFTER if beside == "asked" else PROMISES
    file.write_text(TOML + FACTS + (WARNED if beside == "asked" else WARNED.replace('"input"', '"output"').replace(ASKS_AFTER, PROMISES)))
    service = client(serving(Model(SOURCE), Guard(load_policy(file))))
    row = {"model": "m", "messages": asked(), "tools": tools}
    choice = (await service.post("/v1/chat/completions", json=row)).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (f"{SOURCE}\n\n{own}", "stop")
    assert streamed(await service.post("/v1/chat/completions", json={**row, "stream": True})) == [(f"{SOURCE}\n\n{own}", "stop")]
    wrong = client(serving(Model(WRONG), Guard(load_policy(file))))
    assert streamed(await wrong.post("/v1/chat/completions", json={**row, "stream": True})) == [(INSTEAD, "content_filter")]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_warning_stands_beside_a_call(file: Path, stream: bool) -> None:
    file.write_text(TOML + FACTS + WARNED)
    row = {"model": "m", "messages": asked(), "tools": HANDS, "stream": stream}
    answer = await client(serving(Model('read_file("/data/b")'), Guard(load_policy(file)))).post("/v1/chat/completions", json=row)
    assert '"read_file"' in answer.text and f'"content": "{ASKS_AFTER}"' in answer.text and "tool_calls" in answer.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("beside", "passes"), [("", True), (SOURCE, True), (WRONG, False)])
async def test_a_call_follows_from_nothing_but_what_is_said_beside_it_does(guard: Guard, stream: bool, beside: str, passes: bool) -> None:
    row = {"model": "m", "messages": asked(), "tools": HANDS, "stream": stream}
    answer = await client(serving(Model(f'{beside}\nread_file("/data/b")'.strip()), guard)).post("/v1/chat/completions", json=row)
    assert (('"read_file"' in answer.text), (INSTEAD in answer.text)) == (passes, not passes)
    assert ("tool_calls" if passes else "content_filter") in answer.text and WRONG not in answer.text


def test_each_answer_is_held_to_what_stands_before_it(guard: Guard) -> None:
    def verdict(*texts: str) -> tuple[bool, list[str]]:
        roles: Sequence[str] = ("user", "tool", "assistant", "tool", "assistant")
        found = judge(guard, [message_from_dict({"role": role, "content": text}) for role, text in zip(roles, texts, strict=True)])
        assert found.answered is not None
        return found.kept, [finding.evidence.strip() for finding in found.answered.findings]

    later = "It was 3 % before."
    assert verdict("?", SOURCE, SOURCE, later, later) == (True, [])
    assert verdict("?", SOURCE, later, later, SOURCE) == (False, [later]), "what comes later supports nothing before"


@pytest.mark.parametrize(("action", "begins"), [("refuse", False), ("warn", True)])
def test_a_stream_that_must_follow_from_a_context_waits_for_its_end(file: Path, action: str, begins: bool) -> None:
    file.write_text(TOML + FACTS.replace('"refuse"', f'"{action}"'))
    guard = Guard(load_policy(file))
    stream = StreamGuard(guard, context=SOURCE)
    out = "".join(stream.feed(piece) for piece in (f"{WRONG} ", f"{SOURCE} ", f"{SOURCE} ", "It pays interest."))
    assert bool(out) is begins
    assert out + stream.end() == f"{WRONG} {SOURCE} {SOURCE} It pays interest.", "three of four sentences are supported"
    stream = StreamGuard(guard, context=SOURCE)
    assert stream.feed("Take nerve gas now. And then ") == "" and stream.blocked, "what else is found stops it at once"


def test_a_table_without_effect_is_said(file: Path) -> None:
    done = CliRunner().invoke(app, ["guard", "check", str(file), "--where", "output", "--text", WRONG])
    assert (done.exit_code, done.stderr) == (0, "without --context, [grounding] finds nothing\n")
    (file.parent / "p.jsonl").write_text(json.dumps({"prompt": "Hello", "attack": False, "answer": WRONG}))
    done = CliRunner().invoke(app, ["guard", "evaluate", str(file), str(file.parent / "p.jsonl")])
    assert done.stderr == "no row has a context, so [grounding] finds nothing here\n"
    (file.parent / "t.jsonl").write_text(json.dumps({"text": "Hello"}))
    done = CliRunner().invoke(app, ["data", "check", str(file.parent / "t.jsonl"), "--policy", str(file)])
    assert "0 rows have messages that answers must follow from (tool)" in done.stdout
    for more in (["--text", "x", "--where", "input"], ["--call", "{}"], []):
        done = CliRunner().invoke(app, ["guard", "check", str(file), "--context", str(file), *more])
        assert done.exit_code == 2 and "--context has no effect but on a text with --where output" in done.stderr
    file.write_text(TOML)
    done = CliRunner().invoke(app, ["guard", "check", str(file), "--context", str(file), "--text", "x", "--where", "output"])
    assert done.exit_code == 2 and "has no [grounding]" in done.stderr


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (('where = ["output"]\n', 'where = ["input"]\n'), r"grounding: has no effect, for \[categories.facts\] does not look at output"),
        (("threshold = 0.6", 'context = ["boss"]'), "grounding.context.0: "),
        (("threshold = 0.6", "context = []"), "grounding.context: "),
    ],
)
def test_a_table_that_could_find_nothing_is_refused(changed: tuple[str, str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_policy(tomllib.loads(TOML + FACTS.replace(*changed)))
