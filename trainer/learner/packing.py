"""Packing: many token sequences as one padding-free row, every shared prefix computed once.

The samples of a group share their prompt, groups share the system prompt, and a sharp policy's samples share whole first turns. So the
sequences of a microbatch are laid out as a prefix tree: each node is a `Segment` of consecutive tokens that attend to their own segment
and to its ancestors, at the positions they have in their sequences. Every token gets the hidden state it would have had in its own
sequence, and each sequence picks its predictions from the nodes on its path, so losses and gradients are exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...envs.types import Bool, Int32

Int64 = NDArray[np.int64]

MIN_SHARED_TOKENS = 8
"""Tokens that sharing must save before a node of its own pays for the smaller attention blocks it causes."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive packed tokens `[start, start + length)` whose context is the chain of `ancestors`, root first.

    The first token's position is `context`, the ancestors' lengths together.
    Example: a prompt of three tokens with two answers: `Segment(0, 3)`, `Segment(3, 2, (0,), 3)`, `Segment(5, 4, (0,), 3)`.
    """

    start: int
    length: int
    ancestors: tuple[int, ...] = ()
    context: int = 0


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """M sequences as N packed tokens with T predictions.

    token_ids, position_ids: int64 `[N]`. segments: the tree, parents before children, covering `[0, N)` in order.
    Prediction t reads the hidden state at `hidden_index[t]` and is asked for token `targets[t]`; it is the token at
    `target_position[t]` of sequence `sequence[t]` (an index into what was packed), so per-token data of sequence m is
    `data[m][target_position[sequence == m]]`. All int64 `[T]`, ordered by sequence and position.
    """

    token_ids: Int64
    position_ids: Int64
    segments: tuple[Segment, ...]
    hidden_index: Int64
    targets: Int64
    sequence: Int64
    target_position: Int64


def trainable_positions(trainable: Bool) -> Int64:
    """Positions whose token is asked for. The first token has nothing to be predicted from: ValueError when it is marked."""
    if len(trainable) and trainable[0]:
        raise ValueError("the first token of a sequence is marked trainable, but nothing precedes it to predict it from")
    return np.flatnonzero(trainable).astype(np.int64)


def microbatches(sequences: Sequence[Int32], trainable: Sequence[Bool], budget: int) -> Iterator[PackedBatch]:
    """Pack the sequences into microbatches of about `budget` tokens, alike in size. What trains nothing is left out.

    Sequences are sorted by their tokens, which puts those that share the longest prefixes next to each other; one that is longer than
    the budget makes a microbatch of its own.
    """
    inputs = {m: sequences[m][: int(positions[-1])] for m in range(len(sequences)) if len(positions := trainable_positions(trainable[m]))}
    order = sorted(inputs, key=lambda m: inputs[m].tolist())
    costs = [len(inputs[m]) - (common_prefix(inputs[m], inputs[order[i - 1]]) if i else 0) for i, m in enumerate(order)]
    share = budget if not costs else -(-sum(costs) // -(-sum(costs) // budget))
    chosen: list[int] = []
    spent = 0
    for m, cost in zip(order, costs, strict=True):
        if chosen and spent + cost > share:
            yield pack(sequences, trainable, chosen)
            chosen, spent = [], 0
        # A sequence that opens a microbatch finds none of its prefix there.
        spent += cost if chosen else len(inputs[m])
        chosen.append(m)
    if chosen:
        yield pack(sequences, trainable, chosen)


def pack(sequences: Sequence[Int32], trainable: Sequence[Bool], chosen: Sequence[int]) -> PackedBatch:
    """Lay out the `chosen` sequences as a prefix tree. Tokens after the last prediction are not computed, nor is the last target."""
    positions = {m: trainable_positions(trainable[m]) for m in chosen}
    tree = _Tree([sequences[m][: int(positions[m][-1])].astype(np.int64) for m in chosen])
    hidden_index = [tree.index_of(i)[positions[m] - 1] for i, m in enumerate(chosen)]
    return PackedBatch(
        token_ids=np.concatenate(tree.tokens),
        position_ids=np.concatenate([np.arange(s.context, s.context + s.length) for s in tree.segments]),
        segments=tuple(tree.segments),
        hidden_index=np.concatenate(hidden_index),
        targets=np.concatenate([sequences[m][positions[m]].astype(np.int64) for m in chosen]),
        sequence=np.repeat(np.asarray(chosen, dtype=np.int64), [len(positions[m]) for m in chosen]),
        target_position=np.concatenate([positions[m] for m in chosen]),
    )


def no_predictions() -> PackedBatch:
    """A microbatch that asks for nothing: what a rank computes while others still have something to do, so that all do as many passes."""
    one, none = np.zeros(1, np.int64), np.zeros(0, np.int64)
    return PackedBatch(one, one, (Segment(0, 1),), none, none, none, none)


def common_prefix(a: NDArray[np.integer], b: NDArray[np.integer]) -> int:
    """Length of the longest common prefix of two token arrays."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def path_index(segments: Sequence[Segment], path: Sequence[int]) -> Int64:
    """Packed indices of the tokens of the segments on `path`, in order, int64 `[their lengths together]`."""
    return np.concatenate([np.arange(segments[k].start, segments[k].start + segments[k].length) for k in path])


class _Tree:
    """Builds the segments of a prefix tree over `sequences`, and remembers each sequence's path."""

    def __init__(self, sequences: Sequence[Int64]) -> None:
        self.sequences = sequences
        self.segments: list[Segment] = []
        self.tokens: list[Int64] = []
        self.paths: list[tuple[int, ...]] = [()] * len(sequences)
        # An explicit stack: the depth of a tree over many near-identical sequences exceeds Python's recursion limit.
        pending: list[tuple[list[int], int, tuple[int, ...]]] = [(list(range(len(sequences))), 0, ())]
        while pending:
            members, depth, path = pending.pop()
            pending.extend(reversed(self._grow(members, depth, path)))

    def index_of(self, i: int) -> Int64:
        """Where the tokens of sequence i lie in the packed row, int64 `[its length]`."""
        return path_index(self.segments, self.paths[i])

    def _grow(self, members: list[int], depth: int, path: tuple[int, ...]) -> list[tuple[list[int], int, tuple[int, ...]]]:
        """Make the node that `members` share beyond `depth`, if it is worth one; return their parts, which differ from there on."""
        first = self.sequences[members[0]]
        shared = min((common_prefix(first, self.sequences[i]) for i in members), default=0)
        if shared > depth and (len(members) == 1 or (shared - depth) * (len(members) - 1) >= MIN_SHARED_TOKENS):
            path = self._add(first[depth:shared], depth, path)
            depth = shared
        parts: dict[int, list[int]] = {}
        for i in members:
            if len(self.sequences[i]) > shared:
                parts.setdefault(int(self.sequences[i][shared]), []).append(i)
            else:
                self.paths[i] = self._add(self.sequences[i][depth:], depth, path) if shared > depth else path
        return [(part, depth, path) for part in parts.values()]

    def _add(self, tokens: Int64, context: int, ancestors: tuple[int, ...]) -> tuple[int, ...]:
        start = self.segments[-1].start + self.segments[-1].length if self.segments else 0
        self.segments.append(Segment(start, len(tokens), ancestors, context))
        self.tokens.append(tokens)
        return (*ancestors, len(self.segments) - 1)
