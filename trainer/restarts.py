"""How often a process may be started anew: so often within a while, so that one that dies again and again ends the run."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Restarts:
    """Those of one process. limit: how many there may be within window_s seconds. of_late: when they were.

    Example: `Restarts(10, 3600.0).count() == ""`.
    """

    limit: int
    window_s: float
    of_late: list[float] = field(default_factory=list)

    def count(self) -> str:
        """Count one now. Says how many there were where that is one too many, "" where it is not."""
        now = time.monotonic()
        self.of_late = [*(at for at in self.of_late if now - at < self.window_s), now]
        count = len(self.of_late)
        if count <= self.limit:
            return ""
        times = "once" if count == 1 else f"{count} times"
        return f"had to be started anew {times} within {self.window_s:g} s, and limits.restarts is {self.limit}"
