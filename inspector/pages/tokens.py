"""The tokens of an episode as people see them: their text, a colour for what was measured, and the numbers themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from tokenizers import Tokenizer

from ...rollout.store.own_files import own_files
from ...rollout.tokenizer_files import refused_by_tokenizers
from ..text import number, printable
from .vocabulary import load_vocabulary

Colour = Literal["logprob", "advantage", "ratio", "entropy", "version"]
COLOURS: tuple[Colour, ...] = get_args(Colour)
SHADES = 8
COLUMNS: Mapping[Colour, str] = {
    "logprob": "sampler_logprobs",
    "advantage": "advantages",
    "ratio": "ratio",
    "entropy": "entropy",
    "version": "version",
}
"""What each colour shows, in the store's words."""
LONGEST = 200
"""Characters of a token that are shown: a tokenizer's file may hold any."""
NUMBERS = ("sampler_logprobs", "logprobs", "advantages", "ratio", "entropy")


@dataclass(frozen=True, slots=True)
class Token:
    """text: as shown, line breaks marked. shade: a CSS class, "" outside the mask and where nothing was measured. title: the numbers."""

    text: str
    breaks: bool
    sampled: bool
    shade: str
    title: str


def tokenizer_of(run: Path) -> Tokenizer | None:
    """The tokenizer of a model that the run itself saved, the latest; None before the first checkpoint. It is data, no code."""
    files = own_files(run, "*/model/tokenizer.json", "checkpoints")
    return _load(str(max(files, key=lambda file: file.stat().st_mtime))) if files else None


@lru_cache(maxsize=2)  # one of a large vocabulary takes 100 MB
def _load(file: str) -> Tokenizer:
    return load_vocabulary(Path(file))


def shown_tokens(row: Mapping[str, Any], colour: Colour, tokenizer: Tokenizer | None) -> list[list[Token]]:
    """The trajectories of a stored episode, token by token."""
    values = row[COLUMNS[colour]]
    sampled = row["mask"] or []
    shade = _shades(colour, [value for value, one in zip(values or (), sampled, strict=False) if one])
    out, start = list[list[Token]](), 0
    for length in row["lengths"] or ():
        ids = row["token_ids"][start : start + length]
        texts = _texts(ids, tokenizer) if tokenizer is not None else [f"{one} " for one in ids]
        out.append([
            Token(
                printable(text).replace("\n", "↵"), "\n" in text, sampled[at],
                shade(values[at]) if values is not None and sampled[at] else "", _title(row, at, ids[i], text),
            )
            for i, (text, at) in enumerate(zip(texts, range(start, start + length), strict=True))
        ])  # fmt: skip
        start += length
    return out


def _texts(ids: list[int], tokenizer: Tokenizer) -> list[str]:
    """The text that each token adds; where bytes of one character lie in several tokens, the last of them has it. Raises ValueError when
    the tokenizer fails."""
    try:
        return _decoded(ids, tokenizer)
    except BaseException as error:
        if not refused_by_tokenizers(error):
            raise
        raise ValueError(f"the tokens cannot be read with the tokenizer of the run: {error!s:.200}") from None


def _decoded(ids: list[int], tokenizer: Tokenizer) -> list[str]:
    texts, held, known, alone = list[str](), list[int](), dict[int, str](), _Names(tokenizer)
    for one in ids:
        if len(alone[one]) > LONGEST:  # of any length: it is shown as the vocabulary has it, and what waited for it as it is by itself
            texts[-1:] = ["\ufffd"] if held else texts[-1:]
            texts.append(_short(alone[one]))
            held = []
            continue
        held.append(one)
        said = known[one] if len(held) == 1 and one in known else tokenizer.decode(held, skip_special_tokens=False)
        if len(held) == 1:
            known[one] = said = said[: LONGEST + 1]
        if said.endswith("\ufffd") and len(held) < 4 and len(said) <= LONGEST:
            texts.append("")
            continue
        texts.append(_short(said if said or len(held) > 1 else alone[one]))
        held = []
    return [" " + text if _begins_word(alone[one]) and not text.startswith(" ") else text for one, text in zip(ids, texts, strict=True)]


class _Names(dict[int, str]):
    """The beginnings of tokens as the vocabulary has them, each asked for once: a token may have megabytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __missing__(self, one: int) -> str:
        self[one] = name = (self._tokenizer.id_to_token(one) or "")[: LONGEST + 1]
        return name


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _begins_word(name: str) -> bool:
    """Whether a SentencePiece token begins a word: decoded alone it loses the space that says so."""
    return name.startswith("\u2581")


def _title(row: Mapping[str, Any], at: int, one: int, text: str) -> str:
    lines = [f"{printable(text)!r} · id {one}"]
    if row["mask"][at]:
        lines += [
            f"{name.replace('_', ' ')} {number(row[name][at])}"
            for name in NUMBERS
            if row[name] is not None and math.isfinite(row[name][at])
        ]
        lines.append(f"weights {row['version'][at]}")
    return "\n".join(lines)


def _shades(colour: Colour, values: list[float]) -> Callable[[float], str]:
    """A value's class: `low-N` to `high-N` around 0 for advantages and around 1 for ratios, `high-N` from nothing to the most elsewhere."""
    centre = {"advantage": 0.0, "ratio": 1.0}.get(colour)
    finite = [value for value in values if math.isfinite(value)]
    if centre is not None:
        reach = max((abs(value - centre) for value in finite), default=0.0) or 1.0
        return lambda value: f"{'low' if value < centre else 'high'}-{_step(abs(value - centre) / reach)}" if math.isfinite(value) else ""
    if colour == "logprob":  # improbable tokens stand out; beyond e^-6 all look alike
        return lambda value: f"low-{_step(min(-value, 6.0) / 6.0)}" if math.isfinite(value) else ""
    least, most = min(finite, default=0.0), max(finite, default=1.0)
    return lambda value: f"high-{_step((value - least) / ((most - least) or 1.0))}" if math.isfinite(value) else ""


def _step(share: float) -> int:
    return max(0, min(SHADES - 1, round(share * (SHADES - 1))))
