"""One piece of work in a thread, and something else until it is done."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def beside(work: Callable[[], T], meanwhile: Callable[[], bool]) -> T:
    """What `work` gives, or raises, from a thread of its own; here, `meanwhile` is called again and again until then.

    meanwhile: takes a moment at most, and says whether it had anything to do; when it had not, the work is all that is waited for. What it
    raises passes at once, and the thread is left to end by itself.

    Example: `beside(lambda: learner.forward_backward(batch, objective), lambda: take_in(fleet.poll()))`.
    """
    found: Future[T] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as error:  # it is the caller's
            found.set_exception(error)

    thread = Thread(target=run, name="learner-calls", daemon=True)  # one that was left behind must not hold up the end of the process
    thread.start()
    while not found.done():
        if not meanwhile():
            break
    return found.result()
