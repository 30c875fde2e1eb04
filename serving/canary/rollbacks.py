"""Which canaries were rolled back: a line each beside the deployment file, so that none is tried again when it starts anew."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from ...rollout.store.json_lines import JsonLines, read_json_lines
from .watch import Judgement


class Rollbacks:
    """The versions that were rolled back. file: None remembers them for as long as it is there itself.

    Raises ValueError when the file cannot be read. Example: `Rollbacks(rollbacks_file(Path("inspector.toml")))`.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self._found = set[tuple[str, str]]()
        if file is not None and file.exists():
            self._found = {(str(row.get("version")), str(row.get("model"))) for _, row in read_json_lines(file)}

    def has(self, version: str, model: str) -> bool:
        """Whether a version, by its served name, was rolled back while it was this model."""
        return (version, model) in self._found

    def add(self, version: str, model: str, judgement: Judgement) -> None:
        """Write a rollback down, with its figures."""
        self._found.add((version, model))
        if self.file is None:
            return
        row = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": version,
            "model": model,
            "compared_with": judgement.primary,
            "answers_of_each": judgement.pairs,
            "passed": judgement.canary_passed,
            "passed_of_the_other": judgement.primary_passed,
            "log_evidence": round(judgement.log_evidence, 4),
            "error": judgement.error,
        }
        with JsonLines(self.file) as lines:
            lines.append(row)


def rollbacks_file(deployment: Path) -> Path:
    """Beside a deployment file."""
    return deployment.with_name(f"{deployment.name}.rollbacks.jsonl")
