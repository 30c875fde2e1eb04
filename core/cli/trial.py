"""The `burnish` command as a trial of `burnish tune`: in a process that ends, as by Ctrl-C, when the one that started it is gone.

python -P -m burnish.cli.trial PARENT_PID run RECIPE …
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from burnish.cli.main import main as burnish

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Follow the parent, and be the command."""
    parent = int(sys.argv.pop(1))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})  # Ray blocks them in what it starts
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)
    burnish()


if __name__ == "__main__":
    main()
