"""The audit log: what was decided on which request, and nothing of what was said."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..guardrails.types import Decision


class Audit:
    """Appends a line of JSON for every decision: time, request, policy, place, action, findings without evidence, latencies.

    file: None keeps no log. Raises ValueError when the file cannot be written. One write per line, so that lines stay whole.
    """

    def __init__(self, file: str | Path | None = None) -> None:
        self._file: int | None = None
        if file:
            try:
                self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise ValueError(f"audit log {file} cannot be written: {error.strerror}") from None

    def decided(self, request: str, decision: Decision) -> None:
        """Note a decision on a request, by the id that its answer carries."""
        self.note({"request": request, **decision.to_row(evidence=False)})

    def note(self, row: dict[str, Any]) -> None:
        """Append a row with the time before it."""
        if self._file is not None:
            line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **row}, ensure_ascii=False)
            os.write(self._file, f"{line}\n".encode())
