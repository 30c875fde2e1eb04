"""How the built-in environments draw their episodes, as SVG that needs no script and follows the reader's light or dark scheme."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import islice

from ..drawing import DrawnEpisode, draws
from ..types import Message
from .inspection.parts import LARGEST_DEVIATION_UM, LEVELS, Feature, make_part

LAKE = {"S": "start", "F": "ice", "H": "hole", "G": "goal", "P": "you"}
SQUARE = 22
LARGEST_LAKE = 32
BOARDS = 60
"""Boards that are drawn of one episode, the first ones."""
STYLE = (
    "<style>:root{color-scheme:light dark}body{font:13px system-ui,sans-serif;margin:8px}figure{display:inline-block;margin:4px 8px}"
    "figcaption{max-width:12em}text{font:12px system-ui,sans-serif;fill:currentColor}.line{stroke:currentColor}"
    ".start{fill:#94a3b8}.ice{fill:#7dd3fc}.hole{fill:#1e3a5f}.goal{fill:#16a34a}.you{fill:#f59e0b}.band{fill:#16a34a;opacity:.25}"
    ".pass{fill:#16a34a}.rework{fill:#d97706}.scrap{fill:#dc2626}</style>"
)


@draws("burnish/FrozenLake-v0")
def frozen_lake(episode: DrawnEpisode) -> str | None:
    """The lake before each move, with the move that the policy made there."""
    boards = list(islice(_boards(episode.messages), BOARDS + 1))
    if not boards:
        return None
    drawn = "".join(_figure(board, move, number) for number, (board, move) in enumerate(boards[:BOARDS], start=1))
    more = f"<p>The first {BOARDS} moves.</p>" if len(boards) > BOARDS else ""
    key = "".join(
        f'<svg width="14" height="14" aria-hidden="true"><rect width="14" height="14" class="{name}"/></svg> {name} &nbsp;'
        for name in LAKE.values()
    )
    return f"{STYLE}<p>{key}</p>{drawn}{more}"


def _boards(messages: Sequence[Message]) -> Iterable[tuple[list[str], str]]:
    """Each lake that was shown, and what the policy said to it."""
    for i, message in enumerate(messages):
        if message.role == "user":
            rows = [line for line in message.text.splitlines() if line and set(line) <= set(LAKE)]
            if len(rows) > 1 and len(rows) <= LARGEST_LAKE and len({len(row) for row in rows}) == 1 and len(rows[0]) <= LARGEST_LAKE:
                answer = messages[i + 1] if i + 1 < len(messages) else None
                yield rows, answer.text.strip()[:60] if answer is not None and answer.role == "assistant" else ""


def _figure(rows: Sequence[str], move: str, number: int) -> str:
    squares = "".join(
        f'<rect x="{SQUARE * x}" y="{SQUARE * y}" width="{SQUARE - 1}" height="{SQUARE - 1}" class="{LAKE[square]}"/>'
        for y, row in enumerate(rows)
        for x, square in enumerate(row)
    )
    where = next(((x, y) for y, row in enumerate(rows) for x, square in enumerate(row) if square == "P"), None)
    told = f"Board {number}" + (f", you at row {where[1] + 1}, column {where[0] + 1}" if where else "")
    size = f'width="{SQUARE * len(rows[0])}" height="{SQUARE * len(rows)}"'
    said = f"{number}. {escape(move)}" if move else f"{number}."
    return f'<figure><svg {size} role="img" aria-label="{told}">{squares}</svg><figcaption>{said}</figcaption></figure>'


ROW = 44
SCALE = 2.0
MIDDLE = 300
"""Where a deviation of 0 is drawn, pixels from the left; a micrometre is `SCALE` of them."""
WORDS = 320
"""Pixels for the words beside the scale: forty letters or so."""


@draws("burnish/QualityInspection-v0")
def quality_inspection(episode: DrawnEpisode) -> str | None:
    """The part as it is: of each feature the tolerance, the true deviation, and whether the policy measured it."""
    level = episode.env_data.get("level")
    if not isinstance(level, int) or level not in LEVELS or episode.task.seed < 0:
        return None
    part = make_part(episode.task.seed, level)
    measured = _measured(episode)
    rows = "".join(_feature(feature, i, feature.name in measured) for i, feature in enumerate(part.features))
    width, height = MIDDLE + int(SCALE * LARGEST_DEVIATION_UM) + WORDS, ROW * len(part.features) + 10
    said = episode.labels.get("predicted")
    words = f"Part {part.number} deserves <b>{part.verdict}</b> ({', '.join(part.reasons)})" + (f"; said: {escape(said)}." if said else ".")
    size = f'width="{width}" height="{height}"'
    return (
        f'{STYLE}<p>{words}</p><svg {size} role="img" aria-label="The features of part {part.number}">{rows}</svg>'
        "<p>Band: the tolerance. Dot: the true size, filled when the policy measured it.</p>"
    )


def _measured(episode: DrawnEpisode) -> set[str]:
    """The features that the policy measured with success."""
    calls = episode.env_data.get("tool_calls")
    found = set[str]()
    for call in calls if isinstance(calls, list) else []:
        match call:
            case {"name": "measure", "status": "ok", "arguments": {"feature": str(name)}}:
                found.add(name)
    return found


def _feature(feature: Feature, number: int, measured: bool) -> str:
    y, half = ROW * number + 24, SCALE * feature.limit_um
    dot = MIDDLE + SCALE * feature.deviation_um
    filled = "" if measured else ' fill="none" style="fill:none" stroke="currentColor"'
    told = f"{feature.deviation_um:+d} µm: {feature.reason}, {feature.verdict}" + ("" if measured else ", not measured")
    return (
        f'<text x="8" y="{y + 4}">{feature.name} ±{feature.limit_um} µm</text>'
        f'<rect x="{MIDDLE - half}" y="{y - 8}" width="{2 * half}" height="16" class="band"/>'
        f'<line x1="{MIDDLE}" x2="{MIDDLE}" y1="{y - 12}" y2="{y + 12}" class="line"/>'
        f'<circle cx="{dot}" cy="{y}" r="6" class="{feature.verdict}"{filled}/>'
        f'<text x="{MIDDLE + SCALE * LARGEST_DEVIATION_UM + 12}" y="{y + 4}">{told}</text>'
    )
