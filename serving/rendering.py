"""Serving renders as training does: the model is asked what its rollouts asked it, token for token.

A completion's prompt is rendered by nobody: it reaches the model as it stands, control tokens in it being control tokens. Only where the
model stops is as in training.

vLLM renders the messages of a request by the model's template, whatever they hold. Before they reach it, they become what
`rollout.renderers` gives the template: control tokens in them broken up, tools where the template has them, the template's variables and
the ends of a turn those of training.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..envs.tool_calls import write_pythonic
from ..envs.types import Message as ChatMessage
from ..envs.types import message_from_dict
from ..rollout.renderers import Renderer
from .forced_calls import PYTHONIC, forced_calls
from .requests import invalid
from .tool_calls import PARSER_HEADER, forced_tool
from .wire import ANSWERED, COMPLETIONS, path_of, read_request, refuse, with_request


class RenderedChatApp:
    """ASGI middleware between the strict application and vLLM's. What cannot be rendered is the client's error, status 400.

    parser: the id of what reads the model's tool calls, said with every answer. writes_calls: whether calls of earlier turns have to be
    written into the text, because the template leaves them out.
    """

    def __init__(self, app: ASGIApp, renderer: Renderer, parser: str = PYTHONIC, writes_calls: bool = False) -> None:
        self._app, self._renderer, self._parser, self._writes_calls = app, renderer, parser.encode(), writes_calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or path_of(scope) not in ANSWERED:
            await self._app(scope, receive, send)
            return
        if path_of(scope) == COMPLETIONS:
            request = await read_request(scope, receive)
            await self._app(*with_request(scope, receive, {**request, **_ends(request, self._renderer)}), send)
            return
        asked, param = await read_request(scope, receive), "messages"
        try:
            # The loop is the engine's, and what is to be read may be megabytes.
            request = await asyncio.to_thread(as_in_training, asked, self._renderer, self._writes_calls)
            param = "tool_choice"
            forced, name = forced_tool(asked.get("tool_choice"))
            if forced:
                request["structured_outputs"] = forced_calls(self._parser.decode(), asked["tools"], name)
        except ValueError as error:
            await refuse(send, invalid(str(error), param))
            return

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (PARSER_HEADER, self._parser)]}
            await send(message)

        await self._app(*with_request(scope, receive, request), named)


def as_in_training(request: Mapping[str, Any], renderer: Renderer, writes_calls: bool = False) -> dict[str, Any]:
    """The request that makes vLLM render the messages as a rollout would, and stop where a rollout would.

    Tools are rendered and nothing else: calls come back in the answer's text, as the policy writes them, with the control tokens that may
    be part of them unless `tool_choice` is "none". writes_calls: write those of earlier turns into their text. Raises ValueError naming
    what of the messages is wrong or not read.
    """
    rows, tools = request.get("messages"), request.get("tools") or ()
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError("messages must be a list of messages")
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError("tools must be a list of functions")
    messages = [message_from_dict(row, f"messages[{i}]") for i, row in enumerate(rows)]
    if writes_calls:
        messages = [_in_words(message, tools) for message in messages]
    given = renderer.request(messages, tools)
    made = {key: value for key, value in request.items() if key not in ("messages", "tools", "tool_choice")} | given
    if tools and request.get("tool_choice") != "none":
        made.setdefault("skip_special_tokens", False)
    if "tools" in given:
        made["tool_choice"] = "none"
    if renderer.template_args:
        made["chat_template_kwargs"] = dict(renderer.template_args)
    return made | _ends(request, renderer)


def _ends(request: Mapping[str, Any], renderer: Renderer) -> dict[str, Any]:
    """Where the model stops: at the ends of its turns too, unless the request goes on beyond all of them."""
    if request.get("ignore_eos"):
        return {}
    own = request.get("stop_token_ids") or []
    return {"stop_token_ids": [*own, *(id for id in renderer.stop_token_ids if id not in own)] if isinstance(own, list) else own}


def _in_words(message: ChatMessage, tools: Sequence[Mapping[str, Any]]) -> ChatMessage:
    if not message.tool_calls:
        return message
    said = "\n".join(part for part in (message.text, write_pythonic(message.tool_calls, tools)) if part)
    return replace(message, content=said, tool_calls=())
