"""What comes out of code that users wrote, told from what others want of it."""

from __future__ import annotations

import asyncio
import signal
import threading


def is_asked_for(error: BaseException) -> bool:
    """Whether somebody else wants user code to end, and not the code itself: Ctrl-C, the cancellation of the task that runs here, or a
    coroutine that is closed. Anything else is the code's own, `sys.exit` and a CancelledError out of nowhere too.

    Ctrl-C raises on the main thread only, and where nothing else handles it, as `asyncio.run` and servers do.
    """
    if isinstance(error, KeyboardInterrupt):
        raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        return raises and threading.current_thread() is threading.main_thread()
    if isinstance(error, asyncio.CancelledError):
        try:
            task = asyncio.current_task()
        except RuntimeError:  # no event loop runs in this thread
            return False
        return task is not None and task.cancelling() > 0
    return isinstance(error, GeneratorExit)


def message_of(error: BaseException) -> str:
    """What an exception says. Its `__str__` is somebody's code too, and may fail."""
    try:
        return str(error)
    except BaseException as again:
        if is_asked_for(again):
            raise
        return f"(its message cannot be read: {type(again).__name__})"
