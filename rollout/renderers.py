"""Conversations as tokens: one rendering for rollouts, supervised examples and serving.

A chat template renders whole conversations as text. Whatever is rendered here is rendered whole, so that training sees what serving will
see; what was sampled is never tokenised again. When the conversation rendered for the next turn begins with everything that the policy has
seen and said, only what is new is tokenised and appended. When it does not (a template that drops earlier reasoning, or trims answers),
the next turn begins a token sequence of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from ..envs.types import Bool, Int32, Message, ToolCall
from .chat_template import Unbounded, render_chat
from .control_tokens import ControlTokens
from .token_bounds import token_bound

PLACEHOLDER = "PLACEHOLDER"
_ASKED = Message("user", "question")
_SAID = Message("assistant", PLACEHOLDER)
_GIVEN = (
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize", "padding",
    "truncation", "max_length", "return_tensors", "return_dict", "bos_token", "eos_token", "pad_token", "unk_token",
)  # fmt: skip
"""What a template is given with every conversation, and what the tokenizer's own call would take for itself."""


class Tokenizer(Protocol):
    """The part of a fast Hugging Face tokenizer that is used here."""

    chat_template: Any
    eos_token_id: Any
    all_special_tokens: list[str]

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...
    def __call__(self, text: str, /, **kwargs: Any) -> Any: ...
    @property
    def special_tokens_map(self) -> Mapping[str, Any]: ...
    def get_vocab(self) -> dict[str, int]: ...
    def get_chat_template(self, chat_template: Any = None, tools: Any = None, /) -> str: ...
    def encode(self, text: str, /, **kwargs: Any) -> list[int]: ...
    def decode(self, ids: Any, /, **kwargs: Any) -> str: ...


@dataclass(frozen=True, slots=True)
class Said:
    """What the policy said in one turn: `text` for the message, `shown` as it stands in the context, its stop token included.

    Example: `Said("7", "7<|im_end|>")`.
    """

    text: str
    shown: str


class Renderer(Protocol):
    """Renders conversations of one model, always whole. Rendering raises ValueError on a conversation that the template refuses, or that it
    does not come to an end with (`Unbounded`)."""

    @property
    def append_only(self) -> bool:
        """Whether a conversation always grows by appending. Where it may not, an episode can have several trajectories."""
        ...

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an assistant turn."""
        ...

    @property
    def template_args(self) -> Mapping[str, Any]:
        """Variables of the template beside the conversation's."""
        ...

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The conversation as text, up to where the assistant begins to speak."""
        ...

    def answered(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """A conversation that ends with the assistant's message as text, up to the end of that turn. It begins with its `prompt`."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text rendered by `prompt`."""
        ...

    def fits(self, text: str, tokens: int) -> bool:
        """Whether so many tokens may hold a text. Cheap: one that certainly does not fit is not worth the seconds of encoding it."""
        ...

    def encode_after_turn(self, text: str) -> list[int]:
        """Ids of what follows a sampled turn, as they are within the whole."""
        ...

    def encode_spans(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[Int32, Bool]:
        """Ids `[N]` of a whole text, and `[N]` which of them lie within spans of characters `[start, end)`, in order and apart."""
        ...

    def read(self, token_ids: Int32 | Sequence[int]) -> Said:
        """What the policy said."""
        ...

    def request(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """The messages and tools as the template takes them, control tokens broken up: `{"messages": […], "tools": […]}`."""
        ...


def prompt_ids(renderer: Renderer, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
    """The conversation as ids, ready for the assistant to speak. Example: `prompt_ids(renderer, [Message("user", "2 + 2?")])`."""
    return renderer.encode(renderer.prompt(messages, tools))


class TemplateRenderer:
    """The chat template of a Hugging Face tokenizer.

    template_args: further variables of the template (`{"enable_thinking": False}`). Tools are rendered by the template, or, when it knows
    none, listed as JSON in the system message. `takes_calls`: whether it shows the tool_calls of a message.

    Raises ValueError when the tokenizer has no template, when the template ends the assistant's turn with anything but a special token (an
    answer could then not hold that text, and would end on it), and when it has no variable of a name in `template_args`.
    """

    def __init__(self, tokenizer: Tokenizer, template_args: Mapping[str, Any] | None = None) -> None:
        if not tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template; set tokenizer.chat_template in the model folder (ChatML works for most)")
        self._tokenizer = tokenizer
        self._control = ControlTokens(tokenizer)
        self._bound = token_bound(tokenizer)
        self.template_args = dict(template_args or {})
        _check_args(tokenizer.chat_template, self.template_args)
        seen = Message("tool", PLACEHOLDER, tool_call_id="call_0", name="probe_tool")
        shown = {
            "system": self._shows([Message("system", PLACEHOLDER), _ASKED]),
            "tool": self._shows([_ASKED, Message("assistant", "hm"), seen]),
        }
        self._left_out = [role for role, there in shown.items() if there is False]
        self._takes_system = bool(shown["system"])
        self._takes_tools = bool(self._shows([_ASKED], [_tool(PLACEHOLDER)]))
        self.takes_calls = bool(
            self._shows([_ASKED, Message("assistant", "", (ToolCall("call_0", PLACEHOLDER, {}),)), Message("tool", "7")])
        )
        asked, said = self._render([_ASKED], True), self._render([_ASKED, _SAID], False)
        head, found, after = said.partition(PLACEHOLDER)
        if not found:
            raise ValueError("the chat template leaves out what the assistant says")
        self._turn_end, self._turn_end_id = self._end_of_turn(after)
        lead = head.removeprefix(asked) if head.startswith(asked) else ""
        self._lead = lead if lead.isspace() else ""  # a space that the template puts before an answer is not the policy's
        self.append_only = all(self._grows(*probe) for probe in _probes(self._takes_tools))

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """What the template ends an assistant turn with, and the tokenizer's end of sequence."""
        ends = (self._turn_end_id, self._tokenizer.eos_token_id)
        return tuple(dict.fromkeys(int(token) for token in ends if token is not None))

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        return self._render(messages, True, tools)

    def answered(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        asked, text = self._render(messages[:-1], True, tools), self._render(messages, False, tools)
        end = text.rfind(self._turn_end) + len(self._turn_end)
        if not text.startswith(asked) or end <= len(asked):
            raise ValueError(
                f"the chat template does not render the assistant's message as it asks for it: after {asked[-60:]!r} it has "
                f"{text[len(asked) - 60 :][:120]!r}; a template without that difference can be set in the model folder"
            )
        return text[:end]

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def fits(self, text: str, tokens: int) -> bool:
        return self._bound.least(text) <= tokens

    def encode_after_turn(self, text: str) -> list[int]:
        return self.encode(self._turn_end + text)[1:]  # a special token splits the text, as in the whole

    def encode_spans(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[Int32, Bool]:
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return np.array(encoded["input_ids"], np.int32), _within(encoded["offset_mapping"], spans)

    def read(self, token_ids: Int32 | Sequence[int]) -> Said:
        ids = [int(token) for token in token_ids]
        stopped = bool(ids) and ids[-1] in self.stop_token_ids
        spoken = self._decode(ids[:-1] if stopped else ids)
        return Said(spoken.removeprefix(self._lead), spoken + (self._decode(ids[-1:]) if stopped else ""))

    def request(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        for i, message in enumerate(messages):
            if message.role in self._left_out:
                raise ValueError(
                    f"the chat template leaves out messages of role {message.role!r}, as message {i} is; give it as the user's"
                )
            if message.tool_calls and not self.takes_calls:
                raise ValueError(
                    f"the chat template leaves out tool_calls, which message {i} has; write the calls into its content, as the policy is "
                    "to write them"
                )
        if tools and not self._takes_tools:
            messages, tools = with_tools_in_text(messages, tools, "system" if self._takes_system else "user"), ()
        rows = [self._control.all_broken(message.to_dict()) for message in messages]
        return {"messages": rows, **({"tools": self._control.all_broken(list(tools))} if tools else {})}

    def _render(self, messages: Sequence[Message], generate: bool, tools: Sequence[Mapping[str, Any]] = ()) -> str:
        given = self.request(messages, tools)
        rows = given.pop("messages")
        try:
            return self._applied(rows, generate, given)
        except Unbounded:
            raise
        except Exception as error:  # a template is a program of somebody else's, and says in its own ways what it does not take
            raise ValueError(f"the chat template refuses the conversation: {error}") from error

    def _applied(self, rows: list[Any], generate: bool, given: Mapping[str, Any]) -> str:
        return render_chat(self._tokenizer, rows, generate, {**given, **self.template_args})

    def _decode(self, ids: list[int]) -> str:
        """Ids as text in the place they are sampled at: after a token, not at the beginning, where a decoder drops a space."""
        before, after = ([self._turn_end_id], [self._turn_end_id, *ids])
        shown = [self._tokenizer.decode(some, skip_special_tokens=False, clean_up_tokenization_spaces=False) for some in (before, after)]
        return shown[1].removeprefix(shown[0])

    def _end_of_turn(self, after: str) -> tuple[str, int]:
        """The special token among what the template puts after the assistant's content, as text and id."""
        ids = self.encode(after)
        ends = [token for token in self._control.texts if after.lstrip().startswith(token)]
        end = max(ends, key=len, default="")
        if not end:
            raise ValueError(
                f"the chat template ends the assistant's turn with {after[:40]!r}, which is no special token, so an answer could not "
                "be told from its end; add a special token to the tokenizer and end the turn with it"
            )
        (id,) = self.encode(end)
        assert id in ids, "a special token is one token wherever it stands"
        return end, id

    def _shows(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> bool | None:
        """Whether the template shows the placeholder that these messages and tools hold; None when it refuses the conversation."""
        given: dict[str, Any] = {"tools": list(tools)} if tools else {}
        try:
            text = self._applied([message.to_dict() for message in messages], True, given)
        except Unbounded:
            raise
        except Exception:  # a template is a program of somebody else's
            return None
        return PLACEHOLDER in text

    def _grows(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the conversation, rendered at each turn, begins with what stood there before and what was said. True where refused."""
        grown = ""
        for i, message in enumerate(messages):
            if message.role == "assistant":
                try:
                    asked = self.prompt(messages[:i], tools)
                except ValueError:
                    return True
                if not asked.startswith(grown):
                    return False
                grown = asked + self._lead + message.text + self._turn_end
        return True


def _within(tokens: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> Bool:
    """Which tokens, given by their characters, lie within one of the spans, which are in order: of them all it can only be the last that
    begins no later."""
    if not tokens or not spans:
        return np.zeros(len(tokens), np.bool_)
    (begins, ends), (starts, stops) = np.array(tokens, np.int64).T, np.array(spans, np.int64).T
    at = np.searchsorted(starts, begins, side="right") - 1
    return np.array((at >= 0) & (ends <= stops[at]) & (begins < stops[at]), np.bool_)


def _probes(takes_tools: bool) -> list[tuple[list[Message], list[Mapping[str, Any]]]]:
    """Conversations of what policies say: plain, with reasoning, with white space around it, calling a tool; and questions after each."""
    call = '<tool_call>\n{"name": "probe_tool", "arguments": {}}\n</tool_call>'
    probes: list[tuple[list[Message], list[Mapping[str, Any]]]] = []
    for said in ("first", " a \n", "<think>\nhm\n</think>\n\nfirst"):
        talk = [
            _ASKED,
            Message("assistant", said),
            Message("user", "go on"),
            Message("assistant", "second"),
            Message("user", "and now"),
            _SAID,
        ]
        probes += [(talk, []), ([Message("system", "rules"), *talk], [])]
    for said in (call, f"<think>\nhm\n</think>\n\n{call}"):
        seen = Message("tool", "7", tool_call_id="call_0", name="probe_tool")
        talk = [_ASKED, Message("assistant", said), seen, Message("assistant", "second"), Message("user", "and now"), _SAID]
        probes.append((talk, [_tool("probe_tool")] if takes_tools else []))
    return probes


def _tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {}}
    return {"type": "function", "function": {"name": name, "description": "A probe.", "parameters": parameters}}


def _check_args(template: Any, args: Mapping[str, Any]) -> None:
    """Raise ValueError when an argument would have no effect: the template never mentions it, or is given it with every conversation."""
    source = template if isinstance(template, str) else "\n".join(template.values())
    for name in args:
        if name in _GIVEN:
            raise ValueError(f"template_args.{name}: is given to the template with every conversation; remove it")
        if not re.search(rf"\b{re.escape(name)}\b", source):
            raise ValueError(f"template_args.{name}: has no effect, the model's chat template has no such variable; remove it")


def with_tools_in_text(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], role: Literal["system", "user"] = "system"
) -> tuple[Message, ...]:
    """The messages with the tools' JSON schemas in one of them: at the end of the system message, which is added when there is none, or,
    for a template that takes no system message, at the head of the user's first."""
    listing = "Tools you can call:\n" + "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    at = next((i for i, message in enumerate(messages) if message.role == role), None)
    if role == "system":
        if at != 0:
            return (Message("system", listing), *messages)
        return (replace(messages[0], content=f"{messages[0].text}\n\n{listing}"), *messages[1:])
    if at is None:
        return (Message("user", listing), *messages)
    return (*messages[:at], replace(messages[at], content=f"{listing}\n\n{messages[at].text}"), *messages[at + 1 :])
