"""A service as a process of its own: started, waited for, stopped, and never orphaned; and whether another interpreter could run it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from burnish.hosting.services import PROTOCOL, ServiceKind

READY_S = 60.0
MOST_LINES = 12
"""Of a log, that an error shows."""
END_S = 2.0
STOP_S = 15.0  # longer than a server's own drain


class ServiceProcess:
    """A verifier, tool or environment service in a process of its own: `start()`, use `address`, `stop()`.

    It is killed by the kernel when this process dies, whatever the cause, and does not see the terminal's Ctrl-C: whoever started it
    decides when it stops. Its output goes to `log`. kwargs: what an environment is made with; other services take none. arguments: further
    options of the program, such as `--tls-cert`. python: the interpreter that runs it, this one when None.

    Example: `with ServiceProcess("verifier", "my_module:my_verifier", log=run_folder / "verifier.log") as service: service.address`.
    """

    def __init__(
        self,
        kind: ServiceKind,
        target: str,
        log: Path,
        port: int = 0,
        ready_s: float = READY_S,
        kwargs: Mapping[str, Any] | None = None,
        arguments: Sequence[str] = (),
        python: Path | None = None,
    ) -> None:
        assert kind == "environment" or not kwargs, f"a {kind} service takes no kwargs"
        self.kind = kind
        self.target = target
        self.kwargs = dict(kwargs or {})
        self.log = log
        self.port = port
        self.ready_s = ready_s
        self.arguments = tuple(arguments)
        self.python = python
        self.address = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> str:
        """Start it and wait until it listens; returns the address.

        Raises ValueError with the last lines of its log when it ends or is silent for `ready_s` seconds.
        """
        assert not self.alive, "the service is already running"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        before = self.log.stat().st_size if self.log.exists() else 0  # of an earlier start
        read, write = os.pipe()
        try:
            # The kernel ties "parent death" to the thread that forked, so all services are forked by one thread that lives on.
            self._process = _spawner().submit(self._spawn, write).result(timeout=self.ready_s)
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        with open(read, "rb", buffering=0) as ready:
            try:
                line = _read_line(ready.fileno(), self.ready_s)
            except BaseException:
                self.stop(grace_s=0)
                raise
        if not line:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)  # one that ended has closed its pipe a moment before
            why = f"said nothing for {self.ready_s:g} s" if self.alive else f"ended with code {self._process.wait(STOP_S)}"
            self.stop(grace_s=0)
            raise ValueError(f"{self.kind} service {self.target!r} did not start: {_explained(why, self.log, before)}")
        self.address = str(json.loads(line)["address"])
        return self.address

    def stop(self, grace_s: float = STOP_S) -> None:
        """Ask it to drain and end, then kill it and its children after `grace_s` seconds. Harmless when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None and grace_s > 0:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_S)

    def __enter__(self) -> ServiceProcess:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _spawn(self, ready_fd: int) -> subprocess.Popen[bytes]:
        command = [*_program(self.python, self.kind, self.target, self.kwargs), "--port", str(self.port)]
        command += ["--ready-fd", str(ready_fd), "--parent-pid", str(os.getpid()), *self.arguments]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(ready_fd,), start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip


def check_interpreter(
    python: Path, kind: ServiceKind, target: str, kwargs: Mapping[str, Any] | None = None, wait_s: float = READY_S
) -> None:
    """Raise ValueError with one sentence unless the interpreter `python` can serve `target`: it runs, has a burnish that speaks the
    protocol of this one, and loads the target there.

    Example: `check_interpreter(Path(".venv-judge/bin/python"), "verifier", "my_team.checks:verdict")`.
    """
    command = [*_program(python, kind, target, kwargs), "--check"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=wait_s, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{python} did not load {target!r} within {wait_s:g} s") from None
    except OSError as error:
        raise ValueError(f"{python} cannot be run: {error.strerror}") from error
    last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
    if re.search(r"No module named '?burnish\b", last):
        raise ValueError(
            f"{python} has no burnish; install it there, in burnish's checkout: {python} -m pip install --constraint constraints/cpu.txt ."
        )
    if done.returncode != 0:
        raise ValueError(f"{python} cannot serve this {kind}: {last.removeprefix('error: ')}")
    try:
        spoken = json.loads(done.stdout.splitlines()[-1])["protocol"]
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"{python} is no Python with burnish: asked for its protocol, it printed {done.stdout[-100:]!r}") from None
    if spoken != PROTOCOL:
        raise ValueError(f"{python} has a burnish that speaks {spoken}, and this one speaks {PROTOCOL}; install the same one there")


def _program(python: Path | None, kind: ServiceKind, target: str, kwargs: Mapping[str, Any] | None) -> list[str]:
    """The program of `burnish.hosting.services`. A path is made absolute and its links are kept: those are what makes a venv's python."""
    interpreter = sys.executable if python is None else str(python.absolute())
    command = [interpreter, "-P", "-m", "burnish.hosting.services", kind, target]  # -P: a folder "burnish" here is not this burnish
    return [*command, "--kwargs", json.dumps(kwargs)] if kwargs else command


_spawners: dict[int, ThreadPoolExecutor] = {}
_spawners_lock = threading.Lock()


def _spawner() -> ThreadPoolExecutor:
    with _spawners_lock:
        return _spawners.setdefault(os.getpid(), ThreadPoolExecutor(1, thread_name_prefix="burnish-spawner"))


def _read_line(fd: int, timeout_s: float) -> bytes:
    """The first line from a pipe, or nothing when it closes or stays silent."""
    deadline = time.monotonic() + timeout_s
    line = b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([fd], [], [], max(deadline - time.monotonic(), 0))
        chunk = os.read(fd, 4096) if readable else b""
        if not chunk:
            return b""
        line += chunk
    return line


def _explained(why: str, log: Path, before: int) -> str:
    """What it said was wrong, where that is all that it said; else how it ended, and the end of its log. before: bytes that were there."""
    said = log.read_bytes()[before:].decode(errors="replace").strip()
    if said.startswith("error: ") and said.count("\n") < MOST_LINES:
        return said.removeprefix("error: ")
    return f"it {why}; the end of {log}:\n{_tail(log)}"


def _tail(log: Path, lines: int = MOST_LINES) -> str:
    return "\n".join(f"  {line}" for line in log.read_text(errors="replace").splitlines()[-lines:])
