"""An environment that behaves or misbehaves as the policy's text asks; served by the tests."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium

from burnish.envs.contract import register_env
from burnish.envs.spaces import MessagesSpace, UnicodeText
from burnish.envs.types import Message
from burnish.rpc.batches import cancelled


@register_env("test/Puppet-v0")
class Puppet(gymnasium.Env[Any, str]):
    """Counts its steps and does what it is told.

    "end", "truncate"; "raise"; "nan"; "set", a datum that is no JSON; "sleep SECONDS" or "hold NAME", for
    as long as there is no file called NAME.go beside `file`, both until told to stop. file: gets a line for
    whatever happens to the environment; relative to the folder for temporary files.
    """

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space, action_space = MessagesSpace(), UnicodeText()

    def __init__(self, file: str = "", broken: bool = False) -> None:
        if broken:
            raise OSError("no bench")
        self._file = Path(tempfile.gettempdir(), file) if file else None
        self._note("made")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        task, told = (options or {}).get("task"), (options or {}).get("episode_id")
        data = {"seed": seed, "told": told, "task": task and {"id": task.id, **task.data}}
        schema = {"type": "function", "function": {"name": "measure", "description": "", "parameters": {"type": "object"}}}
        return (Message("system", "Do as told."), Message("user", "begin")), {"tools": [schema], "data": data, "private": object()}

    def step(self, action: str) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._steps += 1
        self._note(f"step {self._steps}")
        word, _, rest = action.partition(" ")
        data: dict[str, Any] = {}
        if word == "raise":
            raise RuntimeError("the gauge is broken")
        if word == "set":
            data["truth"] = {1, 2}
        if word in ("sleep", "hold"):
            until = time.monotonic() + (float(rest) if word == "sleep" else float("inf"))
            go = self._file.with_name(f"{rest}.go") if self._file is not None and word == "hold" else None
            while time.monotonic() < until and not cancelled() and not (go and go.exists()):
                time.sleep(0.01)
            self._note("cancelled" if cancelled() else "slept")
        reward = float("nan") if word == "nan" else 0.25
        info = {"reward_parts": {"steps": 0.25}, "metrics": {"steps": float(self._steps)}, "labels": {"said": word}, "data": data}
        return (Message("user", f"{self._steps}: {action}"),), reward, word == "end", word == "truncate", info

    def close(self) -> None:
        self._note("closed")

    def _note(self, what: str) -> None:
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(what + "\n")
