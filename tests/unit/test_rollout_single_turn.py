"""An episode on a row of a file: its prompt is asked once, its tools are described, and its hidden answer reaches the rewards."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from burnish.envs.types import Message, Reward
from burnish.rewards.plugin import make_scorer
from burnish.rewards.rubric import Rubric
from burnish.rollout.config import RolloutConfig
from burnish.rollout.conversation import EpisodeParts
from burnish.rollout.engine.fake import Reply, ScriptedEngine
from burnish.rollout.episode import run_episode
from burnish.rollout.renderers import TemplateRenderer
from burnish.trainer.data.task_files import task_row
from burnish.trainer.data.tasks import row_tasks
from burnish.trainer.models.tokenizer import train_tokenizer

pytestmark = pytest.mark.unit

PROMPT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2 + 2?"}]
TOOL = {"type": "function", "function": {"name": "calculator", "parameters": {}}}
HANDLER = Path(__file__).parents[1] / "integration" / "lambda_target.py"
GRADER = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{sample.output_text}}|{{item.messages[1].content}}|{{item.topic}}",
    "reference": "{{item.reference_answer}}|2 + 2?|sums",
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["2 + 2?", "be brief", "calculator", "4", "5"] * 20, vocab_size=400, max_length=512)


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.mark.parametrize(("answer", "value"), [("4", 1.0), ("5", 0.0)])
def test_a_row_is_asked_answered_and_judged(tokenizer: Any, threads: ThreadPoolExecutor, answer: str, value: float) -> None:
    row = {"id": "s1", "messages": PROMPT, "tools": [TOOL], "reference_answer": "4", "topic": "sums"}
    (task,) = row_tasks([task_row(row, "train", 1)], 0, 5, 1)
    grader = make_scorer("burnish/openai-grader-v1", "grader", {"grader": GRADER})
    handler = make_scorer("burnish/reward-lambda-v1", "handler", {"handler": f"{HANDLER}:lambda_handler"})
    engine = ScriptedEngine([Reply([*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id])])
    rubric = Rubric([(grader, 1.0), (handler, 0.5)], env_weight=0.0)
    parts = EpisodeParts(
        "burnish/SingleTurn-v0", {}, engine, TemplateRenderer(tokenizer), rubric, RolloutConfig(max_tokens_per_turn=16), threads, seed=0
    )

    episode = asyncio.run(run_episode(parts, task, 0, 1.0))

    assert episode.id == "train-5:s1/0"
    assert episode.messages == (*(Message(m["role"], m["content"]) for m in PROMPT), Message("assistant", answer))  # type: ignore[arg-type]
    expected = {"env": 0.0, "grader": value, "handler": value, "handler.accuracy": value}
    assert episode.outcome == Reward(1.5 * value, expected)
    prompt = tokenizer.decode(engine.requests[0].prompt_token_ids)
    assert (prompt.count("2 + 2?"), prompt.count("calculator"), "sums" in prompt) == (1, 1, False)
