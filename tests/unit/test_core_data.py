"""Examples from files and generators, and the line that is named when one is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from burnish.envs.types import Message
from burnish.trainer.data.forms import Conversation
from burnish.trainer.data.sources import Found, Reject, read_conversations, read_documents, sources_of
from burnish.trainer.phases.cpt import CPTConfig
from burnish.trainer.phases.sft import SFTConfig
from burnish.trainer.phases.supervised import SupervisedConfig

pytestmark = pytest.mark.unit

CHAT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]


def write_rows(file: Path, *rows: object) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def own(table: SupervisedConfig, seed: int = 0, limit: int | None = None) -> list[Found]:
    """What the own source of a table gives."""
    (source,) = sources_of(table.supervised_rows, seed, limit)
    return list(source.found())


def texts(table: CPTConfig, seed: int = 0, limit: int | None = None) -> list[str]:
    return [getattr(item, "text", str(item)) for item in own(table, seed, limit)]


def test_documents_are_paragraphs_or_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\nline two\n\n\n\nthree\n")
    assert texts(CPTConfig(steps=1, data=str(tmp_path / "a.txt"))) == ["one\nline two", "three"]
    rows = write_rows(tmp_path / "a.jsonl", {"text": "x"}, {"text": "y", "id": 3})
    assert texts(CPTConfig(steps=1, data=rows)) == ["x", "y"] == list(read_documents(rows))


def test_conversations_keep_their_tools(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    rows = write_rows(tmp_path / "a.jsonl", {"messages": CHAT, "tools": [tool]}, {"messages": CHAT})
    first, second = own(SFTConfig(steps=1, data=rows))
    assert isinstance(first, Conversation) and isinstance(second, Conversation)
    assert first == Conversation((Message("user", "2 + 2?"), Message("assistant", "4")), (tool,))
    assert second.tools == ()
    assert (first.where, second.where) == (f"{rows}:1", f"{rows}:2")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "x"}, r"messages: the row has none, but a text; \[cpt\] and \[midtrain\] read documents"),
        ({"message": CHAT}, "messages: the row has none; its keys are 'message'"),
        ({"messages": []}, "messages: must be a list of messages, at least one"),
        ({"messages": [{"role": "boss", "content": "x"}]}, r"messages\[0\]: role 'boss' is unknown"),
        ({"messages": CHAT[:1]}, "messages: none is the assistant's, so there is nothing to learn from"),
        ({"messages": CHAT, "tools": ["x"]}, "tools: must be a list of JSON schemas"),
        ([1], "must be a JSON object, not list"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(tmp_path: Path, row: object, problem: str) -> None:
    rows = write_rows(tmp_path / "a.jsonl", {"messages": CHAT}, row)
    with pytest.raises(ValueError, match=rf"a\.jsonl:2: {problem}"):
        list(read_conversations(rows))
    good, bad = own(SFTConfig(steps=1, data=rows))
    assert isinstance(good, Conversation) and isinstance(bad, Reject)
    assert (bad.file, bad.line) == (rows, 2)
    assert bad.field == ("" if isinstance(row, list) else problem.replace("\\", "").partition(":")[0])


def test_a_row_without_text_and_a_broken_line_are_named(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "a.jsonl", {"text": "x"}, {"txt": "y"})
    with pytest.raises(ValueError, match=r'a\.jsonl:2: text: a row for continued pre-training needs "text", a string'):
        list(read_documents(rows))
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{"text"')
    with pytest.raises(ValueError, match=r"b\.jsonl:2: not JSON"):
        list(read_documents(tmp_path / "b.jsonl"))


def test_generators_get_seed_count_and_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_corpus_for_data_test.py").write_text(
        "def texts(seed, count, word='x'):\n    return (f'{word}{seed + i}' for i in range(count))\n"
        "def chats(seed, count):\n    yield [{'role': 'user', 'content': str(seed)}, {'role': 'assistant', 'content': str(count)}]\n"
        "def numbers(seed, count):\n    return [1]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    table = CPTConfig(steps=2, batch=2, generate="my_corpus_for_data_test:texts", args={"word": "w"})
    assert texts(table, 5) == ["w5", "w6", "w7", "w8"]
    assert texts(table, 5, limit=2) == ["w5", "w6"]
    (chat,) = own(SFTConfig(steps=3, batch=2, generate="my_corpus_for_data_test:chats"), 9)
    assert isinstance(chat, Conversation) and [message.text for message in chat.messages] == ["9", "6"]
    with pytest.raises(ValueError, match=r"cpt\.generate: my_corpus_for_data_test:numbers must give strings, not int"):
        own(CPTConfig(steps=1, generate="my_corpus_for_data_test:numbers"))
    with pytest.raises(ValueError, match=r"my_corpus_for_data_test has no function 'text'; did you mean 'texts'\?"):
        own(CPTConfig(steps=1, generate="my_corpus_for_data_test:text"))
    with pytest.raises(ValueError, match=r"cpt\.generate: module no_such_module cannot be imported: ModuleNotFoundError"):
        own(CPTConfig(steps=1, generate="no_such_module:f"))
    (tmp_path / "data set").mkdir()
    (tmp_path / "data set" / "make.py").write_text("def rows(seed, count):\n    return ['a text'] * count\n")
    in_file = CPTConfig(steps=2, batch=2, generate="data set/make.py:rows")
    assert texts(in_file, 5) == ["a text"] * 4
