"""Chat messages to tokens, so that a conversation grows by appending and nothing sampled is ever tokenised again.

A chat template renders whole conversations as text. Here it is asked only for what is new: the prompt once, and after each assistant
turn the text the template puts between the end of that turn's content and the start of the next one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from ..envs.types import Int32, Message

PLACEHOLDER = "PLACEHOLDER"
_ANY_USER = Message("user", "question")


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    chat_template: Any
    eos_token_id: Any
    all_special_tokens: list[str]

    def apply_chat_template(self, conversation: Any, /, **kwargs: Any) -> Any: ...
    def encode(self, text: str, /, **kwargs: Any) -> list[int]: ...
    def decode(self, ids: Any, /, **kwargs: Any) -> str: ...


class ChatFormat:
    """A tokenizer's chat template, used incrementally.

    Raises ValueError when the tokenizer has no chat template, or one under which a conversation does not grow by appending (a template
    that rewrites earlier turns, for example to drop their reasoning): training tokens would then differ from sampled ones.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template; set tokenizer.chat_template in the model folder (ChatML works for most)")
        self._tokenizer = tokenizer
        self._takes_tools = "tools" in str(tokenizer.chat_template)
        self._special = tuple(token for token in tokenizer.all_special_tokens if token)
        self._turn_end = self._encode(self._after_assistant((), generate=False))
        if not self._turn_end:
            raise ValueError("the chat template puts nothing after an assistant message, so the end of a turn cannot be recognised")
        self._check_incremental()

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an assistant turn: the first one the template puts after its content, and the tokenizer's end of sequence."""
        ends = [self._turn_end[0], self._tokenizer.eos_token_id]
        return tuple(dict.fromkeys(int(token) for token in ends if token is not None))

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The conversation so far, ready for the assistant to speak.

        Tools are rendered by the template, or, when it knows none, as JSON at the end of the system message.
        """
        if tools and not self._takes_tools:
            messages, tools = with_tools_in_system(messages, tools), ()
        return self._encode(self._render(messages, generate=True, tools=tools))

    def continuation_ids(self, new_messages: Sequence[Message], after_stop: bool) -> list[int]:
        """Tokens that follow a sampled assistant turn: its end, the new messages, and the start of the next assistant turn.

        after_stop: the turn ended with its stop token, which is then not repeated.
        """
        ids = self._encode(self._after_assistant(new_messages, generate=True))
        return ids[1:] if after_stop else ids

    def assistant_ids(self, text: str) -> list[int]:
        """An assistant turn as the policy would sample it: its text, then the end-of-turn token. For demonstrations."""
        return [*self._encode(text), self._turn_end[0]]

    def text(self, token_ids: Int32 | Sequence[int]) -> str:
        """What the policy said: sampled tokens as text, without the stop token that ended them."""
        ids = [int(token) for token in token_ids]
        if ids and ids[-1] in self.stop_token_ids:
            ids.pop()
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _render(self, messages: Sequence[Message], generate: bool, tools: Sequence[Mapping[str, Any]] = ()) -> str:
        rows = [self._harmless(message).to_dict() for message in messages]
        extra = {"tools": [dict(tool) for tool in tools]} if tools else {}
        return str(self._tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=generate, **extra))

    def _after_assistant(self, new_messages: Sequence[Message], generate: bool) -> str:
        rendered = self._render([_ANY_USER, Message("assistant", PLACEHOLDER), *new_messages], generate)
        return rendered.partition(PLACEHOLDER)[2]

    def _harmless(self, message: Message) -> Message:
        """The message with special tokens in its text broken up: no environment or tool can end a turn or speak as another role."""
        text = message.text
        for token in self._special:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return replace(message, content=text)

    def _check_incremental(self) -> None:
        conversation = [
            Message("system", "rules"),
            _ANY_USER,
            Message("assistant", "first"),
            Message("user", "go on"),
            Message("assistant", "second"),
            Message("user", "and now"),
        ]
        grown = self._render(conversation[:2], generate=True)
        for i in (2, 4):
            grown += conversation[i].text + self._after_assistant(conversation[i + 1 : i + 2], generate=True)
        whole = self._render(conversation, generate=True)
        if grown != whole:
            raise ValueError(
                "the chat template rewrites earlier turns, so a conversation cannot grow by appending; "
                f"rendered whole it reads {whole!r}, grown turn by turn {grown!r}"
            )


def with_tools_in_system(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """The messages with the tools' JSON schemas appended to the system message, which is added when there is none."""
    listing = "Tools you can call:\n" + "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    if messages and messages[0].role == "system":
        return (replace(messages[0], content=f"{messages[0].text}\n\n{listing}"), *messages[1:])
    return (Message("system", listing), *messages)
