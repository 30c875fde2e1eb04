"""The one place where an exception becomes a line on stderr and an exit code."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import traceback
from typing import Any

from burnish.cli.signals import terminated
from burnish.inspector.text import printable
from burnish.rpc.urls import without_secrets

USER_ERROR = 2
RUN_FAILED = 1
INTERRUPTED = 130
TERMINATED = 143
USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no room for more of a file."""


def debugging() -> bool:
    """Whether the user asked for tracebacks (`burnish --debug …` or BURNISH_DEBUG=1)."""
    return os.environ.get("BURNISH_DEBUG", "") not in ("", "0")


def report(error: BaseException) -> int:
    """Say on stderr what went wrong, and return the exit code.

    2: something the user can change (ValueError, a missing file, a port in use). 130: Ctrl-C. 143: SIGTERM. 1: the run failed. An exception
    that is none of those says where in the user's own code it came from, or else that it is a fault in burnish. Notes added to the
    exception (`add_note`) follow as lines of their own.
    """
    cause = original(error)
    if debugging():
        sys.stderr.write(_harmless("".join(traceback.format_exception(error))))
    if isinstance(cause, KeyboardInterrupt):
        _say("terminated" if terminated() else "interrupted", error, colour="33")
        return TERMINATED if terminated() else INTERRUPTED
    if isinstance(cause, USER_ERRORS) and not isinstance(cause, UnicodeError):
        _say(f"error: {_text(cause)}", error)
        return USER_ERROR
    if _expected(cause):
        _say(f"failed: {_text(cause)}", error)
        return RUN_FAILED
    from burnish.envs.places import own_places

    hint = "" if debugging() else "\n".join(["", *(own_places(cause) or ["This is a fault in burnish; `burnish --debug …` shows where"])])
    _say(f"failed: {type(cause).__name__}: {_text(cause)}{hint}", error)
    return RUN_FAILED


def report_usage(error: Any, command: str) -> int:
    """Say on stderr what is wrong with a command line, in one line with how its help is shown, and return the exit code. error: typer's.
    command: whose line it is, where the error does not say so.

    Example: error: no such command 'rnu'; did you mean 'run'? (`burnish --help`)
    """
    from burnish.envs.pydantic_words import message_of

    if isinstance(getattr(error, "message", None), str):
        error.message = message_of({"msg": error.message})
    said = " ".join(error.format_message().split()).replace(". Did you mean", "; did you mean")
    ctx = getattr(error, "ctx", None)
    help_of = command if ctx is None else ctx.command_path
    _say(f"error: {said[:1].lower()}{said[1:].removesuffix('.')} (`{help_of} --help`)", error)
    return USER_ERROR


def original(error: BaseException) -> BaseException:
    """What a Ray worker raised: Ray wraps it, together with a long traceback, in an error of its own that carries it as `cause`."""
    inner = getattr(error, "cause", None)
    return inner if type(error).__module__.startswith("ray.") and isinstance(inner, BaseException) else error


def _expected(error: BaseException) -> bool:
    """Causes that an honest run can meet: infrastructure failures, the system's refusals, a wait that ran out, Ray's own errors."""
    from burnish.envs.failures import EpisodeFailure

    known = (EpisodeFailure, OSError, MemoryError, RuntimeError, subprocess.SubprocessError)
    return isinstance(error, known) or type(error).__module__.startswith("ray.")


def _text(error: BaseException) -> str:
    if isinstance(error, FileExistsError) and error.filename and error.strerror == os.strerror(errno.EEXIST):
        return f"{error.filename} exists already; choose another place or remove it"
    if isinstance(error, OSError) and error.strerror:
        at = (error.filename2 if error.errno in NO_ROOM else None) or error.filename  # of a copy, the file that is written
        return f"{error.strerror}: {at}" if at else error.strerror
    if type(error).__name__ == "ValidationError" and type(error).__module__.startswith("pydantic"):
        from burnish.envs.pydantic_words import first_error  # its own words take several lines, and name a page about pydantic

        return first_error(error)  # type: ignore[arg-type]
    return str(error).strip() or type(error).__name__


def _say(text: str, error: BaseException, colour: str = "31") -> None:
    lines = _harmless("\n".join([text, *getattr(error, "__notes__", ())]))
    red = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    sys.stderr.write(f"\x1b[{colour}m{lines}\x1b[0m\n" if red else f"{lines}\n")


def _harmless(text: str) -> str:
    """What a service, a model folder or a model said may stand in an error: nothing of it steers the terminal, no password is shown."""
    return printable(without_secrets(text))
