"""Preference pairs as tokens, laid out before a phase trains on them: each pair is two examples of a store that follow each other.

runs/NAME/data/dpo/
  pairs.json      what there is; there once everything else is
  rejects.jsonl   rows that were left out, with file, line, field and reason
  pairs/          the better answer of each pair, then the worse one (`store.py`)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

from pydantic import Field, TypeAdapter, ValidationError

from ...envs.pydantic_words import first_error
from ...envs.rows import Problems
from ...envs.types import Int32, Message
from ...rollout.renderers import Renderer, TemplateRenderer
from ...rollout.store.own_files import own_file, read_whole
from ...rollout.store.records import JsonLines
from ...rollout.tokenizer import load_tokenizer
from ..models.manifest import DataUse
from .blend import Place, row_at
from .config import MORE_REJECTS, Making
from .examples import silent
from .forms import Preference, read_preference
from .rollout_pairs import rollout_pairs
from .sources import Reject, found_rows, rejected
from .store import ExampleStore, StoreWriter
from .supervised import SupervisedExample, rendered_answers

PAIRS_FILE: Final = "pairs.json"
REJECTS_FILE: Final = "rejects.jsonl"
STORE: Final = "pairs"
Pair = tuple[SupervisedExample, SupervisedExample]
"""A better and a worse answer to one prompt, of which the answers' tokens are trained."""
SAID_EVERY: Final = 1000
MOST_PAIRS: Final = 1_000_000
"""Of a step, in what is read of a run."""


class PairTable(Protocol):
    """What a phase's table says of its pairs (`phases.dpo.DPOConfig`)."""

    @property
    def name(self) -> str: ...
    @property
    def data(self) -> str | None: ...
    @property
    def from_run(self) -> str | None: ...
    @property
    def min_gap(self) -> float: ...
    @property
    def pairs_per_group(self) -> int: ...
    @property
    def source(self) -> str: ...
    @property
    def batch(self) -> int: ...
    @property
    def max_rejects(self) -> int: ...


@dataclass(frozen=True, slots=True)
class PairFacts:
    """What a source of pairs amounts to. tokens: of both answers, their prompts included. digest: of all tokens and masks. without: tasks
    of a run whose attempts gave no pair. files: where pairs come from, none where an earlier burnish laid them out.
    """

    source: str
    pairs: Annotated[int, Field(gt=0, lt=2**53)]
    tokens: int
    rejected: int
    batch: Annotated[int, Field(ge=1, le=MOST_PAIRS)]
    order: int
    digest: str = ""
    without: int = 0
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DrawnPair:
    """What stands at a position of a phase: the pass over the pairs, the pair's number, and where its answers come from: `FILE:ROW`, of a
    file of rows one row, of a run's stored rollouts a row for each.

    Example: `DrawnPair(7, 0, 3, "pairs.jsonl:4", "pairs.jsonl:4")`.
    """

    position: int
    epoch: int
    pair: int
    better: str
    worse: str


class PairData:
    """The pairs of a phase, from the folder where they were laid out. Example: `PairData(run / "data" / "dpo").pairs(step=0)`."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError when nothing was laid out there, or what lies there is not what `lay_out` writes."""
        file = own_file(folder, PAIRS_FILE)
        if file is None:
            raise ValueError(f"{folder} holds no pairs of a phase (it has no {PAIRS_FILE})")
        try:
            self.facts = TypeAdapter(PairFacts).validate_json(read_whole(file), strict=True)
        except ValidationError as error:
            raise ValueError(f"{file}: {first_error(error)}") from None
        self._folder, self._store = folder, ExampleStore(folder / STORE)
        if len(self._store) != 2 * self.facts.pairs:
            self.close()
            raise ValueError(f"{folder / STORE} holds {len(self._store)} answers, but {PAIRS_FILE} says {self.facts.pairs} pairs")

    def pairs(self, step: int) -> list[Pair]:
        """The pairs of a step, from 0: each pair once in every pass over them, in an order of the pass's own."""
        places = (self._at(position) for position in self._positions(step))
        return [(self._store.example(2 * place.row), self._store.example(2 * place.row + 1)) for place in places]

    def drawn(self, step: int) -> Iterator[DrawnPair]:
        """What a step has, from 0, in the order of its batch."""
        for position in self._positions(step):
            place = self._at(position)
            yield DrawnPair(position, place.epoch, place.row, self._where(2 * place.row), self._where(2 * place.row + 1))

    def _positions(self, step: int) -> range:
        return range(step * self.facts.batch, (step + 1) * self.facts.batch)

    def _at(self, position: int) -> Place:
        return row_at(self.facts.pairs, self.facts.order, position)

    def _where(self, number: int) -> str:
        """Where an answer comes from."""
        entry, files = self._store.entry(number), self.facts.files
        if not files:
            return f"{self.facts.source}, its file {entry.file + 1}:{entry.row}"
        if not 0 <= entry.file < len(files):
            raise ValueError(f"{self._folder / STORE}: answer {number} is of a file that {PAIRS_FILE} does not name")
        return f"{files[entry.file]}:{entry.row}"

    @property
    def uses(self) -> tuple[DataUse, ...]:
        """For the manifests of checkpoints."""
        return (DataUse(source=self.facts.source, sha256=self.facts.digest, examples=self.facts.pairs),)

    def probe(self) -> Sequence[Int32]:
        """A few sequences of tokens to compare engines and learner on."""
        return [better.token_ids for better, _ in self.pairs(0)]

    def ending_lines(self, phase: str, steps: int) -> Iterator[str]:
        """How often each pair was seen."""
        seen = steps * self.facts.batch
        yield f"{phase}: {seen:,} pairs seen, {seen / self.facts.pairs:.1f} passes over {self.facts.pairs:,}"

    def close(self) -> None:
        self._store.close()


def lay_out(table: PairTable, making: Making, folder: Path, say: Callable[[str], None] = silent) -> PairData:
    """Make every pair of a phase, once, and lay them out in `folder`, or take what lies there from an earlier start of the same run.

    Raises ValueError naming the rows that are unfit when there are more than `max_rejects`.
    """
    if (folder / PAIRS_FILE).is_file():
        return PairData(folder)
    shutil.rmtree(folder, ignore_errors=True)  # of a start that did not come to its end
    folder.mkdir(parents=True)
    facts = survey_pairs(table, making, folder=folder, say=say)
    draft = folder / f".{PAIRS_FILE}"
    draft.write_text(json.dumps(asdict(facts), indent=2, ensure_ascii=False) + "\n")
    draft.replace(folder / PAIRS_FILE)
    return PairData(folder)


def survey_pairs(table: PairTable, making: Making, *, folder: Path | None = None, say: Callable[[str], None] = silent) -> PairFacts:
    """What the pairs of a phase amount to, each row of them read and rendered. folder: where they are laid out, nowhere unless given."""
    pairs = tokens = unfit = without = 0
    problems = Problems()
    with ExitStack() as stack:
        store = stack.enter_context(StoreWriter(folder / STORE)) if folder is not None else None
        rejects = stack.enter_context(JsonLines(folder / REJECTS_FILE)) if folder is not None else None
        for made in _made(table, making):
            if made is None:
                without += 1
                continue
            if isinstance(made, Reject):
                unfit += 1
                problems.add(str(made))
                if unfit > table.max_rejects + MORE_REJECTS:
                    break
                if rejects is not None:
                    rejects.append(made.to_row())
                continue
            pair, places = made
            pairs, tokens = pairs + 1, tokens + sum(len(example.token_ids) for example in pair)
            for example, where in zip(pair, places, strict=True):
                file, _, number = where.rpartition(":")
                if store is not None:
                    store.add((example,), int(number), file)
            if pairs % SAID_EVERY == 0:
                say(f"{table.name}: {pairs:,} pairs tokenised")
        digest, files = (store.digest, store.files) if store is not None else ("", ())
    if unfit > table.max_rejects or not pairs:
        if table.max_rejects:
            problems.add(f"{table.name}.max_rejects: {table.max_rejects} rows may be left out, and {unfit} are unfit")
        problems.check()
        raise ValueError(f"{table.name}: {table.source} gives no pair")
    return PairFacts(table.source, pairs, tokens, unfit, table.batch, making.order, digest, without, files)


def pair_examples(preference: Preference, renderer: Renderer, max_tokens: int) -> Pair:
    """A pair as tokens, of which the answers are trained and the prompt is not, nor any answer in it.

    Raises ValueError when the template refuses an answer or rewrites a turn within it, or one is longer than `max_tokens`.
    """
    better, worse = (
        _answer(preference.prompt, answer, renderer, preference.tools, max_tokens) for answer in (preference.chosen, preference.rejected)
    )
    return better, worse


def _made(table: PairTable, making: Making) -> Iterator[tuple[Pair, tuple[str, str]] | Reject | None]:
    """The pairs of a table, each with where its answers stand; None for a task of a run that gives none."""
    if table.from_run is not None:
        yield from rollout_pairs(Path(table.from_run), making.model, table.min_gap, table.pairs_per_group, making.max_tokens)
        return
    assert table.data is not None
    renderer = TemplateRenderer(load_tokenizer(making.model), making.template_args)
    for found in found_rows(table.data, _read):
        yield found if isinstance(found, Reject) else _pair(*found, renderer, making.max_tokens)


def _read(row: Mapping[str, Any], where: str) -> tuple[Preference, str]:
    return read_preference(row), where


def _pair(preference: Preference, where: str, renderer: Renderer, max_tokens: int) -> tuple[Pair, tuple[str, str]] | Reject:
    try:
        return pair_examples(preference, renderer, max_tokens), (where, where)
    except ValueError as error:
        return rejected(str(error), where)


def _answer(
    prompt: Sequence[Message], answer: Sequence[Message], renderer: Renderer, tools: Sequence[Mapping[str, Any]], max_tokens: int
) -> SupervisedExample:
    spans, text = list[tuple[int, int]](), ""
    for asked, answered in rendered_answers((*prompt, *answer), renderer, tools, max_tokens, start=len(prompt)):
        if spans and not asked.startswith(text):
            raise ValueError("the chat template rewrites earlier turns, so an answer of several turns is no sequence; give its last turn")
        spans.append((len(asked), len(answered)))
        text = answered
    example = SupervisedExample(*renderer.encode_spans(text, spans))
    if len(example.token_ids) > max_tokens:
        raise ValueError(
            f"an answer with its prompt is {len(example.token_ids)} tokens long, more than the {max_tokens} allowed; shorten it"
        )
    return example
