"""The data of a supervised phase, laid out before it trains: every source's examples on disk, the blend of them, and what it amounts to.

    runs/NAME/data/sft/
      blend.json          sources, shares, rows, tokens, digests; there once everything else is
      rejects.jsonl       rows that were left out, with file, line, field and reason
      own/  tool-use/ …   the examples of each source (`store.py`)

A run that resumes takes what was laid out when it began, whatever has become of the files since; which example a step has follows from the
step alone (`blend.py`), and `burnish data trace` says so too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ...envs.pydantic_words import first_error
from ...envs.rows import Problems, json_object
from ...envs.types import Int32
from ...rollout.store.json_lines import JsonLines
from ...rollout.store.own_files import own_file, read_whole
from ...rollout.store.records import read_share
from ...rollout.writing import write_text
from ..models.manifest import BlendShare, DataUse
from .blend import Blend, order_of, row_at, shares_by_tokens
from .config import MORE_REJECTS, Making, SupervisedRows
from .examples import ExampleMaker, Say, silent
from .held_out import lay_out_held_out, read_held_out
from .sources import Reject, Source, sources_of
from .store import ExampleStore, StoreWriter
from .supervised import SupervisedExample

BLEND_FILE: Final = "blend.json"
REJECTS_FILE: Final = "rejects.jsonl"

MOST_SAMPLES: Final = 1_000_000
"""Of a step, in what is read of a run."""

By = Literal["samples", "tokens"]


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What a source amounts to. asked: its share of the blend, as the recipe says; share: of its samples, the same unless the blend is by
    tokens. rows, examples: good ones, a row giving one example or several. tokens, trained: of all examples, and those that are learned.
    rejected: rows left out. files: where rows come from. digest: of all tokens and masks ("" before they are laid out).
    """

    name: str
    origin: str
    asked: Fraction
    share: Fraction
    rows: int
    examples: int
    tokens: int
    trained: int
    rejected: int
    curated: bool
    files: tuple[str, ...] = ()
    digest: str = ""

    @property
    def mean_tokens(self) -> float:
        """Of an example."""
        return self.tokens / self.examples if self.examples else 0.0

    def to_row(self) -> dict[str, Any]:
        return {**asdict(self), "asked": str(self.asked), "share": str(self.share)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> SourceFacts:
        """The inverse of `to_row`. Raises ValueError naming the field that is missing or wrong."""
        try:
            stored = _StoredFacts.model_validate(row)
        except ValidationError as error:
            raise ValueError(first_error(error)) from None
        return cls(**dict(stored))


Count = Annotated[int, Field(ge=0, lt=2**53)]


class _StoredFacts(BaseModel):
    """A row of `blend.json`, which may be anybody's. name: of a folder beside it, and nothing that leads elsewhere."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(pattern=r"^[^./\x00][^/\x00]*$")
    origin: str
    asked: Annotated[Fraction, BeforeValidator(read_share)]
    share: Annotated[Fraction, BeforeValidator(read_share)]
    rows: Count
    examples: Count
    tokens: Count
    trained: Count
    rejected: Count
    curated: bool
    files: tuple[str, ...] = Field(strict=False)
    digest: str


class _Record(BaseModel):
    """The rest of `blend.json`. batch: samples of a step. order: the seed that examples are shuffled with."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    batch: int = Field(ge=1, le=MOST_SAMPLES)
    order: int
    by: By
    sources: list[dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What stands at a position of a phase: the source, the pass over it, the example's number in it, and the row that it was made of."""

    position: int
    source: str
    epoch: int
    example: int
    file: str
    row: int

    @property
    def where(self) -> str:
        return f"{self.file}:{self.row}"


class PreparedData:
    """The examples of a phase, from the folder where they were laid out. Close it when done.

    Example: `PreparedData(run / "data" / "sft").examples(step=0)`.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ValueError when nothing was laid out there, or not to the end, or what lies there is not what `lay_out` writes."""
        file = own_file(folder, BLEND_FILE)
        if file is None:
            raise ValueError(f"{folder} holds no data of a phase (it has no {BLEND_FILE})")
        self._folder = folder
        try:
            record = _Record.model_validate(json_object(read_whole(file)))
            self.facts = tuple(map(SourceFacts.from_row, record.sources))
            self.blend = Blend({one.name: one.share for one in self.facts})
        except ValidationError as error:
            raise ValueError(f"{file}: {first_error(error)}") from None
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        self.batch, self.order, self.by = record.batch, record.order, record.by
        self._stores = {one.name: _store(folder, one) for one in self.facts if one.share}

    @cached_property
    def held_out(self) -> tuple[SupervisedExample, ...]:
        """The examples that the phase is measured on and never trains on."""
        return read_held_out(self._folder)

    def drawn(self, step: int) -> Iterator[Drawn]:
        """What a step has, from 0, in the order of its batch."""
        return self.drawn_at(self._positions(step))

    def drawn_at(self, positions: range) -> Iterator[Drawn]:
        """What stands at positions of the blend."""
        for position in positions:
            source, epoch, number = self._at(position)
            entry = self._stores[source.name].entry(number)
            if not 0 <= entry.file < len(source.files):
                raise ValueError(f"{self._folder / source.name}: example {number} is of a file that {BLEND_FILE} does not name")
            yield Drawn(position, source.name, epoch, number, source.files[entry.file], entry.row)

    def examples(self, step: int) -> list[SupervisedExample]:
        """The examples of a step, from 0."""
        return self.at(self._positions(step))

    def at(self, positions: range) -> list[SupervisedExample]:
        """The examples at positions of the blend."""
        places = map(self._at, positions)
        return [self._stores[source.name].example(number) for source, _, number in places]

    def metrics(self, step: int, examples: Sequence[SupervisedExample]) -> dict[str, float]:
        """Rows left out; and of a blend, the share of samples so far that each source had, and the tokens of the step that it taught."""
        metrics = {"rejected_rows": float(sum(one.rejected for one in self.facts if not one.curated))}
        if len(self.facts) == 1:
            return metrics
        taught = dict.fromkeys(self.blend.names, 0)
        for position, example in enumerate(examples, start=step * self.batch):
            taught[self.blend.names[self.blend.at(position).source]] += int(example.trainable.sum())
        metrics |= {f"blend/{name}": share for name, share in self.shares((step + 1) * self.batch).items()}
        return metrics | {f"blend_tokens/{name}": float(tokens) for name, tokens in taught.items()}

    def shares(self, samples: int) -> dict[str, float]:
        """The share of the first `samples` samples that each source of a blend had; empty where there is one source."""
        if len(self.facts) == 1:
            return {}
        return {name: count / max(1, samples) for name, count in zip(self.blend.names, self.blend.counts(samples), strict=True)}

    def taught(self, samples: int) -> dict[str, int]:
        """Tokens that each source teaches in the first `samples` samples."""
        total = dict.fromkeys(self.blend.names, 0)
        for position in range(samples):
            source, _, number = self._at(position)
            total[source.name] += self._stores[source.name].entry(number).trained
        return total

    def ending_lines(self, phase: str, steps: int) -> Iterator[str]:
        """What the blend amounted to after `steps` steps, beside what was asked for."""
        return self.blend_lines(phase, steps * self.batch)

    def blend_lines(self, phase: str, samples: int) -> Iterator[str]:
        """What the blend amounted to after so many samples, beside what was asked for."""
        if len(self.facts) > 1 and samples:
            counts, tokens = self.blend.counts(samples), self.taught(samples)
            whole, all_tokens = sum(counts), max(1, sum(tokens.values()))
            for one, count in zip(self.facts, counts, strict=True):
                passes = f", {count / one.examples:.1f} passes over its {one.examples:,}" if one.share else ""
                yield (
                    f"{phase} blend, {one.name}: {count / whole:.2%} of {whole:,} samples, {tokens[one.name] / all_tokens:.2%} of tokens "
                    f"({float(one.asked):.2%} of {self.by} asked for){passes}"
                )

    @property
    def uses(self) -> tuple[DataUse, ...]:
        """For the manifests of checkpoints: every source that is drawn from."""
        drawn = [one for one in self.facts if one.share]
        shares = [BlendShare(name=one.name, by=self.by, asked=float(one.asked)) if len(self.facts) > 1 else None for one in drawn]
        return tuple(
            DataUse(source=one.origin, sha256=one.digest, examples=one.examples, share=share)
            for one, share in zip(drawn, shares, strict=True)
        )

    def probe(self) -> Sequence[Int32]:
        """A few sequences of tokens to compare engines and learner on."""
        return [example.token_ids for example in self.examples(0)]

    def close(self) -> None:
        for store in self._stores.values():
            store.close()

    def _positions(self, step: int) -> range:
        return range(step * self.batch, (step + 1) * self.batch)

    def _at(self, position: int) -> tuple[SourceFacts, int, int]:
        draw = self.blend.at(position)
        source = self.facts[draw.source]
        place = row_at(source.examples, order_of(source.name, self.order), draw.ordinal)
        return source, place.epoch, place.row


def _store(folder: Path, facts: SourceFacts) -> ExampleStore:
    """The examples of a source. Raises ValueError when they are not those that the record tells of."""
    store = ExampleStore(folder / facts.name)
    if not 0 < len(store) == facts.examples:
        store.close()
        raise ValueError(f"{folder / facts.name} holds {len(store)} examples, but {BLEND_FILE} says {facts.examples}")
    return store


def lay_out(wanted: SupervisedRows, making: Making, folder: Path, say: Say = silent) -> PreparedData:
    """Make every example of a phase, once, and lay them out in `folder`, or take what lies there from an earlier start of the same run.

    Raises ValueError naming the rows that are unfit when there are more than `max_rejects`, a source without an example, shares that cannot
    be laid out, and a tokenizer or template that nothing can be trained with.
    """
    if (folder / BLEND_FILE).is_file():
        return PreparedData(folder)
    shutil.rmtree(folder, ignore_errors=True)  # of a start that did not come to its end
    maker = _maker(wanted, making)
    folder.mkdir(parents=True)
    facts = _surveyed(wanted, maker, making.seed, None, folder, say)
    lay_out_held_out(wanted, maker, folder)
    record = {"schema": 1, "phase": wanted.called, "batch": wanted.batch, "order": making.order, "by": wanted.rows.shares_of}
    draft = folder / f".{BLEND_FILE}"
    write_text(draft, json.dumps({**record, "sources": [one.to_row() for one in facts]}, indent=2, ensure_ascii=False) + "\n")
    draft.replace(folder / BLEND_FILE)
    return PreparedData(folder)


def survey(wanted: SupervisedRows, making: Making, *, limit: int | None = None, say: Say = silent) -> tuple[SourceFacts, ...]:
    """What every source of a phase amounts to, each row of it read and rendered. limit: of what is generated; a file is always read whole.

    Raises ValueError as `lay_out` does.
    """
    return _surveyed(wanted, _maker(wanted, making), making.seed, limit, None, say)


def _maker(wanted: SupervisedRows, making: Making) -> ExampleMaker:
    return ExampleMaker(wanted.kind, making.model, making.max_tokens, making.template_args, wanted.called)


def _surveyed(
    wanted: SupervisedRows, maker: ExampleMaker, seed: int, limit: int | None, folder: Path | None, say: Say
) -> tuple[SourceFacts, ...]:
    """What every source amounts to; with a folder, its examples are laid out there."""
    facts: list[SourceFacts] = []
    with ExitStack() as stack:
        rejects = stack.enter_context(JsonLines(folder / REJECTS_FILE)) if folder is not None else None
        for source in sources_of(wanted, seed, limit):
            facts.append(_taken(source, maker, rejects, folder, wanted.rows.max_rejects, say))
    if wanted.rows.shares_of == "tokens":
        asked = {one.name: one.asked for one in facts}
        shares = shares_by_tokens(asked, {one.name: one.trained for one in facts}, {one.name: one.examples for one in facts})
        facts = [replace(one, share=shares[one.name]) for one in facts]
    try:
        Blend({one.name: one.share for one in facts})
    except ValueError as error:
        raise ValueError(f"{wanted.called}.blend: {error}") from None
    return tuple(facts)


def _taken(source: Source, maker: ExampleMaker, rejects: JsonLines | None, folder: Path | None, most: int, say: Say) -> SourceFacts:
    """One source, its examples counted and, with a folder, written. Raises ValueError when too many of its rows are unfit, or all."""
    rows = examples = tokens = trained = rejected = 0
    problems = Problems()
    with ExitStack() as stack:
        store = stack.enter_context(StoreWriter(folder / source.name)) if folder is not None else None
        for made in maker.of(source, say):
            if isinstance(made, Reject):
                rejected += 1
                problems.add(str(made))
                if rejected > most + MORE_REJECTS and not source.curated:
                    break
                if rejects is not None:
                    rejects.append({"source": source.name, **made.to_row()})
                continue
            of_row, where = made
            file, _, number = where.rpartition(":")
            rows, examples = rows + 1, examples + len(of_row)
            tokens += sum(len(example.token_ids) for example in of_row)
            trained += sum(int(example.trainable.sum()) for example in of_row)
            if store is not None:
                store.add(of_row, int(number), file)
        files, digest = (store.files, store.digest) if store is not None else ((), "")
    if rejected > most and not source.curated:
        if most:
            problems.add(f"{maker.called}.max_rejects: {most} rows may be left out, and {rejected} are unfit")
        problems.check()
    if not examples and source.share:
        if source.curated and problems:
            first = problems.lines()[0]
            raise ValueError(
                f"{maker.called}: none is fit of all {rejected} rows of {first}; or name another catalog, or categories without this"
            )
        problems.check()
        raise ValueError(f"{maker.called}: {source.origin} gives no example")
    return SourceFacts(
        source.name, source.origin, source.share, source.share, rows, examples, tokens, trained, rejected, source.curated, files, digest
    )
