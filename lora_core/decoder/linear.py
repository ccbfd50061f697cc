"""A linear group with every slot's adapters, forward and backward, on the native kernels.

    forward   s = scale drop(x) A^T          y  = x W^T + s B^T
    backward  t = scale dy B                 dx = dy W + drop(t A)
              dB += dy^T s                   dA += t^T drop(x)

DoRA's share of it is in `dora.py`. The oracle is `ops/reference.py`. N rows, D in, O out, R ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_core.decoder import dora
from lora_core.group import LinearGroup
from lora_core.layer import LoraLinear
from lora_core.native.kernels import Extra, Kernels, rows
from lora_core.segments import ALIGN, Layout
from lora_core.weights import Pair, SlotWeights


@dataclass
class Piece:
    """A slot's adapters on a group, and the rows [start, stop) of a segment of the slot's."""

    span: tuple[int, int]
    held: SlotWeights
    pair: Pair


@dataclass
class Cast:
    """Who is at work in one pass, found once for all layers."""

    kernels: Kernels
    layout: Layout
    slots: dict[str, SlotWeights]
    rates: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.rates = torch.zeros(self.layout.rows)
        for span in self.layout.spans:
            if span.slot is not None and self.layout.training:
                self.rates[span.start : span.stop] = self.slots[span.slot].spec.dropout

    def pieces(self, group: LinearGroup) -> tuple[list[Piece], list[Piece]]:
        """A group's pieces in the order of the rows: those without a dropout, and those with."""
        plain: list[Piece] = []
        dropping: list[Piece] = []
        for span in self.layout.spans:
            held = self.slots.get(span.slot) if span.slot is not None else None
            pair = held.pair(group) if held is not None else None
            if held is not None and pair is not None:
                drops = held.spec.dropout > 0 and self.layout.training
                piece = Piece((span.start, span.stop), held, pair)
                (dropping if drops else plain).append(piece)
        return plain, dropping


@dataclass
class Trace:
    """What a group's backward needs beside its input: s [N, R], and DoRA's u of each piece."""

    s: Tensor
    inners: list[Tensor | None]


def forward(cast: Cast, group: LinearGroup, x: Tensor) -> tuple[Tensor, Trace | None]:
    """y [N, O] for x [N, D], and what the way back needs (None: no adapter is on the group)."""
    y = rows(cast.layout.rows, group.out_features)
    plain, dropping = cast.pieces(group)
    found = [*plain, *dropping]
    bias = group.bias.float() if group.bias is not None else None
    if not found:
        return cast.kernels.product(x, group.weight, y, by_rows=True, bias=bias), None
    s = _room(cast, found)
    _low(cast, x, plain, s)
    for dropped, shares in _members(cast, group, x, dropping):
        cast.kernels.low(
            dropped,
            [share.piece.span for share in shares],
            [share.piece.pair.a[share.ranks] for share in shares],
            [share.piece.held.scaling for share in shares],
            s,
            by_rows=True,
            columns=[share.ranks.start for share in shares],
        )
    held = [piece.pair.b for piece in found]
    panels = cast.kernels.panels(held, group.out_features, by_rows=True)
    extra = _extra(cast, s, [piece.span for piece in found], panels, [_steps(p) for p in found])
    cast.kernels.product(x, group.weight, y, by_rows=True, bias=bias, extra=extra)
    return y, Trace(s, [dora.turn(cast, group, piece, x, y, s) for piece in found])


def backward(
    cast: Cast,
    group: LinearGroup,
    dy: Tensor,
    x: Tensor,
    trace: Trace | None,
    *,
    wanted: bool = True,
) -> Tensor | None:
    """dx [N, D], if `wanted`; the adapters' gradients go into their slots."""
    plain, dropping = cast.pieces(group)
    found = [*plain, *dropping]
    dx = rows(cast.layout.rows, group.in_features) if wanted else None
    if not found or trace is None:
        if dx is not None:
            cast.kernels.product(dy, group.weight, dx, by_rows=False)
        return dx
    s, t = trace.s, _room(cast, found)
    slope, behind = dora.slopes(cast, found, trace.inners, dy)
    cast.kernels.low(
        slope,
        [piece.span for piece in found],
        [piece.pair.b for piece in found],
        [piece.held.scaling for piece in found],
        t,
        by_rows=False,
        columns=[0] * len(found),
        fill=t.shape[1],
    )
    each = [(piece, *place) for piece in found for place in enumerate(piece.pair.places)]
    cast.kernels.gradient(
        s,
        slope,
        [piece.span for piece, *_ in each],
        [ranks for _, _, (_, _, ranks) in each],
        [places for _, _, (_, places, _) in each],
        [piece.pair.grads_b[index] for piece, index, _ in each],
        turned=True,
    )
    if plain:
        cast.kernels.gradient(
            t,
            x,
            [piece.span for piece in plain],
            [slice(0, piece.pair.a.shape[0]) for piece in plain],
            [slice(0, group.in_features)] * len(plain),
            [piece.pair.grad_a for piece in plain],
        )
    if dx is not None:
        panels = cast.kernels.panels(
            [piece.pair.a for piece in plain], group.in_features, by_rows=False
        )
        extra = _extra(cast, t, [p.span for p in plain], panels, [_steps(p) for p in plain])
        cast.kernels.product(behind, group.weight, dx, by_rows=False, extra=extra)
    if dropping:
        _through_dropout(cast, group, x, dy, t, dx, dropping)
    return dx


def _low(cast: Cast, x: Tensor, pieces: list[Piece], s: Tensor) -> None:
    """s for pieces without a dropout."""
    if pieces:
        cast.kernels.low(
            x,
            [piece.span for piece in pieces],
            [piece.pair.a for piece in pieces],
            [piece.held.scaling for piece in pieces],
            s,
            by_rows=True,
            columns=[0] * len(pieces),
            fill=s.shape[1],
        )


@dataclass
class Share:
    """One member's part of a piece: its columns of y and its ranks."""

    piece: Piece
    member: LoraLinear
    places: slice
    ranks: slice


def _members(
    cast: Cast, group: LinearGroup, x: Tensor, pieces: list[Piece]
) -> Iterator[tuple[Tensor, list[Share]]]:
    """For each member that has adapters in these pieces: x after its dropout, and its shares."""
    for member in group.members:
        shares = [
            Share(piece, member, places, ranks)
            for piece in pieces
            for own, places, ranks in piece.pair.places
            if own is member
        ]
        if shares:
            layout, dropped = cast.layout, rows(*x.shape)
            cast.kernels.drop(
                x, layout.keys, layout.positions, member.dropout_key, cast.rates, dropped
            )
            yield dropped, shares


def _through_dropout(
    cast: Cast,
    group: LinearGroup,
    x: Tensor,
    dy: Tensor,
    t: Tensor,
    dx: Tensor | None,
    found: list[Piece],
) -> None:
    """dA, and the adapters' share of dx, where a dropout lies before A: its mask is drawn anew,
    and each member has one of its own."""
    layout, kernels = cast.layout, cast.kernels
    for dropped, shares in _members(cast, group, x, found):
        spans = [share.piece.span for share in shares]
        kernels.gradient(
            t,
            dropped,
            spans,
            [share.ranks for share in shares],
            [slice(0, group.in_features)] * len(shares),
            [share.piece.pair.grad_a[share.ranks] for share in shares],
        )
        if dx is None:
            continue
        own = torch.zeros_like(t)
        for share in shares:
            lines, width = slice(*share.piece.span), share.ranks.stop - share.ranks.start
            own[lines, :width] = t[lines, share.ranks]
        panels = kernels.panels(
            [share.piece.pair.a[share.ranks] for share in shares],
            group.in_features,
            by_rows=False,
        )
        steps = [-(-(share.ranks.stop - share.ranks.start) // 32) for share in shares]
        back, nothing = rows(*dx.shape), dx[:, :0]
        extra = _extra(cast, own, spans, panels, steps)
        kernels.product(nothing, group.weight, back, by_rows=False, extra=extra)
        for share in shares:
            dora.through_dropout(cast, group, share.piece, share.places, dy, back)
        key = shares[0].member.dropout_key
        kernels.drop(back, layout.keys, layout.positions, key, cast.rates, dx, add=True)


def _extra(
    cast: Cast, s: Tensor, spans: list[tuple[int, int]], panels: Sequence[Tensor], steps: list[int]
) -> Extra | None:
    """Adapters over these rows as further steps of a product."""
    if not spans:
        return None
    owner = torch.full((cast.layout.rows // ALIGN,), -1, dtype=torch.int32)
    for index, (start, stop) in enumerate(spans):
        owner[start // ALIGN : stop // ALIGN] = index
    return Extra(s, owner, panels, steps)


def _room(cast: Cast, found: list[Piece]) -> Tensor:
    """An s for these pieces: ranks padded to whole steps, with zeros."""
    width = max(32 * _steps(piece) for piece in found)
    return torch.zeros(cast.layout.rows, width, dtype=torch.bfloat16)


def _steps(piece: Piece) -> int:
    return -(-piece.pair.a.shape[0] // 32)
