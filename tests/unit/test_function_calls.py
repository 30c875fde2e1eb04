"""Calls against the calls that were wanted, by hand; the environment that asks for them; and the suites that use it."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest

from burnish.envs.builtin.functions.cases import KINDS, make_case
from burnish.envs.builtin.functions.env import SYSTEM, WRITTEN
from burnish.envs.builtin.functions.matching import are_wanted, check_wanted
from burnish.envs.contract import make_env, reset_env, step_env
from burnish.envs.failures import EpisodeFailure
from burnish.envs.tool_calls import parse_pythonic, write_pythonic
from burnish.envs.types import Message, Task, ToolCall
from burnish.run.suites import evaluate_suites
from burnish.trainer.data.curated import tool_use
from burnish.trainer.evaluation.suites import bfcl
from burnish.trainer.evaluation.suites.finding import find_suite
from burnish.trainer.evaluation.suites.measure import Asking

pytestmark = pytest.mark.unit

ID = "burnish/FunctionCalls-v0"
AREA = {"triangle_area": {"base": [10], "height": [5], "unit": ["units", ""]}}
TOOL = {
    "type": "function",
    "function": {
        "name": "triangle_area",
        "parameters": {"type": "object", "properties": {"base": {"type": "integer"}, "height": {}, "unit": {}}},
    },
}


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall("", name, arguments)


@pytest.mark.parametrize(
    ("calls", "wanted", "right"),
    [
        ([call("triangle_area", base=10, height=5)], [AREA], True),  # what may be left out is
        ([call("triangle_area", base=10.0, height=5, unit="UNITS ")], [AREA], True),  # numbers by value, texts without case and space
        ([call("triangle_area", base=10, height=5, unit="cm")], [AREA], False),
        ([call("triangle_area", base=10)], [AREA], False),  # what may not be left out is
        ([call("triangle_area", base=10, height=5, colour="red")], [AREA], False),
        ([call("triangle_area", base="10", height=5)], [AREA], False),  # a text is no number
        ([call("circle_area", base=10, height=5)], [AREA], False),
        ([], [AREA], False),
        ([], [], True),
        ([call("triangle_area", base=10, height=5)], [], False),
        ([call("on", on=1)], [{"on": {"on": [True]}}], False),  # nor is true one
        ([call("spotify_play", artist="Maroon 5"), call("spotify_play", artist="Taylor Swift")],
         [{"spotify.play": {"artist": ["Taylor Swift"]}}, {"spotify.play": {"artist": ["Maroon 5"]}}], True),
        ([call("f", x=1), call("f", x=1)], [{"f": {"x": [1]}}, {"f": {"x": [2]}}], False),  # one cannot stand for two
        # The first call fits both, the second the first only: it has to make room.
        ([call("f", x=1), call("f", x=2)], [{"f": {"x": [1, 2]}}, {"f": {"x": [1]}}], True),
        ([call("f", when="April 1, 2024")], [{"f": {"when": ["april 1 2024"]}}], True),
        ([call("f", at=[3, 5])], [{"f": {"at": [[3, 5], [5, 3]]}}], True),
        ([call("f", at=[3, 5, 5])], [{"f": {"at": [[3, 5]]}}], False),
        ([call("f", budget={"min": 3})], [{"f": {"budget": [{"min": [3, 4], "max": [9, ""]}]}}], True),
        ([call("f", budget={"max": 9})], [{"f": {"budget": [{"min": [3, 4], "max": [9, ""]}]}}], False),
        ([call("f", rows=[{"a": 1}, {"a": 2}])], [{"f": {"rows": [[{"a": [1]}, {"a": [2]}]]}}], True),
        ([call("f", x=None)], [{"f": {"x": [0]}}], False),
    ],
)  # fmt: skip
def test_calls_are_held_to_what_was_wanted(calls: list[ToolCall], wanted: list[Any], right: bool) -> None:
    assert are_wanted(calls, check_wanted(wanted)) is right


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ("f", "calls must be a list"),
        ([{"f": {}, "g": {}}], r"calls\[0\] must be an object of one function"),
        ([{"f": {"x": [1]}}, {"f": {"x": 1}}], r"calls\[1\]\.f must give each parameter a list"),
        ([{"f": {"x": []}}], r"calls\[0\]\.f must give each parameter a list"),
        ([{}] * 33, "a list of at most 32"),
    ],
)
def test_what_is_no_answer_is_refused(wanted: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_wanted(wanted)


def play(task: Task, answer: str, parser: str | None = None) -> float:
    env = make_env(ID)
    reset_env(env, ID, task, tool_parser=parser)
    step = step_env(env, ID, answer)
    assert step.terminated and step.info.reward_parts == {"right": step.reward}
    return step.reward


def test_a_case_of_a_task_is_asked_and_judged() -> None:
    data = {
        "tools": [TOOL],
        "calls": [AREA],
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Area?"}],
    }
    task = Task("t", 0, (), data)
    messages, info = reset_env(make_env(ID), ID, task)
    assert [(one.role, one.text) for one in messages] == [("system", f"{SYSTEM}{WRITTEN}\n\nBe short."), ("user", "Area?")]
    assert (info.tools, info.data["tool_parser"]) == ((TOOL,), "burnish/pythonic-v1")
    assert play(task, "triangle_area(base=10, height=5)") == play(task, "[triangle_area(10, 5, unit='units')]") == 1.0
    assert play(task, "The area is 25.") == play(task, "triangle_area(10, 5") == play(task, "") == 0.0


def test_the_calls_of_an_answer_are_recorded() -> None:
    env, task = make_env(ID), Task("t", 0, (Message("user", "Area?"),), {"tools": [TOOL], "calls": [AREA]})
    for answer, calls in (("So:\ntriangle_area(10, 5)", [{"base": 10, "height": 5}]), ("triangle_area(10", []), ("None.", [])):
        reset_env(env, ID, task)
        data = step_env(env, ID, answer).info.data
        assert [call["arguments"] for call in data["tool_calls"]] == calls
        assert data.get("call_lines") == ({"call_0": [4, 24]} if calls else None)


def test_a_template_that_says_how_a_call_is_written_is_held_to() -> None:
    task = Task("t", 0, (), {"tools": [TOOL], "calls": [AREA], "messages": [{"role": "user", "content": "Area?"}]})
    messages, _ = reset_env(make_env(ID), ID, task, tool_parser="burnish/hermes-v1")
    assert messages[0].text == SYSTEM
    hermes = '<tool_call>{"name": "triangle_area", "arguments": {"base": 10, "height": 5}}</tool_call>'
    assert play(task, hermes, "burnish/hermes-v1") == 1.0 and play(task, hermes) == 0.0


def test_where_no_call_is_wanted_only_an_answer_without_one_is_right() -> None:
    task = Task("t", 0, (Message("user", "Who are you?"),), {"tools": [TOOL], "calls": []})
    assert reset_env(make_env(ID), ID, task)[0] == ()  # a prompt of its own is asked as it stands
    assert play(task, "None of them fits.") == 1.0
    assert play(task, "triangle_area(1, 2)") == play(task, "triangle_area(1, 2") == play(task, " \n") == 0.0


def test_a_task_that_brings_calls_asks_something() -> None:
    with pytest.raises(EpisodeFailure, match="asks by a prompt, or by messages in its data; this one has neither"):
        reset_env(make_env(ID), ID, Task("t", 0, (), {"calls": []}))
    with pytest.raises(EpisodeFailure, match="tools must be a list"):
        reset_env(make_env(ID), ID, Task("t", 0, (Message("user", "?"),), {"calls": [], "tools": "f"}))


@pytest.mark.parametrize(
    ("prompt", "data", "by"),
    [
        ((Message("user", "Area?"),), {"tools": [TOOL], "call": [AREA]}, "prompt"),
        ((), {"messages": [{"role": "user", "content": "Area?"}]}, "messages"),
        ((), {"tools": [TOOL]}, "tools"),
    ],
)
def test_a_task_that_asks_says_which_calls_are_right(prompt: tuple[Message, ...], data: dict[str, Any], by: str) -> None:
    with pytest.raises(EpisodeFailure, match=rf"a case of its own, here by its {by}, says in calls what is right: \[\] where no call is"):
        reset_env(make_env(ID), ID, Task("t", 0, prompt, data))
    assert reset_env(make_env(ID), ID, Task("t", 0, (), {"reference_answer": "x"}))[0][-1].text == make_case(0).question


def test_the_kinds_of_cases_come_in_turn_and_each_has_an_answer() -> None:
    taught = {"price", "stock", "spec", "measure", "scrap"}
    for seed in range(200):
        case, env = make_case(seed), make_env(ID)
        assert (case.kind, len(case.calls)) == (KINDS[seed % 4], {"one": 1, "twice": 2, "two": 2, "none": 0}[case.kind])
        names = [tool["function"]["name"] for tool in case.tools]
        assert len(set(names)) == 3 and not taught & set(names) and all(next(iter(one)) in names for one in case.calls)
        messages, info = reset_env(env, ID, Task("t", seed))
        assert messages[-1].text == case.question and info.tools == case.tools
        best = [
            ToolCall("", name, {key: v[0] for key, v in values.items() if v != [""]}) for one in case.calls for name, values in one.items()
        ]
        answer = write_pythonic(best, case.tools) or "None of them fits."
        assert len(parse_pythonic(answer, case.tools)) == len(best)  # type: ignore[arg-type]
        assert step_env(env, ID, answer).reward == 1.0
    assert make_case(1).calls[0] != make_case(1).calls[1]


def test_the_suite_asks_none_of_what_the_catalog_teaches() -> None:
    suite = find_suite("burnish/tool-use-v1")
    assert suite.tasks is not None
    asked = [task.data["messages"][0]["content"] for task in suite.tasks(100)]
    taught = {m["content"] for row in tool_use.rows(0, 200) for m in row["messages"] if m["role"] == "user"}
    assert len(set(asked)) > 90 and not taught & set(asked)
    assert sum(not task.data["calls"] for task in suite.tasks(100)) == 25 == 100 * suite.chance
    json.dumps([dict(task.data) for task in suite.tasks(4)])


def test_a_suite_names_every_unfit_row_before_an_engine_starts(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": name, "messages": [{"role": "user", "content": name}], "calls": calls} for name, calls in (("a", []), ("b", 3), ("c", {}))
    ]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.toml").write_text(f'id = "a/own-v1"\nabout = "Calls."\nrows = "cases.jsonl"\nenvironment = "{ID}"\n')
    with pytest.raises(ValueError, match=r"^suite a/own-v1: b: calls must be a list .*\nc: calls must be a list"):
        evaluate_suites("nowhere", [find_suite(str(tmp_path / "own.toml"))], Asking(), None, None)  # type: ignore[arg-type]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what of bfcl-eval is read, as if it were installed."""
    data = tmp_path / "bfcl_eval/data"
    (data / "possible_answer").mkdir(parents=True)
    (tmp_path / "bfcl_eval-2026.3.23.dist-info").mkdir()
    (tmp_path / "bfcl_eval-2026.3.23.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: bfcl_eval\nVersion: 2026.3.23\n")
    parameters = {"type": "dict", "properties": {"base": {"type": "float"}, "points": {"type": "tuple", "items": {"type": "any"}}}}
    row = {"id": "x_0", "question": [[{"role": "user", "content": "Area?"}]], "function": [{"name": "math.area", "parameters": parameters}]}
    for name in ("simple_python", "irrelevance"):
        (data / f"BFCL_v4_{name}.json").write_text(f"{json.dumps(row)}\n" * 2)
    (data / "possible_answer/BFCL_v4_simple_python.json").write_text(
        json.dumps({"id": "x_0", "ground_truth": [{"math.area": {"base": [2]}}]})
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("package")
def test_the_leaderboards_cases_are_read_from_its_package() -> None:
    suite = find_suite("burnish/bfcl-simple-v1")
    assert suite.tasks is not None
    (task,) = suite.tasks(1)
    assert task.id == "x_0" and task.data["calls"] == [{"math.area": {"base": [2]}}]
    (tool,) = task.data["tools"]
    schema = {"type": "object", "properties": {"base": {"type": "number"}, "points": {"type": "array", "items": {}}}}
    assert tool == {"type": "function", "function": {"name": "math_area", "parameters": schema}}
    assert play(task, "math_area(base=2)") == 1.0 and play(task, "math_area(3)") == 0.0
    (unfit,) = bfcl.bfcl_tasks("irrelevance", 1)
    assert unfit.data["calls"] == [] and play(unfit, "I cannot.") == 1.0


def test_without_its_package_or_with_another_release_a_suite_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    suite = find_suite("burnish/bfcl-simple-v1")
    how = r"pip install --no-deps bfcl-eval==2026\.3\.23"
    try:
        distribution("bfcl-eval")
    except PackageNotFoundError:
        with pytest.raises(ValueError, match=f"suite burnish/bfcl-simple-v1: .* not installed here: {how}"):
            evaluate_suites("nowhere", [suite], Asking(), None, None)  # type: ignore[arg-type]
    (request.getfixturevalue("package") / "bfcl_eval-2026.3.23.dist-info/METADATA").write_text("Name: bfcl_eval\nVersion: 2027.1\n")
    with pytest.raises(ValueError, match=f"bfcl-eval 2026.3.23, and 2027.1 is installed here: {how}"):
        bfcl.bfcl_tasks("simple_python", 1)


@pytest.mark.parametrize("category", ["simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance"])
def test_every_case_of_the_real_package_is_answered_by_its_own_answer(category: str) -> None:
    try:
        tasks = bfcl.bfcl_tasks(category, 1000)
    except ValueError as error:
        pytest.skip(str(error))
    assert len(tasks) >= 200
    for task in tasks:
        wanted = check_wanted(task.data["calls"])
        best = [ToolCall("", name.replace(".", "_"), _first(values)) for one in wanted for name, values in one.items()]
        assert are_wanted(best, wanted), task.id
        assert wanted == () or not are_wanted(best[1:], wanted)


def _first(values: Any) -> dict[str, Any]:
    """The first right value of each parameter that has to be given."""
    return {key: _value(some[0]) for key, some in values.items() if "" not in some}


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return _first(value)
    return [_value(one) for one in value] if isinstance(value, list) else value
