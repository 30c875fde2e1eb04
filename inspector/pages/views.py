"""What the pages show: what each template is filled with, the same on a server and in a bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from ...envs.drawing import Draw
from ...envs.types import message_from_dict
from ...rewards.rubric import SECONDS
from ...rollout.store.moments import Moment
from ...rollout.store.own_files import own_file, read_whole
from ...rollout.store.reading import stored_value
from ..account import samples_of, times_of
from ..alarms import LETTERS, alarms_of
from ..blends import BlendRow, blend_rows
from ..charts import span_chart
from ..database import Database
from ..drift import evaluation_place
from ..hits import first_hit
from ..index import coverage
from ..kept import kept
from ..library import MOST_ATTEMPTS, Library
from ..models import ModelLine, by_run, models_of
from ..own_view import drawing_for, framed, own_view
from ..plots import Curve
from ..rendering import environment
from ..report import CURVES, curves_of, headline, phase_rows, reward_curve, success_curve
from ..runs import MetricRow, RecordedRun, final_ledger, phases_of, read_object, read_run
from ..stored import COLUMNS, episode_of
from ..text import cut
from ..timeline import KINDS, scorer_spans, timeline, totals
from ..turns import rewards_by_turn
from ..verdicts import verdicts
from .branching import Branching, branching_of
from .cluster import Nodes, played_at
from .links import Links
from .runs import RunLine
from .tokens import COLOURS, Colour, shown_tokens, tokenizer_of

TEMPLATES = Path(__file__).parent / "templates"
REPORT, LOGS = "report.html", "logs"
"""Of a run folder: its report, and where its services log."""
MOVES = 25
"""Tasks that are named on either side of a drift."""
KNOWN: Mapping[str, str] = {"The task": "task_data", "The environment": "env_data"}
MOST_SCORERS = 12
"""Scorers that are drawn below the bar of an episode's time."""
MOST_KNOWN = 20_000
"""Characters that are shown of what each knew."""
NOTHING_ASKED: Mapping[str, str] = {}
NOTHING_LISTED: Mapping[str, Any] = {
    "rows": (), "total": 0, "page": 1, "first": 0, "links": {}, "choices": {}, "chosen": {}, "words": (), "said": (), "orders": (),
    "rarer": (), "index": "", "error": "", "why": "",
}  # fmt: skip
"""What a list of episodes is of where nothing was asked."""


def templates() -> Environment:
    """The templates of the pages."""
    return environment(TEMPLATES)


def drawn(made: Environment, template: str, to: Links, *, policy: str = "", note: str = "", **values: Any) -> str:
    """A page. policy: a content security policy for a page that no server sends one with. note: what stands at its foot."""
    return made.get_template(f"{template}.html.jinja").render(to=to, policy=policy, note=note, **values)


def models_view(lines: Sequence[RunLine]) -> dict[str, list[ModelLine]]:
    """The checkpoints by their run, runs without one left out."""
    return by_run(model for line in lines for model in models_of(line.name, line.path))


def run_view(line: RunLine, stored: Library) -> dict[str, Any]:
    """What a run has come to. stored: its episodes."""
    run = read_run(line.path)
    blends, problem = _blends_of(run)
    rewards, no_rewards = _rewards_of(run, stored)
    return {
        "line": line,
        "run": run,
        "headline": headline(run),
        "alarms": alarms_of(run),
        "rows": phase_rows(run),
        "report": (run.path / REPORT).is_file(),
        "logs": (run.path / LOGS).is_dir(),
        "curves": {
            phase: [*rewards.get(phase, ()), *success_curve(run, phase), *curves_of(run, phase)] for phase in phases_of(run.metrics)
        },
        "no_rewards": no_rewards,
        "shown": CURVES,
        "times": times_of(run),
        "samples": samples_of(run),
        "blends": blends,
        "no_blends": problem,
        "ledger": final_ledger(run.ledger),
        "config": json.dumps(run.config, indent=2, ensure_ascii=False),
        "last": last_played(run),
        "drift": drift_of(run),
        "kept": kept(run.path, run.config, run.metrics).line,
        "models": models_of(line.name, line.path),
    }


def _blends_of(run: RecordedRun) -> tuple[list[BlendRow], str]:
    """The blends of a run, or why they cannot be read: the rest of it can be shown without them."""
    try:
        return blend_rows(run), ""
    except (OSError, ValueError) as error:
        return [], cut(str(error), LETTERS)


def _rewards_of(run: RecordedRun, stored: Library) -> tuple[dict[str, list[Curve]], str]:
    """The reward of each phase with its interval, or why the episodes cannot be read that it is made of."""
    try:
        return {phase: reward_curve(stored, run, phase) for phase in phases_of(run.metrics)}, ""
    except (OSError, ValueError) as error:
        return {}, cut(str(error), LETTERS)


def report_of(line: RunLine) -> str | None:
    """The report in a run's folder, which may be anybody's, as a page in which nothing runs; None where there is none. Raises ValueError
    when it is no file of the run's, or too large."""
    file = own_file(line.path, REPORT)
    return None if file is None else framed(read_whole(file).decode(errors="replace"), "Report")


def last_played(run: RecordedRun) -> MetricRow | None:
    """The last training step of which episodes are stored: phases on examples and pairs have none."""
    stored = {(one.phase, one.step) for one in coverage(run.path / "episodes").moments if one.split == "train"}
    return next((row for row in reversed(run.metrics) if (row.phase, row.step) in stored), None)


def drift_of(run: RecordedRun) -> list[tuple[str, str, str]]:
    """For each mode that was evaluated twice or more: (mode, its first moment, its last), as `Place` writes them."""
    found = list[tuple[str, str, str]]()
    for mode in dict.fromkeys(record.result.mode for record in run.evaluations):
        at = [evaluation_place(run.name, one) for one in run.evaluations if one.result.mode == mode]
        if at[0] != at[-1]:
            found.append((mode, at[0], at[-1]))
    return found


def episode_view(
    line: RunLine,
    found: Mapping[str, Any],
    group: Sequence[Mapping[str, Any]],
    colour: Colour = "logprob",
    words: Sequence[str] = (),
    nodes: Nodes | None = None,
    branching: Branching | None = None,
    asked: Mapping[str, str] = NOTHING_ASKED,
) -> dict[str, Any]:
    """One episode, whole, beside the other attempts at its task. words: of a search, which are marked. nodes: of the cluster whose
    dashboard shows the page, if one does. branching: from the last turn unless another was chosen. asked: what the page was asked for."""
    chat = chat_of(found)
    return {
        "line": line,
        "e": found,
        "chat": chat,
        "words": words,
        "asked": asked,
        "hit": first_hit(chat, words),
        "earned": rewards_by_turn(found, chat),
        "group": group,
        "first_only": len(group) >= MOST_ATTEMPTS,
        "trajectories": shown_tokens(found, colour, tokenizer_of(line.path)),
        "colour": colour,
        "colours": COLOURS,
        "drawn": _draw_of(line, found) is not None,
        "time": time_of(found),
        "played": played_at(found, nodes),
        "verdicts": verdicts(found["parts"] or {}, found["metrics"], found["labels"]),
        "measured": {name: value for name, value in found["metrics"].items() if not name.endswith(SECONDS)},
        "branching": branching if branching else branching_of(line, found),
        "known": known_of(found),
    }


def known_of(found: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """What task and environment knew of a whole episode, as (whose, JSON with a value on each line, characters left out) where there is
    any. What is no JSON, or nested too deep, is shown as it is stored."""
    texts = [(whose, str(found.get(name) or "")) for whose, name in KNOWN.items()]
    return [(whose, *_indented(stored)) for whose, stored in texts if stored not in ("", "{}", "null")]


def _indented(stored: str) -> tuple[str, int]:
    """The beginning of JSON, and how many characters as it is stored are left out, none or some."""
    out, length = list[str](), 0
    try:
        for piece in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(stored_value(stored)):
            if length + len(piece) > MOST_KNOWN:  # what is nested deep is many times as long when it is indented
                break
            out.append(piece)
            length += len(piece)
        else:
            return "".join(out), 0
    except (ValueError, RecursionError):
        pass
    return stored[:MOST_KNOWN], max(0, len(stored) - MOST_KNOWN)


def time_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Where the time of a whole episode went: the bar, (class of its colour, kind, seconds) of each kind, (name, seconds) of each scorer
    that is drawn, and how many are not."""
    spans = timeline(found)
    scorers = scorer_spans(found, spans)
    shown = scorers[:MOST_SCORERS]
    rows = [(KINDS.index(one.kind), f"{one.kind}, {one.label}", one.start, one.seconds) for one in spans]
    lanes = [(KINDS.index(one.kind), one.label, one.start, one.seconds) for one in shown]
    return {
        "bar": span_chart("Seconds of the episode, one after another", rows, lanes),
        "kinds": [(KINDS.index(kind), kind, seconds) for kind, seconds in totals(spans).items()],
        "scorers": [(one.label, one.seconds) for one in shown],
        "others": len(scorers) - len(shown),
    }


def drawing_of(line: RunLine, found: Mapping[str, Any]) -> str | None:
    """A whole episode as its environment draws it, None where nothing draws it. Raises ValueError when it cannot be read."""
    draw = _draw_of(line, found)
    if draw is None:
        return None
    moment = Moment(found["phase"], found["step"], found["split"], found["mode"])
    try:
        episode = episode_of({name: found[name] for name in COLUMNS}, moment, found["messages"])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"episode {found['episode']!r} cannot be read: {error}") from error
    return own_view(draw, episode)


def _draw_of(line: RunLine, found: Mapping[str, Any]) -> Draw | None:
    return drawing_for(read_object(line.path, "config.json"), str(found.get("environment") or ""))


def chat_of(found: Mapping[str, Any]) -> list[Any]:
    """The conversation of a whole episode."""
    return [message_from_dict(message) for message in found["messages"]]


def library_of(line: RunLine, db: Database) -> Library:
    """The stored episodes of a run."""
    return Library(line.path / "episodes", db)
