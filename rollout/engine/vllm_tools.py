"""vLLM's own tool parsers, behind the registry of tool parsers: `vllm/kimi_k2-v1` is the one that vLLM calls kimi_k2.

They are made for servers: they want a tokenizer and a request in OpenAI's types, and give back text that they cannot read as the model's
answer. Here they get a vocabulary in which every marker has an id, and an answer that still holds the mark of a call is a call that
could not be read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ...envs.registry import ID_PATTERN, did_you_mean
from ...envs.tool_calls import Malformed, Parsed, ToolParser, checked_calls
from ...rpc.extras import require

CALL_MARKS = (
    *("<tool_call>", "<tool_calls>", "<function=", "<function_call>", "<start_function_call>", "[TOOL_CALLS]", "functools["),
    *("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<|python_tag|>"),
    *("<minimax:tool_call>", "<dots_function_call>", "<longcat_tool_call>"),
)
"""What calls begin with in the formats of these parsers: an answer that holds one is a call that could not be read."""


LATER_TOKENS = ("[ARGS]",)
"""Tokens by which a parser tells a later format of its family from an earlier one. Without the model's own tokenizer both are read: the
later first, and the earlier where that finds no call."""


class _Vocabulary(dict[str, int]):
    """Has every token but the `absent` ones: which ids markers have matters to streams only, and whole texts are read here."""

    def __init__(self, absent: Collection[str] = ()) -> None:
        super().__init__()
        self.absent = absent

    def __missing__(self, token: str) -> int:
        self[token] = len(self)
        return self[token]

    def get(self, token: str, default: Any = None) -> int:
        return self[token]

    def __contains__(self, token: object) -> bool:
        return token not in self.absent


class _Tokenizer:
    """As much of a tokenizer as parsers of whole texts ask for."""

    all_special_tokens: Sequence[str] = ()
    all_special_ids: Sequence[int] = ()
    chat_template = None
    eos_token_id = 0
    eos_token = bos_token = ""

    def __init__(self, absent: Collection[str]) -> None:
        self.vocab = _Vocabulary(absent)

    def get_vocab(self) -> _Vocabulary:
        return self.vocab

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        return self.vocab[tokens] if isinstance(tokens, str) else [self.vocab[token] for token in tokens]

    def encode(self, text: str, **_: Any) -> list[int]:
        return [self.vocab[text]]

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return ""


def vllm_parser(id: str) -> ToolParser:
    """The parser `vllm/<name>-v1`. Raises ValueError when vLLM is missing or has none of that name."""
    match = ID_PATTERN.match(id)
    assert match, f"{id!r} is no component id"
    require(f"tool-call parser {id}", ["vllm"], "cpu")
    from vllm.tool_parsers import ToolParserManager

    known = ToolParserManager.list_registered()
    if match["name"] not in known:
        raise ValueError(f"vLLM has no tool parser {match['name']!r}{did_you_mean(match['name'], known)}")
    made = ToolParserManager.get_tool_parser(match["name"])

    def parse(text: str, tools: Sequence[Mapping[str, Any]]) -> Parsed:
        return _parse(made, text, tools)

    try:
        parse("hello", [])
    except NotImplementedError:
        raise ValueError(f"vLLM's tool parser {match['name']!r} does not read whole texts") from None
    return parse


def _parse(made: Any, text: str, tools: Sequence[Mapping[str, Any]]) -> Parsed:
    later = _read(made, text, tools, ())
    last = max(text.rfind(mark) for mark in CALL_MARKS)
    if not isinstance(later, Malformed) or last < 0:
        return later
    earlier = _read(made, text, tools, LATER_TOKENS)
    if not isinstance(earlier, Malformed):
        return earlier
    for absent in ((), LATER_TOKENS):  # what breaks off is the last
        whole = _read(made, text[:last], tools, absent)
        if not isinstance(whole, Malformed):
            return Malformed(later.reason, whole)
    return later


def _read(made: Any, text: str, tools: Sequence[Mapping[str, Any]], absent: Collection[str]) -> Parsed:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    request = ChatCompletionRequest(
        model="policy", messages=[{"role": "user", "content": ""}], tools=[dict(tool) for tool in tools] or None
    )
    parser = made(_Tokenizer(absent), request.tools)
    try:
        found = parser.extract_tool_calls(text, request)
    except NotImplementedError:
        raise
    except Exception as error:  # what the policy wrote is its own doing, whatever a parser makes of it
        return Malformed(f"the tool call cannot be read ({type(error).__name__})")
    if found.tool_calls:
        return checked_calls([(call.function.name, call.function.arguments) for call in found.tool_calls], tools)
    if found.tools_called or any(mark in text for mark in CALL_MARKS):
        return Malformed("the tool call cannot be read; write it exactly as the tools' description says")
    return ()


def vllm_forced_calls(id: str, tools: Sequence[Mapping[str, Any]], only: str | None) -> dict[str, Any] | None:
    """The structural tag, as JSON, that lets a model write nothing but calls of these tools in the form that `vllm/<name>-v1` reads; None
    where vLLM knows no such form. only: the one tool that is called, once; None, any of them, once or several times. Raises ValueError for
    tools of which no form can be made."""
    match = ID_PATTERN.match(id)
    assert match, f"{id!r} is no component id"
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers import ToolParserManager
    from vllm.tool_parsers.tool_strict_level import ToolStrictLevel

    made = ToolParserManager.get_tool_parser(match["name"])
    choice: Any = {"type": "function", "function": {"name": only}} if only else "required"
    rows: list[Any] = [dict(tool) for tool in tools]
    request = ChatCompletionRequest(model="policy", messages=[{"role": "user", "content": ""}], tools=rows, tool_choice=choice)
    form = made(_Tokenizer(()), request.tools).get_structural_tag(request, strict_level=ToolStrictLevel.PARAMETER)
    return None if form is None else dict(form.model_dump(mode="json"))
