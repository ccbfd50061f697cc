"""Attention of one layer on the native kernels, forward and backward: whole sequences with all
heads, and for LongLoRA's shifted groups (`segments.seen_together`) parts of sequences with half.

N rows, H heads and K key-value heads of E.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lora_core.attention import half_of
from lora_core.native.kernels import Kernels, rows
from lora_core.segments import Layout, seen_together

Three = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Seen:
    """First rows and lengths, int64 [n], of what attends to each other; with a `half`, as far as
    that half of the heads (0 or 1) goes."""

    starts: Tensor
    lengths: Tensor
    half: int | None


@dataclass(frozen=True)
class Sequences:
    """All of a layout's, and the rows that are in none."""

    seen: list[Seen]
    padding: Tensor

    @classmethod
    def of(cls, layout: Layout) -> Sequences:
        """Those of a layout's segments."""
        found: dict[int, list[tuple[int, int]]] = {}
        inside = torch.zeros(layout.rows, dtype=torch.bool)
        for span, segment in zip(layout.spans, layout.segments, strict=True):
            row = span.start
            group = segment.group if layout.training else None
            for sequence in segment.sequences:
                length = sequence.tokens
                for half, start, size in seen_together(length, group):
                    found.setdefault(half, []).append((row + start, size))
                inside[row : row + length] = True
                row += length
        seen = [
            Seen(
                torch.tensor([start for start, _ in places]),
                torch.tensor([size for _, size in places]),
                half if half >= 0 else None,
            )
            for half, places in sorted(found.items())
        ]
        return cls(seen, (~inside).nonzero().flatten())


@dataclass(frozen=True)
class Heads:
    """A layer's heads: `count` of them in `groups` that share keys, `width` numbers each."""

    count: int
    groups: int
    width: int
    scale: float
    window: int

    def part(self, half: int | None) -> tuple[slice, slice]:
        """Which heads, and which groups, a half has."""
        if half is None:
            return slice(0, self.count), slice(0, self.groups)
        edge = half_of(self.count, self.groups)
        middle = edge * self.groups // self.count
        heads = slice(0, edge) if half == 0 else slice(edge, self.count)
        if self.groups == 1:
            return heads, slice(0, 1)
        return heads, slice(0, middle) if half == 0 else slice(middle, self.groups)


def forward(
    kernels: Kernels, heads: Heads, sequences: Sequences, given: Three, out: Tensor
) -> list[Tensor]:
    """Attention of q [N, H E], k and v [N, K E] into out [N, H E]; the log-sum-exps for the way
    back."""
    out.index_fill_(0, sequences.padding, 0)
    found = []
    for seen in sequences.seen:
        own, groups = heads.part(seen.half)
        q, k, v = _columns(heads, given, own, groups)
        found.append(
            kernels.attend(
                seen.starts,
                seen.lengths,
                own.stop - own.start,
                groups.stop - groups.start,
                q,
                k,
                v,
                heads.scale,
                heads.window,
                _own(heads, out, own),
            )
        )
    return found


def backward(
    kernels: Kernels,
    heads: Heads,
    sequences: Sequences,
    given: tuple[Tensor, Tensor],
    inputs: Three,
    sums: list[Tensor],
    slopes: Three,
) -> None:
    """The slopes of q, k and v for that of the output: `given` are it and the output [N, H E].
    Rows of no sequence are left as they are."""
    for seen, lse in zip(sequences.seen, sums, strict=True):
        own, groups = heads.part(seen.half)
        dq, dk, dv = _columns(heads, slopes, own, groups)
        twice = seen.half == 1 and heads.groups == 1
        if twice:  # the other half has left its share there
            dk, dv = rows(*dk.shape), rows(*dv.shape)
        q, k, v = _columns(heads, inputs, own, groups)
        slope, made = given
        kernels.attend_back(
            seen.starts,
            seen.lengths,
            own.stop - own.start,
            groups.stop - groups.start,
            _own(heads, slope, own),
            _own(heads, made, own),
            q,
            k,
            v,
            lse,
            heads.scale,
            heads.window,
            (dq, dk, dv),
        )
        if twice:
            for start, size in zip(seen.starts.tolist(), seen.lengths.tolist(), strict=True):
                for total, share in zip(slopes[1:], (dk, dv), strict=True):
                    total[start : start + size] += share[start : start + size]


def _columns(heads: Heads, three: Three, own: slice, groups: slice) -> Three:
    q, k, v = three
    return _own(heads, q, own), _own(heads, k, groups), _own(heads, v, groups)


def _own(heads: Heads, x: Tensor, which: slice) -> Tensor:
    return x[:, which.start * heads.width : which.stop * heads.width]
