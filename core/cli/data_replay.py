"""`burnish data replay`: a model's own answers to general questions, to blend with, so that it rehearses what it could do before.

Rehearsal needs no data that the model was first trained on: what it says itself shows its distribution (self-synthesised rehearsal: Huang
et al. 2024, arXiv 2403.01244). The answers are nobody's truth: they keep the model near itself, and teach it nothing new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from burnish.cli.found import Found
from burnish.envs.types import Episode, Message, Reward, Task
from burnish.rollout.config import RolloutConfig
from burnish.rollout.engine.config import EngineConfig
from burnish.rollout.worker import WorkerSetup
from burnish.trainer.data.audit import checked_rows
from burnish.trainer.data.config import CATALOG
from burnish.trainer.data.curated.catalog import CATALOG_FILE
from burnish.trainer.data.curated.general import GENERAL
from burnish.trainer.data.forms import Conversation
from burnish.trainer.data.sources import Reject, found_curated
from burnish.trainer.evaluation.alone import STALL_S, lone_fleet
from burnish.trainer.models.finding import find_model
from burnish.trainer.playing import Fleet, run_tasks

ROWS_FILE = "replay.jsonl"


def replay(
    model: str, out: Path, prompts: str | None, count: int, max_tokens: int, temperature: float, seed: int, stall_s: float = STALL_S
) -> Found:
    """Ask, and write a catalog folder `out` of the answers that came to their end. Raises ValueError when there is none, TimeoutError when
    no call ends for `stall_s` seconds."""
    if out.exists():
        raise ValueError(f"{out} is there already, and a catalog is never overwritten; give another folder")
    folder = find_model(model)
    asked = list(prompts_of(prompts, count, seed))
    rollout = RolloutConfig(max_tokens_per_turn=max_tokens, temperature=temperature)
    engine = EngineConfig(max_context=_context(folder, max_tokens))
    with lone_fleet(WorkerSetup(folder, "burnish/SingleTurn-v0", rollout=rollout, engine=engine, seed=seed), "replay", stall_s) as fleet:
        episodes = answers(fleet, asked, temperature)
    rows = [row for episode in sorted(episodes, key=lambda one: one.task.id) if (row := answered(episode)) is not None]
    if not rows:
        raise ValueError(f"none of {len(asked)} answers of {model} came to its end within {max_tokens} tokens; raise --max-tokens")
    id = f"self/{folder.name if folder.name != 'model' else folder.parent.name}-replay-v1"
    write_catalog(out, id, f"Answers of {model} itself, sampled at temperature {temperature:g}, seed {seed}.", rows)
    left = len(asked) - len(rows)
    lines = [
        f"{out}: {len(rows):,} answers, {left:,} left out (cut short at {max_tokens} tokens, empty or failed)",
        f'blend with it: curated = "{out}" beside blend_ratio, or ["{CATALOG}", "{out}"] for both',
    ]
    return Found(lines, {"out": str(out), "id": id, "answers": len(rows), "left_out": left})


def prompts_of(place: str | None, count: int, seed: int) -> Iterator[tuple[Message, ...]]:
    """The first `count` questions of a place, or of burnish's own sets without tools. Raises ValueError when the place has none."""
    asked = 0
    found: Iterator[Any]
    if place is None:
        made = count - count // 4  # the rest are those written by hand, while there are any
        found = chain(*(found_curated(GENERAL, name, seed, made) for name in ("instruction-following", "refusal")))
    else:
        found = (row if isinstance(row, Reject) else row.value for row in checked_rows([place]))
    for row in found:
        messages = getattr(row, "messages", ())
        last = next((i for i, message in enumerate(messages) if message.role == "assistant"), len(messages))
        if not last or asked == count or (isinstance(row, Conversation) and row.tools):
            continue
        asked += 1
        yield tuple(messages[:last])
    if not asked:
        raise ValueError(f"{place} holds no question to ask: rows with messages are wanted")


def answers(fleet: Fleet, asked: Sequence[Sequence[Message]], temperature: float) -> list[Episode]:
    """One answer to each. Raises TimeoutError when the engine hangs."""
    tasks = [Task(f"replay-{i:06}", i, tuple(prompt)) for i, prompt in enumerate(asked)]
    return [episode for group in run_tasks(fleet, tasks, 1, temperature) for episode in group.episodes]


def answered(episode: Episode) -> dict[str, Any] | None:
    """An answer as a row, None when it failed, was cut short, or says nothing."""
    whole = isinstance(episode.outcome, Reward) and episode.truncation is None and episode.messages[-1].role == "assistant"
    if not whole or not episode.messages[-1].text.strip():
        return None
    return {"messages": [message.to_dict() for message in episode.messages]}


def write_catalog(out: Path, id: str, about: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A catalog folder of one set, `replay`."""
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    out.mkdir(parents=True)
    (out / ROWS_FILE).write_bytes(data)
    told = {"file": ROWS_FILE, "sha256": hashlib.sha256(data).hexdigest(), "about": about, "licence": "as the model's"}
    lines = [f"id = {json.dumps(id)}", "", "[sets.replay]", *(f"{key} = {json.dumps(value)}" for key, value in told.items())]
    (out / CATALOG_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _context(folder: Path, max_tokens: int) -> int:
    """Room for a question as long as the answer, within what the model takes."""
    longest = json.loads((folder / "config.json").read_bytes()).get("max_position_embeddings", 2048)
    return int(min(longest, max(1024, 2 * max_tokens)))
