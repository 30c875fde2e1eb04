"""What was measured of a suite: every sample, what they amount to, and both on disk.

OUT/results.json                     what each suite amounts to
OUT/burnish--choices-v1.parquet      a row per sample: item, sample, seed, score, answer
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ....envs.pydantic_words import first_error
from ....envs.registry import ID_PATTERN
from ....envs.rows import json_object
from ....rollout.store.intervals import wilson_interval
from ....rollout.store.own_files import own_file, own_files
from ....rollout.writing import writing
from ..statistics import exact_interval, resampled_means
from .suite import Suite, SuiteKind, file_name

RESULTS = "results.json"
SCHEMA_VERSION = 1
FEW = 30
"""Items below which the interval of graded scores is Wilson's, which holds for them conservatively, and no bootstrap."""
RESAMPLES = 10_000
SAMPLES = "samples of a suite"
LARGEST = 512 << 20
"""Bytes that the samples of one suite may take: they are in memory together."""
LONGEST_ID = 200
UNLIKELY = 700.0
"""Nats that no token is less likely than: the exponential of more is no number."""

Interval = Literal["exact", "wilson", "bootstrap"]


@dataclass(frozen=True, slots=True)
class ItemScore:
    """One answer to an item, or one reading of a text.

    score: in [0, 1]; of a text, the log-probability of its tokens together, in nats. None when it failed, for the reason in `failure`.
    tokens: sampled; of a text, those that were scored. seed: the item's. answer: the policy's last words, "" for a text.

    Example: `ItemScore("17", 0, 17, 1.0, "B", 2)`.
    """

    item: str
    sample: int
    seed: int
    score: float | None
    answer: str
    tokens: int
    failure: str = ""


@dataclass(frozen=True)
class Scores:
    """Every sample of a suite under one model. right, chance: the suite's; temperature: 0 is greedy.

    Example: `Scores("burnish/choices-v1", "answers", 1.0, 0.25, 0.0, samples).result()`.
    """

    suite: str
    kind: SuiteKind
    right: float
    chance: float
    temperature: float
    samples: tuple[ItemScore, ...]

    @classmethod
    def of(cls, suite: Suite, temperature: float, samples: Sequence[ItemScore]) -> Scores:
        """The samples, in order of items as they are asked."""
        return cls(suite.id, suite.kind, suite.right, suite.chance, temperature, tuple(samples))

    @property
    def by_item(self) -> dict[str, list[ItemScore]]:
        """The samples that have a score, of each item that has any."""
        found: defaultdict[str, list[ItemScore]] = defaultdict(list)
        for one in self.samples:
            if one.score is not None:
                found[one.item].append(one)
        return dict(found)

    @property
    def item_scores(self) -> dict[str, float]:
        """The mean score of each item; of a text, its mean log-probability per token."""
        if self.kind == "texts":
            return {item: (found[0].score or 0.0) / found[0].tokens for item, found in self.by_item.items()}
        return {item: math.fsum(one.score or 0.0 for one in found) / len(found) for item, found in self.by_item.items()}

    @property
    def item_right(self) -> dict[str, bool]:
        """Whether each item is right: at least half of its samples are."""
        return {
            item: 2 * sum(one.score is not None and one.score >= self.right for one in found) >= len(found)
            for item, found in self.by_item.items()
        }

    def guessed(self, items: Sequence[str]) -> float:
        """The share of these items that guessing alone gets right by `item_right`, which for several samples is another than `chance`."""
        found = self.by_item
        return math.fsum(guessed_right(self.chance, len(found[item])) for item in items) / len(items)

    def result(self) -> Result:
        """What the samples amount to. Raises ValueError when none has a score."""
        if not self.by_item:
            raise ValueError(f"suite {self.suite}: nothing was scored; the first failure: {next(iter(self.samples)).failure}")
        return _text_result(self) if self.kind == "texts" else _answers_result(self)


@dataclass(frozen=True, slots=True)
class Result:
    """What a suite amounts to, over the items that were scored.

    value: the mean score of its items; of texts, their perplexity. low, high: its 95 % interval, as `interval` says. adjusted: what of the
    way from chance to perfect was made, (value - chance) / (1 - chance); None for texts. pass_at: k -> the chance that one of k samples is
    right. failures: kind -> samples.
    """

    suite: str
    kind: SuiteKind
    items: int
    samples: int
    value: float
    low: float
    high: float
    interval: Interval
    adjusted: float | None = None
    chance: float = 0.0
    pass_at: Mapping[int, float] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """On one line. Example: `burnish/choices-v1: 46.0% [36%, 56%] of 100 items, 28.0% above chance`."""
        if self.kind == "texts":
            return f"{self.suite}: perplexity {self.value:.2f} [{self.low:.2f}, {self.high:.2f}] of {self.items} texts"
        parts = [f"{self.suite}: {self.value:.1%} [{self.low:.0%}, {self.high:.0%}] of {self.items} items"]
        if self.chance:
            parts.append(f"{self.adjusted:.1%} of the way from chance ({self.chance:.0%})")
        parts += [f"pass@{k} {share:.1%}" for k, share in self.pass_at.items() if k > 1]
        if self.failures:
            parts.append("failed: " + ", ".join(f"{count} {kind}" for kind, count in self.failures.items()))
        return ", ".join(parts)

    def to_row(self) -> dict[str, Any]:
        return {"schema": SCHEMA_VERSION, **asdict(self), "pass_at": {str(k): share for k, share in self.pass_at.items()}}


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that one of k samples is right, drawn from `samples` of which `right` are (Chen et al. 2021, arXiv 2107.03374): unbiased.

    Example: `pass_at_k(4, 1, 2)` is 0.5.
    """
    assert 0 <= right <= samples
    assert 1 <= k <= samples
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def guessed_right(chance: float, samples: int) -> float:
    """How likely at least half of so many guesses are right, each with `chance`: binomial.

    Example: `guessed_right(0.25, 2)` is 0.4375, the chance that one of two hits.
    """
    if samples > FEW:  # the coefficients of many are more than a float can hold
        logs = (
            math.lgamma(samples + 1)
            - math.lgamma(j + 1)
            - math.lgamma(samples - j + 1)
            + j * math.log(chance)
            + (samples - j) * math.log1p(-chance)
            for j in range((samples + 1) // 2, samples + 1)
        )
        return min(1.0, math.fsum(map(math.exp, logs))) if chance else 0.0
    return math.fsum(math.comb(samples, j) * chance**j * (1 - chance) ** (samples - j) for j in range((samples + 1) // 2, samples + 1))


def _answers_result(scores: Scores) -> Result:
    values = np.array(list(scores.item_scores.values()))
    mean, n = float(values.mean()), len(values)
    interval: Interval
    if np.isin(values, (0.0, 1.0)).all():
        interval, (low, high) = "exact", exact_interval(int(values.sum()), n)
    elif n < FEW:
        interval, (low, high) = "wilson", wilson_interval(mean, n)
    else:
        interval, (low, high) = "bootstrap", np.quantile(resampled_means(0, RESAMPLES, values)[0], (0.025, 0.975))
    return Result(
        scores.suite,
        scores.kind,
        n,
        sum(one.score is not None for one in scores.samples),
        mean,
        float(low),
        float(high),
        interval,
        (mean - scores.chance) / (1 - scores.chance),
        scores.chance,
        dict(_passes(scores)),
        dict(sorted(Counter(one.failure for one in scores.samples if one.failure).items())),
    )


def _passes(scores: Scores) -> Iterator[tuple[int, float]]:
    """pass@k for k of 1, 2, 4, …, over as many samples as every item has."""
    groups = list(scores.by_item.values())
    most, k = min(map(len, groups)), 1
    while k <= most:
        rights = [sum(one.score is not None and one.score >= scores.right for one in group) for group in groups]
        yield k, math.fsum(pass_at_k(len(group), right, k) for group, right in zip(groups, rights, strict=True)) / len(groups)
        k *= 2


def _text_result(scores: Scores) -> Result:
    found = [group[0] for group in scores.by_item.values()]
    nats = np.array([-(one.score or 0.0) for one in found])
    tokens = np.array([one.tokens for one in found], np.float64)
    drawn, of_tokens = resampled_means(0, RESAMPLES, nats, tokens)
    low, high = np.exp(np.quantile(drawn / of_tokens, (0.025, 0.975)))
    value = float(np.exp(nats.sum() / tokens.sum()))
    return Result(scores.suite, scores.kind, len(found), len(found), value, float(low), float(high), "bootstrap")


def write_scores(out: Path, every: Sequence[Scores], model: str) -> None:
    """Write each suite's samples, and `results.json` last, into a folder; what it had of the same suites is replaced."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir(parents=True, exist_ok=True)
    for scores in every:
        head = {"schema": SCHEMA_VERSION, "model": model, **{key: value for key, value in vars(scores).items() if key != "samples"}}
        table = pa.Table.from_pylist([asdict(one) for one in scores.samples], _columns().with_metadata({"burnish": json.dumps(head)}))
        target = out / f"{file_name(scores.suite)}.parquet"
        draft = out / f".{target.name}.tmp"
        with writing(draft):
            pq.write_table(table, draft, compression="zstd")
        draft.replace(target)
    said = {"schema": SCHEMA_VERSION, "model": model, "suites": [scores.result().to_row() for scores in every]}
    draft = out / f".{RESULTS}.tmp"
    draft.write_text(json.dumps(said, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    draft.replace(out / RESULTS)


def read_scores(out: Path) -> dict[str, Scores]:
    """What was written into a folder, by suite. Raises ValueError when it holds no results, or naming the file that holds what is no sample
    of a suite, whatever it holds instead."""
    if own_file(out, RESULTS) is None:
        raise ValueError(f"{out} holds no results ({RESULTS}); `burnish evaluate CHECKPOINT --suite … --out {out}` writes them")
    found = dict[str, Scores]()
    for file in own_files(out, "*.parquet"):
        scores = _read(file)
        if scores.suite in found:
            raise ValueError(f"{file}: another file of {out} holds {scores.suite} too; remove one of them")
        found[scores.suite] = scores
    return found


class _Head(BaseModel):
    """What a file says of its suite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = Field(alias="schema")
    model: str
    suite: str = Field(max_length=LONGEST_ID, pattern=ID_PATTERN.pattern)
    kind: SuiteKind
    right: float = Field(gt=0, le=1)
    chance: float = Field(ge=0, lt=1)
    temperature: float = Field(ge=0, le=100)


def _columns() -> Any:
    import pyarrow as pa

    kinds = {"item": pa.string(), "sample": pa.int32(), "seed": pa.int64(), "score": pa.float64(), "answer": pa.string()}
    return pa.schema(
        [pa.field(name, kind, name == "score") for name, kind in {**kinds, "tokens": pa.int32(), "failure": pa.string()}.items()]
    )


def _read(file: Path) -> Scores:
    from ....rollout.store.reading import stored_note, stored_rows

    note = stored_note(file, "burnish", SAMPLES)
    try:
        head = _Head.model_validate(json_object(note))
    except ValidationError as error:
        raise ValueError(f"{file}: cannot be read as {SAMPLES}: {first_error(error)}") from None
    except ValueError as error:
        raise ValueError(f"{file}: cannot be read as {SAMPLES}: {error}") from None
    samples = list[ItemScore]()
    for number, row in enumerate(stored_rows(file, _columns(), SAMPLES, LARGEST), start=1):
        sample = ItemScore(**row)
        problem = _problem(sample, head.kind)
        if problem:
            raise ValueError(f"{file}: row {number}: {problem}")
        samples.append(sample)
    return Scores(head.suite, head.kind, head.right, head.chance, head.temperature, tuple(samples))


def _problem(sample: ItemScore, kind: SuiteKind) -> str:
    """What of a sample can be none that was measured, or ""."""
    if sample.score is None or (kind == "answers" and 0 <= sample.score <= 1):
        return ""
    if kind == "answers":
        return f"score is {sample.score:g}; that of an answer is from 0 to 1"
    if sample.tokens < 1:
        return f"tokens is {sample.tokens}; a text that was scored has some"
    if not -UNLIKELY * sample.tokens <= sample.score <= sample.tokens:
        return f"score is {sample.score:g}, which is no log-probability of {sample.tokens} tokens"
    return ""
