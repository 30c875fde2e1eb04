"""Rows as tokens: the supervised examples of a phase, and whether the prompts of tasks fit, every row rendered before anything runs.

A row that cannot be rendered, or is too long, is named by file and line (`sources`, `task_files` have named those that cannot be read).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ...envs.rows import Problems
from ...rollout.control_tokens import ControlTokens
from ...rollout.renderers import TemplateRenderer, prompt_ids
from ...rollout.tokenizer import load_tokenizer
from ..models.tokenizer import document_frame
from .config import RowsKind, TasksConfig
from .forms import Conversation, Document
from .sources import READ_DOCUMENTS, Found, Reject, Source, rejected
from .supervised import SupervisedExample, cpt_examples, sft_examples, wholly_trained
from .task_files import TaskFiles

T = TypeVar("T")

BATCH = 1000
"""Documents that are tokenised at once, and rows between two words of progress."""
BATCH_CHARS = 4_000_000
"""Characters of them at most, so that memory does not grow with the documents."""

Say = Callable[[str], None]
"""Told how far it is, now and then."""

Made = tuple[list[SupervisedExample], str] | Reject
"""The examples of a row and where it is, or why there are none."""


def silent(text: str) -> None:
    """Progress that nobody watches."""


class ExampleMaker:
    """Makes examples of a phase for the tokenizer of a model, none longer than `max_tokens`.

    template_args: of the chat template. called: in messages, its kind unless given.

    Raises ValueError when the model's tokenizer or template is none that can be trained with.
    """

    def __init__(self, kind: RowsKind, model: Path, max_tokens: int, template_args: Mapping[str, Any], called: str = "") -> None:
        self.kind, self.called, self.max_tokens, self._args = kind, called or kind, max_tokens, template_args
        self.tokenizer = load_tokenizer(model)
        self._control = ControlTokens(self.tokenizer)
        self._frame = document_frame(self.tokenizer) if kind in READ_DOCUMENTS else None
        self._renderer = TemplateRenderer(self.tokenizer, template_args) if kind == "sft" else None

    def of(self, source: Source, say: Say = silent) -> Iterator[Made]:
        """The examples of every row of a source, in order. A document that is too long is cut, a conversation is not."""
        done, batch, size = 0, list[Found](), 0
        for found in source.found():
            batch.append(found)
            size += len(found.text) if isinstance(found, Document) else 0
            if len(batch) >= BATCH or size >= BATCH_CHARS:
                done += len(batch)
                yield from self._made(batch)
                say(f"{self.called}: {source.name}, {done:,} rows tokenised")
                batch, size = [], 0
        yield from self._made(batch)

    def _made(self, batch: Sequence[Found]) -> Iterator[Made]:
        texts = [self._control.broken(found.text) for found in batch if isinstance(found, Document)]
        encoded: Any = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        ids = iter(encoded)
        for found in batch:
            if isinstance(found, Reject):
                yield found
            elif isinstance(found, Document):
                assert self._frame is not None
                yield cpt_examples([next(ids)], *self._frame, self.max_tokens), found.where
            else:
                yield self._talk(found)

    def _talk(self, talk: Conversation) -> Made:
        if self._renderer is None:  # the first conversation among documents
            self._renderer = TemplateRenderer(self.tokenizer, self._args)
        try:
            examples = sft_examples(talk.messages, self._renderer, talk.tools, self.max_tokens)
        except ValueError as error:
            return rejected(str(error), talk.where)
        return [wholly_trained(one) for one in examples] if self.kind == "cpt" else examples, talk.where


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
                problems.add(f"{row.where}: messages: {error}")
                continue
            if length >= max_context:
                fix = "shorten it or raise engine.max_context"
                problems.add(f"{row.where}: messages: the prompt is {length} tokens long, engine.max_context is {max_context}; {fix}")
    problems.check()


def load_renderer(model: Path, template_args: Mapping[str, Any]) -> TemplateRenderer:
    """The renderer of a model folder. Raises ValueError when its chat template is none that can be trained with."""
    return TemplateRenderer(load_tokenizer(model), template_args)


def _counted(rows: Sequence[T], what: str, say: Say) -> Iterable[T]:
    for done, row in enumerate(rows):
        if done and done % BATCH == 0:
            say(f"{what} {done:,} of {len(rows):,}")
        yield row
