"""`burnish rollouts`: transcripts printed so that a person can read them, whatever the model wrote."""

from __future__ import annotations

import heapq
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text

from ..envs.registry import did_you_mean
from ..envs.types import Message, ToolCall
from ..rollout.store.transcripts import Transcript
from .kept import kept_of
from .runs import check_run, read_run_transcripts
from .screen import Screen
from .text import number, printable
from .verdicts import verdicts

ROLE_STYLES = {"system": "magenta", "user": "cyan", "assistant": "bold green", "tool": "yellow"}
NAMED = ("phase", "episode", "split", "mode")  # what a selection gives by name, and may misspell
Order = Literal["latest", "best", "worst"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which transcripts to show. None takes any; best and worst go by total reward and leave failed episodes out.

    Example: `Selection(phase="rft", order="worst", limit=3)`.
    """

    phase: str | None = None
    step: int | None = None
    episode: str | None = None
    split: str | None = None
    mode: str | None = None
    failed: bool | None = None
    order: Order = "latest"
    limit: int = 5

    def matches(self, transcript: Transcript) -> bool:
        wanted = (
            (self.phase, transcript.phase),
            (self.step, transcript.step),
            (self.episode, transcript.episode),
            (self.split, transcript.split),
            (self.mode, transcript.mode),
            (self.failed, transcript.failure is not None),
        )
        return all(want is None or want == have for want, have in wanted)


def select(transcripts: Iterable[Transcript], selection: Selection, why: Callable[[], str] = str) -> list[Transcript]:
    """The chosen transcripts in reading order, never more than `limit` in memory.

    latest: the last written, oldest first. best and worst: most extreme first. Raises ValueError, saying what there is, when nothing
    matches, and what else `why` knows of that.
    """
    if selection.limit < 1:
        raise ValueError(f"the number of transcripts to show must be at least 1, not {selection.limit}")
    seen: dict[str, set[str]] = {name: set() for name in NAMED}
    matching = (t for t in _noting(transcripts, seen) if selection.matches(t))
    if selection.order == "latest":
        chosen = list(deque(matching, maxlen=selection.limit))
    else:
        pick = heapq.nlargest if selection.order == "best" else heapq.nsmallest
        chosen = pick(selection.limit, (t for t in matching if t.reward is not None), key=_total)
    if not chosen:
        raise ValueError(_nothing(selection, seen) + why())
    return chosen


def selected(run: Path, selection: Selection) -> list[Transcript]:
    """The chosen transcripts of a run, as `select` gives them. Raises ValueError when `run` is no run folder or nothing matches, also with
    what of the run is not kept."""
    return select(read_run_transcripts(run), selection, partial(_why_none, run, selection))


def print_rollouts(run: Path, selection: Selection, console: Console | None = None, *, tools: bool = False) -> None:
    """Print the chosen transcripts of a run. tools: with the tools that their prompts describe. Raises ValueError when `run` is no run
    folder or nothing matches."""
    console = console or Screen()
    for transcript in selected(run, selection):
        console.print(render(transcript, tools=tools))
        if console.quiet:  # nobody reads
            return


def render(transcript: Transcript, *, tools: bool = False) -> RenderableType:
    """One transcript as a panel. All text of the model, tools and environment is plain: rich markup and escape codes show as written."""
    where = f"{transcript.phase} step {transcript.step} · {transcript.split} · {transcript.mode}"
    title = Text.assemble((printable(transcript.episode), "bold"), f"  seed {transcript.seed} · ", printable(where))
    body: list[RenderableType] = list(_described(transcript)) if tools else []
    for message in transcript.chat:
        body.extend(_message(message))
    body.append(Text())
    body.append(_outcome(transcript))
    body.extend(_explanations(transcript))
    body.append(_numbers(transcript))
    return Panel(Group(*body), title=title, title_align="left", border_style="red" if transcript.failure else "dim", padding=(0, 1))


def call_text(call: ToolCall) -> str:
    """A tool call as one would write it in Python. Example: `measure(part=17, feature="bore")`."""
    arguments = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False, default=str)}" for key, value in call.arguments.items())
    return printable(f"{call.name}({arguments})")


def _described(transcript: Transcript) -> Iterator[RenderableType]:
    """What the prompt says of tools, beside the messages: each schema as the chat template gets it."""
    described = transcript.tools or ()
    yield Text("tools" if described else "the prompt describes no tools", style="magenta")
    for tool in described:
        yield Padding(Text(printable(json.dumps(tool, ensure_ascii=False))), (0, 0, 0, 2))


def _message(message: Message) -> Iterator[RenderableType]:
    style = ROLE_STYLES[message.role]
    yield Text(message.role if message.name is None else f"{message.role} {printable(message.name)}", style=style)
    if message.text.strip():
        yield Padding(Text(printable(message.text.rstrip())), (0, 0, 0, 2))
    for call in message.tool_calls:
        yield Padding(Text(f"→ {call_text(call)}", style="dim"), (0, 0, 0, 2))


def _outcome(transcript: Transcript) -> Text:
    if transcript.failure is not None:
        failure = transcript.failure
        return Text(printable(f"failed: {failure.kind} in {failure.culprit}: {failure.detail}"), style="bold red")
    assert transcript.reward is not None
    line = Text.assemble("reward ", (number(transcript.reward.total), "bold"))
    for name, value in transcript.reward.parts.items():
        by_turn = ", ".join(map(number, (transcript.reward.turns or {}).get(name, ())))
        line.append(f"  {printable(name)} {number(value)}" + (f" ({by_turn} by turn)" if by_turn else ""), style="dim")
    expected, predicted = transcript.labels.get("expected"), transcript.labels.get("predicted")
    if expected is not None:
        line.append(f"  expected {printable(expected)}, said ")
        line.append(printable(predicted) if predicted else "nothing", style="green" if predicted == expected else "red")
    if transcript.truncation is not None:
        line.append(f"  cut short by {transcript.truncation}", style="yellow")
    return line


def _explanations(transcript: Transcript) -> Iterator[RenderableType]:
    """Why the scorers gave what they gave, as far as they say."""
    for verdict in verdicts(transcript.reward.parts if transcript.reward else {}, transcript.metrics, transcript.labels):
        if verdict.explanation:
            yield Text(f"{printable(verdict.scorer)}: {printable(verdict.explanation)}", style="dim")


def _numbers(transcript: Transcript) -> Text:
    seconds = sum(turn.generate_s + turn.env_s for turn in transcript.turns)
    parts = [
        f"{len(transcript.turns)} turns",
        f"{transcript.trainable_tokens} sampled of {transcript.context_tokens} tokens",
        f"{seconds:.2f} s",
    ]
    if transcript.turns:
        oldest = min(turn.oldest_version for turn in transcript.turns)
        newest = max(turn.newest_version for turn in transcript.turns)
        parts.append(f"policy version {oldest}" if oldest == newest else f"policy versions {oldest} to {newest}")
    parts += [f"{printable(name)} {number(value)}" for name, value in transcript.metrics.items()]
    return Text(" · ".join(parts), style="dim")


def _total(transcript: Transcript) -> float:
    assert transcript.reward is not None
    return transcript.reward.total


def _noting(transcripts: Iterable[Transcript], seen: dict[str, set[str]]) -> Iterator[Transcript]:
    for transcript in transcripts:
        for name, values in seen.items():
            values.add(getattr(transcript, name))
        yield transcript


def _why_none(run: Path, selection: Selection) -> str:
    why = kept_of(check_run(run)).why_none(selection.phase, selection.step, selection.split, by_id=selection.episode is not None)
    return f"; {why}" if why else ""


def _nothing(selection: Selection, seen: dict[str, set[str]]) -> str:
    if not seen["phase"]:
        return "this run has no transcripts yet"
    for name in NAMED:
        wanted = getattr(selection, name)
        if wanted is not None and wanted not in seen[name]:
            return f"no transcript of {name} {wanted!r}{did_you_mean(wanted, sorted(seen[name]))}"
    what = "episode that failed" if selection.failed else "transcript"
    return f"no {what} matches; the run has phases {', '.join(sorted(seen['phase']))}"
