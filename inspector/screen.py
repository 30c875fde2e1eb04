"""Where commands print."""

from __future__ import annotations

import os

from rich.console import Console


class Screen(Console):
    """The console of every command. Whoever reads it may leave (`burnish … | head`): the rest is then printed nowhere, and what the
    command does goes on and ends as it would have; `quiet` says so to one that does nothing but print."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())  # what is buffered is written when the process ends
