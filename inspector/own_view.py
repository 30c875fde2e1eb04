"""An environment's own view of an episode, as a page that is shown in a frame and can do nothing.

What draws is the user's own code, but what it draws was said by a model: the page runs no script, sends nothing, fetches nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from typing import Any

from ..envs.drawing import Draw, find_drawing
from ..envs.registry import ID_PATTERN
from .stored import StoredEpisode
from .text import printable

LARGEST_BYTES = 4 << 20
"""What may be drawn of one episode."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'"
"""The content security policy of such a page; a server adds `sandbox`, which no page can say of itself."""
FRAME = "<style>html,body,iframe{display:block;width:100%;height:100%;margin:0;border:0}</style>"
IMAGES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


def drawing_for(config: Mapping[str, Any], named: str) -> Draw | None:
    """What draws the episodes of a run's environment, None when nothing does.

    config: that of the run. named: which of the environments that a run blends, "" for the recipe's own.
    """
    said = config.get("environment") if not named else _blended(config).get(named)
    id = said.rpartition(":")[2] if isinstance(said, str) else ""
    return find_drawing(id) if ID_PATTERN.match(id) else None


def _blended(config: Mapping[str, Any]) -> dict[str, Any]:
    rft = config.get("rft")
    rows = rft.get("blend") if isinstance(rft, Mapping) else None
    found = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    return {str(row.get("name") or str(row.get("environment")).rpartition("/")[2]): row.get("environment") for row in found}


def own_view(draw: Draw, episode: StoredEpisode) -> str:
    """The page. What goes wrong in what draws is what it says."""
    try:
        drawn = draw(episode)
        body = _image(drawn) if isinstance(drawn, bytes) else "<p>Nothing is drawn of this episode.</p>" if drawn is None else drawn
        if not isinstance(body, str):
            raise TypeError(f"it returned {type(drawn).__name__}, not text, bytes or None")
        if len(body) > LARGEST_BYTES:
            raise ValueError(f"it returned {len(body):,} characters, {LARGEST_BYTES:,} at most")
    except Exception as error:  # somebody's own code, over what a model said: the rest of the episode is still to be seen
        body = f"<p>What draws this failed: {escape(printable(f'{type(error).__name__}: {error}'[:500]))}</p>"
    body = body.encode("utf-8", "replace").decode()
    return f'<!doctype html><meta charset="utf-8"><meta http-equiv="content-security-policy" content="{POLICY}"><title>Drawn</title>{body}'


def framed(view: str, title: str = "Drawn") -> str:
    """A page with such a view in a frame of its own, for what is opened by itself: nothing else keeps a view from leading elsewhere, as
    `<meta http-equiv="refresh">` does."""
    head = f'<!doctype html><meta charset="utf-8"><meta http-equiv="content-security-policy" content="{POLICY}">'
    fit = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return f'{head}{fit}<title>{escape(title)}</title>{FRAME}<iframe sandbox srcdoc="{escape(view)}" title="{escape(title)}"></iframe>'


def _image(content: bytes) -> str:
    kind = next((kind for begins, kind in IMAGES.items() if content.startswith(begins)), None)
    if kind is None:
        raise ValueError("it returned bytes that are no PNG, JPEG, GIF or WebP")
    return f'<img alt="" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'
