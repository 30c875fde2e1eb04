"""Tasks out of files: what a row becomes, what is refused with file, line and field, and the order they come in."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from burnish.envs.rows import parse_object
from burnish.envs.types import Message, TextPart
from burnish.run.folder import RunFolder
from burnish.trainer.data.audit import check
from burnish.trainer.data.config import TasksConfig
from burnish.trainer.data.forms import read_conversation
from burnish.trainer.data.task_files import TaskFiles, TaskRow, read_task_files, read_task_rows, task_row
from burnish.trainer.data.tasks import row_tasks

pytestmark = pytest.mark.unit

USER = {"role": "user", "content": "2 + 2?"}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}


def line(**fields: Any) -> str:
    return json.dumps({"messages": [USER], **fields})


def read(tmp_path: Path, train: list[str], held_out: list[str]) -> TaskFiles:
    for name, lines in (("train", train), ("held_out", held_out)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return read_task_files(TasksConfig(train=str(tmp_path / "train.jsonl"), held_out=str(tmp_path / "held_out.jsonl")))


def read_row(text: str) -> TaskRow:
    return task_row(parse_object(text), "train", 1)


def asking(text: str, **fields: Any) -> str:
    return line(messages=[{"role": "user", "content": text}], **fields)


def test_everything_but_id_and_messages_is_the_tasks_data() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]}]
    row = read_row(line(id="s1", messages=messages, tools=[TOOL], reference_answer={"x": 4}, level=2))
    assert row == TaskRow("s1", True, 1, (Message("system", "Be brief."), Message("user", (TextPart("2 + 2?"),))), row.data)
    assert row.data == {"tools": [TOOL], "reference_answer": {"x": 4}, "level": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("7", "must be a JSON object, not int"),
        ("{}", "messages: the row is empty"),
        ('{"message": []}', "messages: the row has none; its keys are 'message'"),
        (line(messages=[]), "messages: must be a list of messages, at least one"),
        (line(messages={}), "messages: must be a list of messages, at least one"),
        (line(messages=["hi"]), r"messages\[0\]: must be an object, not str"),
        (line(messages=[{"role": "usr", "content": "x"}]), r"messages\[0\]: role 'usr' is unknown"),
        (line(messages=[{"role": "user"}]), r"messages\[0\]: content is missing"),
        (line(messages=[{"role": "user", "content": " "}]), r"messages\[0\].content: is empty"),
        (line(messages=[{"role": "user", "content": [{"type": "text"}]}]), r"messages\[0\]: content part .* is not a text part"),
        (line(messages=[USER, {"role": "system", "content": "x"}]), r"messages\[1\].role: the system message must be the first"),
        (line(messages=[{"role": "system", "content": "x"}]), "messages: none is the user's"),
        (line(messages=[USER, {"role": "assistant", "content": "4"}]), "messages: the last one is the assistant's"),
        (line(messages=[{**USER, "tool_calls": 5}]), r"messages\[0\]: tool_calls must be a list, not int"),
        (line(messages=[{**USER, "tool_calls": "no"}]), r"messages\[0\]: tool_calls must be a list, not str"),
        (line(messages=[{**USER, "tool_calls": ["no"]}]), r"messages\[0\].tool_calls\[0\]: a tool call needs function.name"),
        (line(messages=[{**USER, "name": 5}]), r"messages\[0\]: name must be a string, not int"),
        (line(id=""), "id: must be a whole number or a text that is not empty, not ''"),
        (line(id=True), "id: must be a whole number or a text that is not empty, not True"),
        (line(id=1.5), "id: must be a whole number or a text that is not empty, not 1.5"),
        (line(id="a\nb"), "id: must be printable"),
        (line(reference_answer=""), "reference_answer: is empty; leave it out"),
        (line(reference_answer={}), "reference_answer: is empty; leave it out"),
        (line(tools={"name": "add"}), "tools: must be a list of functions, not dict"),
        (line(tools=[{"name": "add"}]), r"tools\[0\]: must read"),
        (line(tools=[{**TOOL, "function": {"name": ""}}]), r"tools\[0\].function.name: must be a text"),
        (line(tools=[TOOL, TOOL]), r"tools\[1\].function.name: 'add' is the name of two tools"),
        (line(score=float("nan")), "not JSON: NaN is no JSON number"),
        ('{"messages": [], "x": "\\ud800"}', "x holds a lone surrogate"),
    ],
)
def test_a_row_that_is_none_says_which_field(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        read_row(text)


def calling(arguments: str) -> str:
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": arguments}}
    said = {"role": "assistant", "content": "", "tool_calls": [call]}
    return line(messages=[USER, said, {"role": "tool", "content": "4"}, {"role": "assistant", "content": "4"}, USER])


@pytest.mark.parametrize("arguments", ['{"a": NaN}', '{"a": 1e999}', '{"a": ' * 400 + "1" + "}" * 400, '{"a": [' * 500 + "]}" * 500])
def test_arguments_that_could_not_be_stored_are_refused_where_they_stand(tmp_path: Path, arguments: str) -> None:
    """Such a row passed every check, and the first step that played it ended the run."""
    with pytest.raises(ValueError, match=r"train\.jsonl:2: messages\[1\]\.tool_calls\[0\]: function\.arguments"):
        read(tmp_path, [asking("1 + 1?"), calling(arguments)], [asking("3 + 3?")])
    row = parse_object(calling(arguments))
    with pytest.raises(ValueError, match=r"messages\[1\]\.tool_calls\[0\]: function\.arguments"):
        read_conversation({"messages": row["messages"][:4]}, "sft.jsonl:3")


def test_zero_and_false_are_reference_answers() -> None:
    for value in (0, False, 0.0, "0"):
        assert read_row(line(reference_answer=value)).data == {"reference_answer": value}


def test_problems_name_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        read(tmp_path, [asking("a", id="x"), "", "{", asking("b", id="x")], [asking("c"), line(messages=[])])
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/train.jsonl:3: not JSON: Expecting property name enclosed in double quotes at character 2 of the line",
        f"{tmp_path}/train.jsonl:4: id: 'x' is the id of {tmp_path}/train.jsonl:1 too",
        f"{tmp_path}/held_out.jsonl:2: messages: must be a list of messages, at least one",
    ]


def test_many_problems_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"… and 11 more problems$"):
        read(tmp_path, ["{"] * 30, [""])


def test_no_more_is_read_where_far_too_many_rows_are_unfit(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n" * 5000)
    (tmp_path / "b.jsonl").write_text("{}\n" * 5000)
    with pytest.raises(ValueError, match=r"a\.jsonl:20: .*\n… and 987 more problems$"):
        read_task_files(TasksConfig(train=str(tmp_path / "a.jsonl"), held_out=str(tmp_path / "b.jsonl"), max_rejects=5))


def test_ids_may_be_numbers_and_what_is_null_is_as_good_as_left_out() -> None:
    assert (read_row(line(id=7)).id, read_row(line(id=7)).given) == ("7", True)
    for row in (read_row(line(tools=None, id=None)), read_row(line(tools=[]))):
        assert (row.id, row.given, row.data) == ("train-1", False, {})


def test_what_is_wrong_with_both_files_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError) as caught:
        read_task_files(TasksConfig(train=str(tmp_path / "bytes.jsonl"), held_out=str(tmp_path / "none.jsonl")))
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/bytes.jsonl: is UTF-16 text; save it as UTF-8",
        f"{tmp_path}/none.jsonl: there is no such file",
    ]
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl: holds no row"):
        read_task_files(TasksConfig(train=str(tmp_path / "empty.jsonl"), held_out=str(tmp_path / "empty.jsonl")))


def test_held_out_rows_are_never_trained_on(tmp_path: Path) -> None:
    train = [asking("a", id="x"), asking("b"), asking("c")]
    with pytest.raises(ValueError) as caught:
        read(tmp_path, train, [asking("new", id="x"), asking(" b\n"), asking("d")])
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/held_out.jsonl:1: id: 'x' is trained on ({tmp_path}/train.jsonl:1); held-out tasks must never be",
        f"{tmp_path}/held_out.jsonl:2: messages: are trained on ({tmp_path}/train.jsonl:2); held-out tasks must never be",
    ]


def test_rows_of_a_folder_without_ids_have_ids_of_their_own(tmp_path: Path) -> None:
    for name in ("x/part.jsonl", "y/part.jsonl", "y/part.ndjson", "flat.jsonl"):
        file = tmp_path / "fold" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(asking(name) + "\n")
    found = read_task_rows(str(tmp_path / "fold"))
    assert [row.id for row in found] == ["flat-1", "x/part-1", "y/part.jsonl-1", "y/part.ndjson-1"]
    assert [row.where for row in found][1] == f"{tmp_path}/fold/x/part.jsonl:1"
    assert [row.id for row in read_task_rows(str(tmp_path / "fold" / "x" / "part.jsonl"))] == ["part-1"]


def test_an_id_that_is_made_up_gives_way_to_one_that_is_given(tmp_path: Path) -> None:
    rows = [asking("a"), asking("b", id="train-1"), asking("c", id="train-1~2"), asking("d", id="train-5"), asking("e")]
    found = read(tmp_path, rows, [asking("other")]).train
    assert [row.id for row in found] == ["train-1~3", "train-1", "train-1~2", "train-5", "train-5~2"]
    assert [row.given for row in found] == [False, True, True, True, False]


def test_an_id_that_is_given_twice_names_both_places(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / "fold" / name).mkdir(parents=True)
        (tmp_path / "fold" / name / "part.jsonl").write_text("\n" * (name == "y") + asking(name, id="same") + "\n")
    says = f"{tmp_path}/fold/y/part.jsonl:2: id: 'same' is the id of {tmp_path}/fold/x/part.jsonl:1 too"
    with pytest.raises(ValueError, match=re.escape(says)):
        read_task_rows(str(tmp_path / "fold"))
    report = check([str(tmp_path / "fold"), str(tmp_path / "fold" / "x")], "tasks")
    assert report.problems.lines() == [says] and report.rejected == 1 and report.rows["task"] == 2


def test_the_order_is_shuffled_whole_in_every_epoch_and_a_function_of_the_position(tmp_path: Path) -> None:
    files = read(tmp_path, [asking(f"question {i}", id=f"r{i}") for i in range(10)], [asking("other")])
    whole = row_tasks(files.train, 7, 0, 30)
    assert row_tasks(files.train, 7, 12, 8) == whole[12:20]
    ids = [task.id.partition(":")[2] for task in whole]
    assert sorted(ids[:10]) == sorted(ids[10:20]) == sorted(row.id for row in files.train)
    assert ids[:10] != ids[10:20] != [row.id for row in files.train]
    assert len({task.id for task in whole}) == 30, "a task of a later epoch is another episode in the books"
    assert [task.id.partition(":")[2] for task in row_tasks(files.train, 8, 0, 10)] != ids[:10]


def test_held_out_tasks_are_the_first_rows(tmp_path: Path) -> None:
    files = read(tmp_path, [asking("a")], [asking(f"question {i}", reference_answer=i + 1) for i in range(3)])
    tasks = files.held_out_tasks(2)
    assert [(task.id, task.prompt, task.data) for task in tasks] == [
        (f"heldout-held_out-{i + 1}", (Message("user", f"question {i}"),), {"reference_answer": i + 1}) for i in range(2)
    ]
    assert len(files.held_out_tasks(200)) == 3


def test_the_digest_follows_both_files(tmp_path: Path) -> None:
    first = read(tmp_path, [asking("a")], [asking("b")]).digest
    assert read(tmp_path, [asking("a")], [asking("b")]).digest == first
    assert first not in (read(tmp_path, [asking("a")], [asking("c")]).digest, read(tmp_path, [asking("c")], [asking("b")]).digest)


def test_what_stands_behind_the_last_row_that_can_be_read_is_not_unpacked_without_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("burnish.envs.row_files.FREE_BYTES", 1 << 16)
    train, held_out = tmp_path / "train.json.gz", tmp_path / "held_out.jsonl"
    train.write_bytes(gzip.compress(f"[{asking('a')} x\n".encode() + b"\n" * 2**22))
    held_out.write_text(asking("b") + "\n")
    with pytest.raises(ValueError, match=r"train\.json\.gz: the compressed file unpacks to more than 250 times its size"):
        read_task_files(TasksConfig(train=str(train), held_out=str(held_out), max_rejects=1))


def test_as_many_unfit_rows_as_a_recipe_allows_are_left_out_and_kept_with_their_reasons(tmp_path: Path) -> None:
    train, held_out = tmp_path / "train.jsonl", tmp_path / "held_out.jsonl"
    train.write_text("\n".join([asking("a", id="x"), "{", asking("b", id="x"), asking("c")]) + "\n")
    held_out.write_text("\n".join([asking("d"), line(messages=[])]) + "\n")

    def table(allowed: int) -> TasksConfig:
        return TasksConfig(train=str(train), held_out=str(held_out), max_rejects=allowed)

    found = read_task_files(table(3))
    assert [row.messages[0].text for row in found.train] == ["a", "c"] and len(found.held_out) == 1
    assert [one.where.rpartition("/")[2] for one in found.rejects] == ["train.jsonl:2", "train.jsonl:3", "held_out.jsonl:2"]
    with pytest.raises(ValueError, match=r"tasks.max_rejects: 2 rows may be left out, and 3 are unfit$"):
        read_task_files(table(2))
    (tmp_path / "run").mkdir()
    file = RunFolder(tmp_path / "run").write_rejects(found.rejects)
    assert [json.loads(row)["field"] for row in file.read_text().splitlines()] == ["", "id", "messages"]
    held_out.write_text("{\n")
    with pytest.raises(ValueError, match="holds no row that is fit"):
        read_task_files(table(9))
    held_out.write_text(asking("a") + "\n")
    with pytest.raises(ValueError, match="must never be"):
        read_task_files(table(9))
