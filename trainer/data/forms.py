"""What a row is, told by its keys: the forms of data that are read, and what is made of each.

form             keys                                                    is
document         text                                                    a text whose every token is learned
conversation     messages, with an assistant's answer                    OpenAI's, tool calls with string arguments included
answer           prompt and response (or completion)                     a conversation of one question and its answer
preference       chosen and rejected, with prompt or messages or none    two answers of which one is better
task             messages that end with the user's                       a prompt for reinforcement (Nova's rows; OpenAI's)
verl task        prompt, a list, and reward_model                        the same, as verl has it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...envs.rows import MAX_VALUES
from ...envs.types import Message, check_arguments, message_from_dict, refuse_unread

Form = Literal["document", "conversation", "answer", "preference", "task", "verl task"]

ROW_KEYS = ("messages", "tools", "id", "metadata")
"""Of a conversation; the last two are notes of one's own, which nothing is made of."""
ANSWER_KEYS = ("prompt", "response", "completion", "system", "id", "metadata")
PREFERENCE_KEYS = ("prompt", "messages", "chosen", "rejected", "tools", "id", "metadata")


@dataclass(frozen=True, slots=True)
class Document:
    """A text to read. Example: `Document("A bore is a hole.", "notes.txt:3")`."""

    text: str
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation to imitate: its messages, the JSON schemas of the tools that the prompt offers, and where it comes from.

    Example: `Conversation((Message("user", "2 + 2?"), Message("assistant", "4")), where="train.jsonl:3")`.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Preference:
    """Two ways to go on from a prompt, the better one first. Example: `Preference((Message("user", "2 + 2?"),), (yes,), (no,))`."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


Item = Document | Conversation


def form_of(row: Mapping[str, Any]) -> Form | None:
    """The form of a row by its keys, None when it is none that is known. Whether it is well-formed is another question."""
    if "chosen" in row or "rejected" in row:
        return "preference"
    if "messages" in row:
        messages = row["messages"]
        last = messages[-1] if isinstance(messages, list) and messages else None
        return "conversation" if isinstance(last, Mapping) and last.get("role") == "assistant" else _asked_or_answered(messages)
    if "prompt" in row:
        if "response" in row or "completion" in row:
            return "answer"
        return "verl task" if "reward_model" in row or "data_source" in row else None
    return "document" if "text" in row else None


def _asked_or_answered(messages: Any) -> Form:
    """A conversation may go on after its last answer: a task is one that holds none."""
    rows = messages if isinstance(messages, list) else []
    return "conversation" if any(isinstance(row, Mapping) and row.get("role") == "assistant" for row in rows) else "task"


def read_document(row: Mapping[str, Any], where: str = "") -> Item:
    """A document, or, where a row holds a conversation, that: a chat may be read as a document too. Raises ValueError, `field: what`."""
    if form_of(row) in ("conversation", "answer"):
        return read_conversation(row, where)
    text = row.get("text")
    if not isinstance(text, str) or not text:
        raise ValueError('text: a row for continued pre-training needs "text", a string that is not empty')
    return Document(text, where)


def read_conversation(row: Mapping[str, Any], where: str = "") -> Conversation:
    """A conversation, or a question with its answer as one. Raises ValueError, `field: what is wrong`."""
    form = form_of(row)
    if form == "answer":
        return _answer(row, where)
    if form == "preference" and "messages" not in row:
        raise ValueError("chosen: the row is a preference pair; imitate its better answer by writing it as messages")
    if form == "verl task":
        raise ValueError("prompt: the row is a task, which has no answer to learn from; give it to [tasks]")
    if "messages" not in row:
        raise ValueError(no_messages(row))
    return conversation_of(row["messages"], row, where)


def no_messages(row: Mapping[str, Any]) -> str:
    """What is said of a row without messages where they are needed: `messages: the row has none, …`, with what it has."""
    if form_of(row) == "document":
        return "messages: the row has none, but a text; [cpt] and [midtrain] read documents"
    return f"messages: the row has none; its keys are {', '.join(map(repr, list(row)[:8]))}" if row else "messages: the row is empty"


def conversation_of(messages: Any, row: Mapping[str, Any], where: str = "") -> Conversation:
    """The conversation of these messages, and of the tools and nothing else of `row`."""
    tools = row.get("tools") or ()
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError("messages: must be a list of messages, at least one")
    refuse_unread(row, ROW_KEYS)
    read = read_messages(messages, "messages")
    if not any(message.role == "assistant" for message in read):
        raise ValueError("messages: none is the assistant's, so there is nothing to learn from")
    return Conversation(read, _tools(tools), where)


def read_preference(row: Mapping[str, Any]) -> Preference:
    """A preference pair, its answers as texts, messages or lists of them; a prompt that both begin with may stand in both.

    Raises ValueError, `field: what is wrong`.
    """
    refuse_unread(row, PREFERENCE_KEYS)
    prompt = _said(row.get("prompt", row.get("messages", [])), "user", "prompt")
    chosen, rejected = (_said(row.get(key), "assistant", key) for key in ("chosen", "rejected"))
    if not prompt:
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    for key, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer or answer[-1].role != "assistant":
            raise ValueError(f"{key}: must end with an answer of the assistant's")
    if not prompt:
        raise ValueError("prompt: there is none, and the two answers share no beginning")
    if chosen == rejected:
        raise ValueError("rejected: is the same as chosen")
    return Preference(prompt, chosen, rejected, _tools(row.get("tools") or ()))


def read_messages(messages: Sequence[Any], field: str) -> tuple[Message, ...]:
    """Messages as OpenAI has them. Raises ValueError, `field[i]: what is wrong`."""
    check_arguments(messages, MAX_VALUES, field)
    return tuple(_message(message, f"{field}[{i}]") for i, message in enumerate(messages))


def as_task_row(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of verl's as one of ours: its prompt are the messages, its `reward_model.ground_truth` is the reference answer, and what else
    it says stays in the task's data. Any other row is returned as it is. Raises ValueError, `field: what is wrong`."""
    if form_of(row) != "verl task":
        return row
    judged = row.get("reward_model")
    if not isinstance(judged, Mapping) or "ground_truth" not in judged:
        raise ValueError('reward_model: must read {"ground_truth": …, "style": …}')
    taken = ("messages", "reference_answer")
    twice = [key for key in taken if key in row]
    if twice:
        raise ValueError(f"{twice[0]}: a row with prompt and reward_model has it there already; remove one of them")
    rest = {key: value for key, value in row.items() if key not in ("prompt", "reward_model")}
    told = {key: value for key, value in judged.items() if key != "ground_truth"}
    return {**rest, "messages": row["prompt"], "reference_answer": judged["ground_truth"], **({"reward_model": told} if told else {})}


def _answer(row: Mapping[str, Any], where: str) -> Conversation:
    refuse_unread(row, ANSWER_KEYS)
    if "response" in row and "completion" in row:
        raise ValueError("completion: is another name of response, which the row has too; remove one of them")
    key = "response" if "response" in row else "completion"
    asked = _said(row["prompt"], "user", "prompt")
    system = _said(row.get("system") or [], "system", "system")
    answer = _said(row[key], "assistant", key)
    if not asked or not answer or answer[-1].role != "assistant":
        raise ValueError(f"{'prompt' if not asked else key}: must not be empty")
    return Conversation((*system, *asked, *answer), (), where)


def _said(value: Any, role: Literal["system", "user", "assistant"], field: str) -> tuple[Message, ...]:
    """A text as a message of `role`, a message or a list of them as they are."""
    if isinstance(value, str):
        return (Message(role, value),) if value else ()
    if isinstance(value, Mapping):
        return (message_from_dict(value, field),)
    if isinstance(value, list | tuple):
        return read_messages(value, field)
    raise ValueError(f"{field}: must be a text or a list of messages, not {type(value).__name__}")


def _message(message: Any, where: str) -> Message:
    if isinstance(message, Message):
        return message
    if not isinstance(message, Mapping):
        raise ValueError(f"{where}: must be a message, not {type(message).__name__}")
    return message_from_dict(message, where)


def _tools(tools: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError("tools: must be a list of JSON schemas")
    return tuple(tools)
