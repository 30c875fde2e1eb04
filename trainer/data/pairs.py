"""Preference pairs as tokens, laid out before a phase trains on them: each pair is two examples of a store that follow each other.

runs/NAME/data/dpo/
  pairs.json      sources and shares, and what each amounts to; there once everything else is
  rejects.jsonl   rows that were left out, with source, file, line, field and reason
  pairs/          the better answer of each pair, then the worse one (`store.py`); of another source of a blend, pairs-NAME/

Which pair stands at which place follows from the place alone (`blend.py`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from ...envs.pydantic_words import first_error
from ...envs.rows import Problems, json_object
from ...envs.types import Int32, Message
from ...rollout.renderers import Renderer, TemplateRenderer
from ...rollout.store.json_lines import JsonLines
from ...rollout.store.own_files import own_file, read_whole
from ...rollout.store.records import read_share
from ...rollout.tokenizer import load_tokenizer
from ...rollout.writing import write_text
from ..models.manifest import BlendShare, DataUse
from .blend import Blend, Place, order_of, row_at
from .config import MORE_REJECTS, OWN, Making, PairsConfig
from .examples import silent
from .forms import Preference, read_preference
from .rollout_pairs import rollout_pairs
from .sources import Reject, found_rows, rejected
from .store import ExampleStore, StoreWriter
from .supervised import SupervisedExample, rendered_answers

PAIRS_FILE: Final = "pairs.json"
REJECTS_FILE: Final = "rejects.jsonl"
STORE: Final = "pairs"
Count = Annotated[int, Field(ge=0, lt=2**53)]
Pair = tuple[SupervisedExample, SupervisedExample]
"""A better and a worse answer to one prompt, of which the answers' tokens are trained."""
SAID_EVERY: Final = 1000
MOST_PAIRS: Final = 1_000_000
"""Of a step, in what is read of a run."""


def _folder(source: str) -> str:
    return STORE if source == OWN else f"{STORE}-{source}"


def _as_share(value: object) -> Fraction:
    return value if isinstance(value, Fraction) else read_share(value)


class PairSource(NamedTuple):
    """A source of pairs: what it is called, its share of all pairs, and where they come from."""

    name: str
    share: Fraction
    rows: PairsConfig


class PairTable(Protocol):
    """What a phase's table says of its pairs (`phases.dpo.DPOConfig`)."""

    @property
    def name(self) -> str: ...
    @property
    def sources(self) -> Sequence[PairSource]: ...
    @property
    def batch(self) -> int: ...
    @property
    def max_rejects(self) -> int: ...


class PairFacts(BaseModel):
    """What a source of pairs amounts to, also in `pairs.json`, which may be anybody's. name: what the blend calls it. share: of all pairs.
    source: where they come from. tokens: of both answers, their prompts included. rejected: rows left out. without: tasks of a run whose
    attempts gave no pair. files: where pairs come from, none where an earlier burnish laid them out. digest: of all tokens and masks (""
    before they are laid out).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    share: Annotated[Fraction, BeforeValidator(_as_share), PlainSerializer(str)]
    source: str
    pairs: Count
    tokens: Count
    rejected: Count
    without: Count = 0
    files: tuple[str, ...] = Field(default=(), strict=False)
    digest: str = ""

    @property
    def folder(self) -> str:
        """Of its pairs, beside `pairs.json`."""
        return _folder(self.name)


class _Record(BaseModel):
    """`pairs.json`. batch: pairs of a step. order: the seed that pairs are shuffled with."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    batch: int = Field(ge=1, le=MOST_PAIRS)
    order: int
    sources: list[PairFacts] = Field(min_length=1)

    @classmethod
    def read(cls, text: bytes) -> _Record:
        """Raises ValueError for what is none. An earlier burnish, which blended no pairs, wrote its one source without a list."""
        said = json_object(text)
        if "sources" not in said:
            one = {key: value for key, value in said.items() if key not in ("batch", "order")}
            said = {key: said[key] for key in ("batch", "order") if key in said} | {"sources": [{"name": OWN, "share": "1", **one}]}
        return cls.model_validate(said)


@dataclass(frozen=True, slots=True)
class DrawnPair:
    """What stands at a position of a phase: the source, the pass over its pairs, the pair's number, and where its answers come from:
    `FILE:ROW`, of a file of rows one row, of a run's stored rollouts a row for each.

    Example: `DrawnPair(7, "own", 0, 3, "pairs.jsonl:4", "pairs.jsonl:4")`.
    """

    position: int
    source: str
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
            record = _Record.read(read_whole(file))
            self.blend = Blend({one.name: one.share for one in record.sources})
        except ValidationError as error:
            raise ValueError(f"{file}: {first_error(error)}") from None
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        self.facts, self.batch, self.order = tuple(record.sources), record.batch, record.order
        self._folder = folder
        self._stores = {one.name: _store(folder, one) for one in self.facts if one.share}

    def pairs(self, step: int) -> list[Pair]:
        """The pairs of a step, from 0: of each source each pair once in every pass over them, in an order of the pass's own."""
        places = ((self._stores[one.name], 2 * place.row) for _, one, place in self._places(step))
        return [(store.example(first), store.example(first + 1)) for store, first in places]

    def metrics(self, step: int, pairs: Sequence[Pair]) -> dict[str, float]:
        """Of a blend, the share of pairs so far that each source had, and the tokens of the step's pairs that it taught."""
        if len(self.facts) == 1:
            return {}
        seen, taught = (step + 1) * self.batch, dict.fromkeys(self.blend.names, 0)
        for pair, (_, one, _) in zip(pairs, self._places(step), strict=True):
            taught[one.name] += sum(int(example.trainable.sum()) for example in pair)
        shares = {f"blend/{name}": count / seen for name, count in zip(self.blend.names, self.blend.counts(seen), strict=True)}
        return shares | {f"blend_tokens/{name}": float(tokens) for name, tokens in taught.items()}

    def drawn(self, step: int) -> Iterator[DrawnPair]:
        """What a step has, from 0, in the order of its batch."""
        for position, one, place in self._places(step):
            better, worse = (self._where(one, 2 * place.row + i) for i in range(2))
            yield DrawnPair(position, one.name, place.epoch, place.row, better, worse)

    def _where(self, one: PairFacts, number: int) -> str:
        """Where an answer comes from."""
        entry, files = self._stores[one.name].entry(number), one.files
        if not files:
            return f"{one.source}, its file {entry.file + 1}:{entry.row}"
        if not 0 <= entry.file < len(files):
            raise ValueError(f"{self._folder / one.folder}: answer {number} is of a file that {PAIRS_FILE} does not name")
        return f"{files[entry.file]}:{entry.row}"

    @property
    def uses(self) -> tuple[DataUse, ...]:
        """For the manifests of checkpoints: every source that is drawn from."""
        drawn = [one for one in self.facts if one.share]
        shares = [BlendShare(name=one.name, by="pairs", asked=float(one.share)) if len(self.facts) > 1 else None for one in drawn]
        return tuple(
            DataUse(source=one.source, sha256=one.digest, examples=one.pairs, share=share) for one, share in zip(drawn, shares, strict=True)
        )

    def probe(self) -> Sequence[Int32]:
        """A few sequences of tokens to compare engines and learner on."""
        return [better.token_ids for better, _ in self.pairs(0)]

    def ending_lines(self, phase: str, steps: int) -> Iterator[str]:
        """How often each pair was seen."""
        for one, seen in zip(self.facts, self.blend.counts(steps * self.batch), strict=True):
            name = f" {one.name}" if len(self.facts) > 1 else ""
            yield f"{phase}{name}: {seen:,} pairs seen, {seen / max(1, one.pairs):.1f} passes over {one.pairs:,}"

    def close(self) -> None:
        for store in self._stores.values():
            store.close()

    def _places(self, step: int) -> Iterator[tuple[int, PairFacts, Place]]:
        for position in range(step * self.batch, (step + 1) * self.batch):
            draw = self.blend.at(position)
            one = self.facts[draw.source]
            order = self.order if one.name == OWN else order_of(one.name, self.order)
            yield position, one, row_at(one.pairs, order, draw.ordinal)


def _store(folder: Path, facts: PairFacts) -> ExampleStore:
    """The pairs of a source. Raises ValueError when they are not those that the record tells of."""
    store = ExampleStore(folder / facts.folder)
    if not 0 < len(store) == 2 * facts.pairs:
        store.close()
        raise ValueError(f"{folder / facts.folder} holds {len(store)} answers, but {PAIRS_FILE} says {facts.pairs} pairs")
    return store


def lay_out(table: PairTable, making: Making, folder: Path, say: Callable[[str], None] = silent) -> PairData:
    """Make every pair of a phase, once, and lay them out in `folder`, or take what lies there from an earlier start of the same run.

    Raises ValueError naming the rows that are unfit when there are more than `max_rejects`.
    """
    if (folder / PAIRS_FILE).is_file():
        return PairData(folder)
    shutil.rmtree(folder, ignore_errors=True)  # of a start that did not come to its end
    folder.mkdir(parents=True)
    record = _Record(batch=table.batch, order=making.order, sources=list(survey_pairs(table, making, folder=folder, say=say)))
    draft = folder / f".{PAIRS_FILE}"
    write_text(draft, json.dumps(record.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")
    draft.replace(folder / PAIRS_FILE)
    return PairData(folder)


def survey_pairs(
    table: PairTable, making: Making, *, folder: Path | None = None, say: Callable[[str], None] = silent
) -> tuple[PairFacts, ...]:
    """What the pairs of each source of a phase amount to, each row of them read and rendered. folder: where they are laid out, nowhere
    unless given."""
    with ExitStack() as stack:
        rejects = stack.enter_context(JsonLines(folder / REJECTS_FILE)) if folder is not None else None
        unfit = _Unfit(table, rejects)
        found = [_surveyed(source, making, unfit, folder, say) for source in table.sources]
    if unfit.count > table.max_rejects:
        unfit.refuse()
    for one in found:
        if not one.pairs and one.share:
            unfit.refuse()
            raise ValueError(f"{table.name}: {one.source} gives no pair")
    return tuple(found)


class _Unfit:
    """The rows that are left out of all sources of a table."""

    def __init__(self, table: PairTable, rejects: JsonLines | None) -> None:
        self.table, self.count, self._rejects, self._problems = table, 0, rejects, Problems()

    @property
    def is_enough(self) -> bool:
        """Whether it is known what is wrong."""
        return self.count > self.table.max_rejects + MORE_REJECTS

    def add(self, source: str, reject: Reject) -> None:
        self.count += 1
        self._problems.add(str(reject))
        if self._rejects is not None and not self.is_enough:
            self._rejects.append({"source": source, **reject.to_row()})

    def refuse(self) -> None:
        """Raises ValueError naming the rows, where there is one."""
        if self.table.max_rejects:
            self._problems.add(f"{self.table.name}.max_rejects: {self.table.max_rejects} rows may be left out, and {self.count} are unfit")
        self._problems.check()


def _surveyed(source: PairSource, making: Making, unfit: _Unfit, folder: Path | None, say: Callable[[str], None]) -> PairFacts:
    """One source, its pairs counted and, with a folder, written."""
    pairs = tokens = without = 0
    before = unfit.count
    with ExitStack() as stack:
        store = stack.enter_context(StoreWriter(folder / _folder(source.name))) if folder is not None else None
        for made in _made(source.rows, making):
            if made is None:
                without += 1
                continue
            if isinstance(made, Reject):
                unfit.add(source.name, made)
                if unfit.is_enough:
                    break
                continue
            pair, places = made
            pairs, tokens = pairs + 1, tokens + sum(len(example.token_ids) for example in pair)
            for example, where in zip(pair, places, strict=True):
                file, _, number = where.rpartition(":")
                if store is not None:
                    store.add((example,), int(number), file)
            if pairs % SAID_EVERY == 0:
                say(f"{unfit.table.name}: {source.name}, {pairs:,} pairs tokenised")
        files, digest = (store.files, store.digest) if store is not None else ((), "")
    return PairFacts(
        name=source.name, share=source.share, source=source.rows.source, pairs=pairs, tokens=tokens, rejected=unfit.count - before,
        without=without, files=files, digest=digest,
    )  # fmt: skip


def pair_examples(preference: Preference, renderer: Renderer, max_tokens: int) -> Pair:
    """A pair as tokens, of which the answers are trained and the prompt is not, nor any answer in it.

    Raises ValueError when the template refuses an answer or rewrites a turn within it, or one is longer than `max_tokens`.
    """
    better, worse = (
        _answer(preference.prompt, answer, renderer, preference.tools, max_tokens) for answer in (preference.chosen, preference.rejected)
    )
    return better, worse


def _made(table: PairsConfig, making: Making) -> Iterator[tuple[Pair, tuple[str, str]] | Reject | None]:
    """The pairs of a source, each with where its answers stand; None for a task of a run that gives none."""
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
