"""A watch over this process: whether anything in a block reaches out for what a value from a peer names.

A peer is a client or a server of the services, whoever wrote a row of data, a model folder, or a run folder that is opened to be looked
at. Python's audit hooks see every import, file, process and socket of this process; what gRPC's own code connects to, a listener sees.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.envs.failures import EpisodeFailure
from burnish.envs.tools import ToolRejected
from burnish.rpc.errors import RpcError

MARK = "burnish_canary"
HOST = "127.66.66.66"
WATCHED = ("import", "open", "exec", "socket.", "subprocess.", "os.", "pickle.", "ctypes.", "sqlite3.", "urllib.", "shutil.", "glob.")
CALL_S = 120.0
REFUSALS = (ValueError, OSError, EpisodeFailure, RpcError, ToolRejected, grpc.RpcError)
"""How a peer's nonsense may end."""


@dataclass
class Watch:
    """What reached an importer, a file, a process or a socket, and names a canary."""

    folder: Path
    listener: socket.socket
    seen: list[str] = field(default_factory=list)
    on: bool = False

    @property
    def payloads(self) -> tuple[str, ...]:
        """What names code, files and addresses in the ways that burnish reads them."""
        place = f"{HOST}:{self.listener.getsockname()[1]}"
        code = (f"{MARK}:run", f"{self.folder}/{MARK}.py:run", f"{MARK}:{MARK}/Env-v0", f"{MARK}/Env-v0")
        files = (f"{self.folder}/{MARK}.txt", f"../{MARK}.txt", f"--plugin={MARK}.py")
        template = f"{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}{{% include '{self.folder}/{MARK}.txt' %}}"
        return (*code, *files, place, f"http://{place}/{MARK}", template)

    @contextlib.contextmanager
    def over(self, what: str) -> Iterator[None]:
        """Fail when anything in the block reaches out for a canary. Refusals are swallowed."""
        self.seen.clear()
        self.on = True
        try:
            with contextlib.suppress(*REFUSALS):
                yield
        finally:
            self.on = False
        assert not self.seen, f"{what}: {self.seen[:3]}"
        with pytest.raises(BlockingIOError):
            self.listener.accept()

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event.startswith(WATCHED):
            told = repr(arguments)
            if event == "open" and isinstance(arguments[0], str):
                told += os.path.realpath(arguments[0])  # a link is opened by its own name
            if MARK in told or HOST in told:
                self.seen.append(f"{event} {told:.200}")


@contextlib.contextmanager
def watching(folder: Path) -> Iterator[Watch]:
    """A watch over a folder of canaries, one of which could be imported."""
    (folder / f"{MARK}.py").write_text("def run(*args, **kwargs): return ''\n")
    (folder / f"{MARK}.txt").write_text("secret")
    with socket.socket() as listener, pytest.MonkeyPatch.context() as patch:
        listener.bind((HOST, 0))
        listener.listen()
        listener.setblocking(False)
        patch.syspath_prepend(str(folder))
        made = Watch(folder, listener)
        sys.addaudithook(made.hook)  # for as long as this process lives; it does nothing while it is off
        yield made


MARKUP = "</pre><script>alert(1)</script>\x1b]0;owned\x07\u202e"
"""What would run in a browser, or steer a terminal."""


def steers(text: str) -> bool:
    """Whether a text does something to what shows it."""
    return any(sign in text for sign in ("<script>alert", "\x1b]", "\u202e", "\x07"))


def burnish(*arguments: str | Path) -> str:
    """What a command says, whether it goes well or not."""
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), (arguments, done.exception)
    assert "fault in burnish" not in done.output, done.output
    return done.output


def json_leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from json_leaves(value[key], (*path, key))


def json_changed(value: Any, payload: str) -> Iterator[tuple[str, Any]]:
    """The value with each part of it replaced by the payload, and with the payload as a further key of each object."""
    for path in list(json_leaves(value))[1:]:
        copy = json.loads(json.dumps(value))
        here = copy
        for step in path[:-1]:
            here = here[step]
        if isinstance(here[path[-1]], dict):
            here[path[-1]][payload] = payload
            yield f"{path} as a key", json.loads(json.dumps(copy))
        here[path[-1]] = payload
        yield f"{path}", copy


TALK = [
    {"role": "user", "content": "2 + 2?"},
    {
        "role": "assistant",
        "content": "4",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
    },
    {"role": "tool", "content": "4", "tool_call_id": "1", "name": "f"},
    {"role": "assistant", "content": "4"},
]
