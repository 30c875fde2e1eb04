"""What a run says of where its rollouts are."""

from __future__ import annotations

from pathlib import Path

import pytest

from burnish.run.pipeline import rollouts_line

pytestmark = pytest.mark.unit

AT = "http://127.0.0.1:8265"
BEHIND = "where that serves with --behind-dashboard, they are at"


@pytest.mark.parametrize(
    ("dashboard", "run", "own", "line"),
    [
        (AT, "runs/nano-1", True, f"rollouts, once the dashboard has Ray's token: {AT}/rollouts/nano-1"),
        (AT, "runs/my run", True, f"rollouts, once the dashboard has Ray's token: {AT}/rollouts/my%20run"),
        (
            AT,
            "my runs/a",
            False,
            f"rollouts: burnish inspect 'my runs'; where that serves with --behind-dashboard, they are at {AT}/rollouts",
        ),
        ("", "runs/nano-1", True, "rollouts: burnish inspect runs"),
        ("", "runs/nano-1", False, "rollouts: burnish inspect runs"),
    ],
)
def test_the_line_is_what_is_opened(dashboard: str, run: str, own: bool, line: str) -> None:
    assert rollouts_line(dashboard, Path(run), own) == line
