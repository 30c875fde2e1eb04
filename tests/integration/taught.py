"""A tiny model that says what a test wants: a real one, taught a few answers by heart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.rollout.renderers import TemplateRenderer
from burnish.serving.rendering import as_in_training
from burnish.trainer.models.importing import ModelSize, new_model
from burnish.trainer.models.manifest import MANIFEST_FILE

SIZE = ModelSize(hidden=64, layers=2, heads=2, intermediate=96, vocab_size=300, max_position=256)
KNOWN = 0.02
"""Loss per token from which greedy answers are those that were taught."""
MOST_STEPS = 2000


@dataclass(frozen=True)
class Turn:
    """What a model is to say to a request with tools, which it reads as a service renders it."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    answer: str


def taught_model(folder: Path, answers: Mapping[str, str], seed: int = 0, turns: Sequence[Turn] = ()) -> Path:
    """A model in `folder` that answers each of these questions so, and each of these turns, asked greedily. It has no manifest, as other
    tools write them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    called = [text for turn in turns for text in (turn.answer, json.dumps([*turn.messages, *turn.tools]))]
    size = SIZE.model_copy(update={"max_position": 512, "vocab_size": 400}) if turns else SIZE
    new_model([*answers, *answers.values(), *called], folder, size, seed=seed)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    asked: list[tuple[list[Any], str]] = [([{"role": "user", "content": question}], answer) for question, answer in answers.items()]
    asked += [(_rendered(turn, TemplateRenderer(tokenizer)), turn.answer) for turn in turns]
    rows = []
    for messages, answer in asked:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False)
        assert whole.startswith(prompt)
        before, ids = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt, whole))
        rows.append((ids, [-100] * len(before) + ids[len(before) :]))
    longest = max(len(ids) for ids, _ in rows)
    ids, labels = (torch.tensor([row[i] + [fill] * (longest - len(row[i])) for row in rows]) for i, fill in enumerate((0, -100)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a model this small gains nothing from two, and where the cores are busy it takes twenty times as long
    try:
        _learn(model, ids, labels)
    finally:
        torch.set_num_threads(threads)
    model.save_pretrained(folder)
    (folder / MANIFEST_FILE).unlink()
    return folder


def _rendered(turn: Turn, renderer: TemplateRenderer) -> list[Any]:
    """The messages that the template is given."""
    request = {"messages": list(turn.messages), "tools": list(turn.tools)}
    return list(as_in_training(request, renderer, writes_calls=not renderer.takes_calls)["messages"])


def _learn(model: Any, ids: Any, labels: Any) -> None:
    """Train until greedy answers are the labels."""
    import torch

    optimizer, steps = torch.optim.AdamW(model.parameters(), lr=3e-3), 0
    while (loss := model(input_ids=ids, labels=labels).loss).item() > KNOWN:
        assert steps < MOST_STEPS, f"after {steps} steps the loss is {loss.item():.3f}"
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
