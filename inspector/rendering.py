"""How templates are filled: every value that is not markup of our own is escaped, and stripped of what steers a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .hits import marked
from .terminal import call_text
from .text import number, percent, printable, short

PHASE_TITLES = {
    "base": "Before training",
    "cpt": "Continued pre-training",
    "midtrain": "Mid-training",
    "sft": "Supervised fine-tuning",
    "dpo": "Preference optimisation",
    "rft": "Reinforcement fine-tuning",
}


def phase_title(phase: str) -> str:
    """What people call a phase. Example: `phase_title("sft") == "Supervised fine-tuning"`."""
    return PHASE_TITLES.get(phase, phase)


def environment(folder: Path) -> Environment:
    """Jinja over the templates in a folder, with the filters number, percent, short, printable, phase_title, call_text and marked."""
    made = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    filters: dict[str, Any] = {
        "number": number,
        "percent": percent,
        "short": short,
        "printable": printable,
        "phase_title": phase_title,
        "call_text": call_text,
        "marked": marked,
    }
    made.filters.update(filters)
    made.finalize = _shown
    return made


def _shown(value: Any) -> Any:
    """Every value that a template prints passes here; jinja escapes what comes out unless it is markup of ours."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def write_page(page: str, target: Path) -> Path:
    """Write a page into a file, whole or not at all, and return its path. Raises ValueError when its folder is not there."""
    if not target.parent.is_dir():
        raise ValueError(f"{target}: there is no folder {target.parent}; make it, or give another file")
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)  # a link of that name, in a run folder of somebody else's, would be written through
    with partial.open("x", encoding="utf-8") as file:
        file.write(page)
    return partial.replace(target)
