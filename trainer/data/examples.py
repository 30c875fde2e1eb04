"""Rows as tokens: the supervised examples of a phase, and whether the prompts of tasks fit, every row rendered before anything runs.

A row that cannot be rendered, or is too long, is named by file and line (`sources`, `task_files` have named those that cannot be read).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ...envs.rows import Problems
from ...rollout.control_tokens import ControlTokens
from ...rollout.renderers import TemplateRenderer, prompt_ids
from ...rollout.tokenizer import load_tokenizer
from ..models.tokenizer import document_frame
from ..phases.common import Phase
from ..phases.supervised import SupervisedConfig
from .config import TasksConfig
from .sources import conversations, documents
from .supervised import SupervisedExample, cpt_examples, sft_examples
from .task_files import TaskFiles

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

BATCH = 1000
"""Documents that are tokenised at once, and rows between two words of progress."""

Say = Callable[[str], None]
"""Told how far it is, now and then."""


def silent(text: str) -> None:
    """Progress that nobody watches."""


def supervised_examples(
    phase: Phase,
    table: SupervisedConfig,
    seed: int,
    model: Path,
    max_tokens: int,
    template_args: Mapping[str, Any],
    *,
    limit: int | None = None,
    say: Say = silent,
) -> list[SupervisedExample]:
    """The examples of a `[cpt]` or `[sft]` table for the tokenizer of `model`, none longer than `max_tokens`.

    template_args: of the chat template. limit: of those that are generated; a file is always read whole. Raises ValueError naming every row
    that cannot be read or rendered.
    """
    tokenizer = load_tokenizer(model)
    if phase == "cpt":
        begin, end = document_frame(tokenizer)
        ids = _tokenised(documents(table, seed, limit), tokenizer, say)
        return cpt_examples(ids, begin, end, max_tokens)
    renderer = TemplateRenderer(tokenizer, template_args)
    examples, problems = list[SupervisedExample](), Problems()
    for talk in _counted(conversations(table, seed, limit), "sft: conversations rendered", say):
        try:
            examples += sft_examples(talk.messages, renderer, talk.tools, max_tokens)
        except ValueError as error:
            problems.add(f"{talk.where}: {error}")
    problems.check()
    return examples


def check_prompts(
    table: TasksConfig,
    files: TaskFiles,
    model: Path,
    max_context: int,
    template_args: Mapping[str, Any],
    with_tools: bool,
    say: Say = silent,
) -> None:
    """Render the prompt of every task. template_args: of the chat template. with_tools: the row's own tools are described in it, as
    `burnish/SingleTurn-v0` has them.

    Raises ValueError naming every row whose prompt cannot be rendered, or leaves no room for an answer within `max_context` tokens.
    What an environment adds to the prompt is not counted.
    """
    renderer, problems = TemplateRenderer(load_tokenizer(model), template_args), Problems()
    for file, rows in ((table.train, files.train), (table.held_out, files.held_out)):
        for row in _counted(rows, f"{file}: prompts rendered", say):
            tools = row.data.get("tools", ()) if with_tools else ()
            try:
                length = len(prompt_ids(renderer, row.messages, tools))
            except ValueError as error:
                problems.add(f"{file}:{row.line}: messages: {error}")
                continue
            if length >= max_context:
                fix = "shorten it or raise engine.max_context"
                problems.add(f"{file}:{row.line}: messages: the prompt is {length} tokens long, engine.max_context is {max_context}; {fix}")
    problems.check()


def load_renderer(model: Path, template_args: Mapping[str, Any]) -> TemplateRenderer:
    """The renderer of a model folder. Raises ValueError when its chat template is none that can be trained with."""
    return TemplateRenderer(load_tokenizer(model), template_args)


def _tokenised(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, say: Say) -> Iterator[list[int]]:
    control = ControlTokens(tokenizer)
    rows = iter(texts)
    done = 0
    while batch := [control.broken(text) for text in islice(rows, BATCH)]:
        encoded: Any = tokenizer(batch, add_special_tokens=False)["input_ids"]
        yield from encoded
        done += len(batch)
        say(f"cpt: documents tokenised {done:,} of {len(texts):,}")


def _counted(rows: Sequence[T], what: str, say: Say) -> Iterable[T]:
    for done, row in enumerate(rows):
        if done and done % BATCH == 0:
            say(f"{what} {done:,} of {len(rows):,}")
        yield row
