"""The rows of a fused step: sequences into segments, segments into micro-batches, and a micro-batch
as one flat axis. Values and index tensors only; nothing here knows a model.

    job 1: seq seq seq │ job 2: seq seq │ job 3: seq …   padded rows
    └── segment ──────┘ └── segment ───┘ └ …              up to a whole tile

What makes a job's bits its own: how its sequences are cut into segments depends on the job alone,
every product over a segment's rows sees only that segment, every product over all rows sees tiles
of a fixed height, and threads part the rows between vectors (`whole_rows`). Then neither neighbours
nor the token budget can be told from the result.

N rows (tokens and padding), L tokens of a sequence, M label rows. Examples that are arrays are
sequences of one row each (`arrays.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from lora_core.errors import LoraError

#: rows of every product with a base weight; measured: with tiles of 256 a row's bits do not
#: depend on its neighbours, with a shorter last tile they do
TILE = 256
#: a segment's rows are a multiple of this, so that few shapes occur
ALIGN = 16
#: from this length on attention keeps no [L, L] weights for the backward
LONG = 1024
#: numbers of one vector, at most (bf16, AVX-512)
_VECTOR = 32
#: numbers from which on torch gives a further thread to an element-wise kernel
_GRAIN = 32768
#: sequences are put together up to so many rows; a longer one is a segment of its own
SEGMENT_ROWS = 256
#: all heads of the attention, not one half
_ALL = -1
#: attention runs on sequences padded to one of these, chosen from the sequence alone
_LENGTHS = (32, 64, 96, 128, 192, 256, 384, 512)


@dataclass(frozen=True)
class Sequence:
    """One example: ids int [L], mask bool [L] (True: a token to be learnt), and the key its
    dropout is drawn from."""

    ids: Tensor
    mask: Tensor
    key: int = 0

    @property
    def labels(self) -> int:
        """Tokens to be predicted: the first token of a sequence has nothing before it."""
        return int(self.mask[1:].sum())

    @property
    def tokens(self) -> int:
        """L."""
        return len(self.ids)

    @property
    def square(self) -> int:
        """Attention weights that are kept for the backward."""
        length = padded_length(len(self.ids))
        return length**2 if length <= LONG else 0


@dataclass(frozen=True)
class Row:
    """One example of an array network: x [...], y [...], and the key its dropout is drawn from."""

    x: Tensor
    y: Tensor
    key: int = 0
    labels: int = 1
    tokens: int = 1
    square: int = 0


@dataclass(frozen=True)
class Segment:
    """Rows of one slot (None: the bare base) that always stay together: sequences of tokens, or
    examples of an array network."""

    slot: str | None
    sequences: tuple[Sequence | Row, ...]
    #: tokens that see each other in LongLoRA's shifted attention; None: all of a sequence do
    group: int | None = None

    @cached_property
    def tokens(self) -> int:
        """Tokens of all its sequences."""
        return sum(s.tokens for s in self.sequences)

    @property
    def rows(self) -> int:
        """Its tokens, rounded up to ALIGN."""
        return -(-self.tokens // ALIGN) * ALIGN


def cut(
    slot: str | None, sequences: Iterable[Sequence | Row], group: int | None = None
) -> list[Segment]:
    """Put sequences together, in order, while they fit into SEGMENT_ROWS."""
    segments: list[Segment] = []
    held: list[Sequence | Row] = []
    size = 0
    for sequence in sequences:
        if held and size + sequence.tokens > SEGMENT_ROWS:
            segments.append(Segment(slot, tuple(held), group))
            held, size = [], 0
        held.append(sequence)
        size += sequence.tokens
    if held:
        segments.append(Segment(slot, tuple(held), group))
    return segments


def micro_batches(
    segments: Iterable[Segment],
    token_budget: int,
    fits: Callable[[list[Segment]], bool] = lambda _: True,
) -> list[list[Segment]]:
    """Take segments, in order, while their rows stay within the budget and all together `fits`;
    one that is too large by itself goes alone."""
    parts: list[list[Segment]] = []
    size = 0
    for segment in segments:
        size += segment.rows
        if not parts or size > token_budget or not fits([*parts[-1], segment]):
            parts.append([])
            size = segment.rows
        parts[-1].append(segment)
    return parts


@dataclass(frozen=True)
class Span:
    """Where a segment lies on the flat axis, and where its labels lie among all labels."""

    slot: str | None
    start: int
    stop: int
    label_start: int
    label_stop: int


class Spans(Protocol):
    """Whose rows and whose labels lie where."""

    @property
    def spans(self) -> list[Span]:
        """In order; what lies beyond them is nobody's."""


class Axis(Spans, Protocol):
    """What a product over slots' rows needs to know of the rows of x: whose they are (`spans`),
    and what their dropout is drawn from (`keys`, `positions` int64 [N])."""

    @property
    def keys(self) -> Tensor:
        """int64 [N]"""

    @property
    def positions(self) -> Tensor:
        """int64 [N]"""

    @property
    def training(self) -> bool:
        """Whether dropout is at work."""


@dataclass(frozen=True)
class Stretched:
    """An axis each of whose rows stands for several: the positions of a convolution, the words of
    an embedding."""

    spans: list[Span]
    keys: Tensor
    positions: Tensor
    training: bool


def stretched(axis: Axis, rows: int) -> Axis:
    """The axis of a layer that sees `rows` rows. They lie example by example, where there are
    whole multiples of the examples; a segment by itself owns all of them, however they lie.

    Raises: LoraError when neither is so.
    """
    count = len(axis.keys)
    if rows == count:
        return axis
    spans = axis.spans
    device = axis.keys.device
    if rows and rows % count == 0:
        times = rows // count
        return Stretched(
            [replace(s, start=s.start * times, stop=s.stop * times) for s in spans],
            axis.keys.repeat_interleave(times),
            (axis.positions[:, None] * times + torch.arange(times, device=device)).flatten(),
            axis.training,
        )
    if len(spans) == 1 and spans[0].stop == count:
        return Stretched(
            [replace(spans[0], start=0, stop=rows)],
            axis.keys[:1].expand(rows),
            torch.arange(rows, device=device),
            axis.training,
        )
    raise LoraError(f"a layer sees {rows} rows, which are no multiple of {count} examples")


@dataclass(frozen=True)
class Bucket:
    """The n sequences attention takes together: `gather` [n * length] are their rows, padded with
    each sequence's own first row; `rows` are the real ones, at the places `valid` of them. With a
    `half`, they are parts of sequences, and only that half of the heads (0 or 1) sees them so."""

    length: int
    count: int
    gather: Tensor
    rows: Tensor
    valid: Tensor
    half: int | None = None


@dataclass
class Layout:
    """One micro-batch as a flat axis, of whole segments (`padded` False: of nothing but tokens, for
    a sequence by itself). `ids`, `positions`, `keys` int64 [N]; `label_rows` int64 [M]
    are the rows whose next token is to be learnt, `labels` int64 [M] those tokens."""

    segments: list[Segment]
    padded: bool = True
    #: widths of the rows the model's element-wise kernels see
    widths: tuple[int, ...] = ()
    #: whether dropout is at work
    training: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        spans, ids, positions, keys, label_rows, labels = [], [], [], [], [], []
        alike: dict[tuple[int, int], list[tuple[int, int]]] = {}
        start = found = 0
        for segment in self.segments:
            row, before = start, found
            for sequence in segment.sequences:
                assert isinstance(sequence, Sequence)
                length = len(sequence.ids)
                ids.append(sequence.ids.long())
                positions.append(torch.arange(length))
                keys.append(torch.full((length,), sequence.key))
                at = sequence.mask[1:].nonzero().flatten()
                label_rows.append(at + row)
                labels.append(sequence.ids.long()[1:][at])
                found += len(at)
                group = segment.group if self.training else None
                for half, start_at, size in seen_together(length, group):
                    alike.setdefault((half, padded_length(size)), []).append((row + start_at, size))
                row += length
            stop = start + (segment.rows if self.padded else segment.tokens)
            spans.append(Span(segment.slot, start, stop, before, found))
            _pad((ids, positions, keys), stop - row)
            start = stop
        self.rows = (
            whole_rows(start, self.widths, torch.get_num_threads()) if self.padded else start
        )
        _pad((ids, positions, keys), self.rows - start)
        self.spans = spans
        self.ids = torch.cat(ids).to(self.device)
        self.positions = torch.cat(positions).to(self.device)
        self.keys = torch.cat(keys).to(self.device)
        self.label_rows = torch.cat(label_rows).to(self.device)
        self.labels = torch.cat(labels).to(self.device)
        self.buckets = [
            self._bucket(length, places, None if half == _ALL else half)
            for (half, length), places in sorted(alike.items())
        ]

    @property
    def tokens(self) -> int:
        """Real tokens."""
        return sum(segment.tokens for segment in self.segments)

    def _bucket(self, length: int, places: list[tuple[int, int]], half: int | None) -> Bucket:
        starts = torch.tensor([row for row, _ in places])[:, None]
        lengths = torch.tensor([size for _, size in places])[:, None]
        offsets = torch.arange(length)[None]
        real = offsets < lengths
        gather = (starts + torch.where(real, offsets, 0)).flatten().to(self.device)
        valid = real.flatten().nonzero().flatten().to(self.device)
        return Bucket(length, len(places), gather, gather[valid], valid, half)


def seen_together(length: int, group: int | None) -> list[tuple[int, int, int]]:
    """What of a sequence attends to each other: (half of the heads, or _ALL; start; length).

    With a group, shifted sparse attention ("LongLoRA: Efficient Fine-tuning of Long-Context Large
    Language Models", Chen et al., 2023): the first half of the heads sees groups of so many
    tokens, the second half the same groups shifted by half a group. Nothing wraps around: the
    first half group of the shifted ones, and what is left at the end, stand by themselves. A
    sequence of at most one group attends to all of itself.
    """
    if group is None or length <= group:
        return [(_ALL, 0, length)]
    found = []
    for half, first in ((0, group), (1, group // 2)):
        edges = [0, *range(first, length, group), length]
        found += [(half, a, b - a) for a, b in pairwise(edges)]
    return found


def whole_rows(rows: int, widths: tuple[int, ...], threads: int) -> int:
    """The next number of rows at which, for every width, each thread's share of an element-wise
    kernel ends with a whole vector.

    Of n numbers torch gives u = min(threads, n / 32768, rounded up) threads n / u each. A number
    that a vector does not reach is computed by other instructions, and may have other bits.
    """
    rows = -(-rows // ALIGN) * ALIGN
    while True:
        sizes = [rows * width for width in widths]
        shares = [(size, min(threads, -(-size // _GRAIN))) for size in sizes]
        if all(size % (_VECTOR * used) == 0 for size, used in shares):
            return rows
        rows += ALIGN


def padded_length(length: int) -> int:
    """The length attention pads a sequence to: one of a few up to 512, then multiples of 256."""
    for size in _LENGTHS:
        if length <= size:
            return size
    return -(-length // 256) * 256


def _pad(parts: tuple[list[Tensor], ...], rows: int) -> None:
    for part in parts:
        part.append(torch.zeros(rows, dtype=torch.int64))
