"""Examples from files and generators, and the line that is named when one is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from burnish.envs.types import Message
from burnish.trainer.data.sources import Conversation, conversations, documents
from burnish.trainer.phases.supervised import CPTConfig, SFTConfig

pytestmark = pytest.mark.unit

CHAT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]


def write_rows(file: Path, *rows: object) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_documents_are_paragraphs_or_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\nline two\n\n\n\nthree\n")
    assert documents(CPTConfig(steps=1, data=str(tmp_path / "a.txt")), 0) == ["one\nline two", "three"]
    rows = write_rows(tmp_path / "a.jsonl", {"text": "x"}, {"text": "y", "id": 3})
    assert documents(CPTConfig(steps=1, data=rows), 0) == ["x", "y"]


def test_conversations_keep_their_tools(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    rows = write_rows(tmp_path / "a.jsonl", {"messages": CHAT, "tools": [tool]}, {"messages": CHAT})
    first, second = conversations(SFTConfig(steps=1, data=rows), 0)
    assert first == Conversation((Message("user", "2 + 2?"), Message("assistant", "4")), (tool,))
    assert second.tools == ()
    assert (first.where, second.where) == (f"{rows}:1", f"{rows}:2")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "x"}, "messages: must be a list of messages, at least one"),
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
        conversations(SFTConfig(steps=1, data=rows), 0)


def test_a_row_without_text_and_a_broken_line_are_named(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "a.jsonl", {"text": "x"}, {"txt": "y"})
    with pytest.raises(ValueError, match=r'a\.jsonl:2: text: a row for continued pre-training needs "text", a string'):
        documents(CPTConfig(steps=1, data=rows), 0)
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{"text"')
    with pytest.raises(ValueError, match=r"b\.jsonl:2: not JSON"):
        documents(CPTConfig(steps=1, data=str(tmp_path / "b.jsonl")), 0)


def test_a_file_without_examples_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"sft: .*a\.jsonl gives no example"):
        conversations(SFTConfig(steps=1, data=str(tmp_path / "a.jsonl")), 0)


def test_generators_get_seed_count_and_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_corpus_for_data_test.py").write_text(
        "def texts(seed, count, word='x'):\n    return (f'{word}{seed + i}' for i in range(count))\n"
        "def chats(seed, count):\n    yield [{'role': 'user', 'content': str(seed)}, {'role': 'assistant', 'content': str(count)}]\n"
        "def numbers(seed, count):\n    return [1]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    table = CPTConfig(steps=2, batch=2, generate="my_corpus_for_data_test:texts", args={"word": "w"})
    assert documents(table, 5) == ["w5", "w6", "w7", "w8"]
    assert documents(table, 5, limit=2) == ["w5", "w6"]
    (chat,) = conversations(SFTConfig(steps=3, batch=2, generate="my_corpus_for_data_test:chats"), 9)
    assert [message.text for message in chat.messages] == ["9", "6"]
    with pytest.raises(ValueError, match=r"cpt\.generate: my_corpus_for_data_test:numbers must give strings, not int"):
        documents(CPTConfig(steps=1, generate="my_corpus_for_data_test:numbers"), 0)
    with pytest.raises(ValueError, match=r"my_corpus_for_data_test has no function 'text'; did you mean 'texts'\?"):
        documents(CPTConfig(steps=1, generate="my_corpus_for_data_test:text"), 0)
    with pytest.raises(ValueError, match=r"cpt\.generate: module no_such_module cannot be imported: ModuleNotFoundError"):
        documents(CPTConfig(steps=1, generate="no_such_module:f"), 0)
