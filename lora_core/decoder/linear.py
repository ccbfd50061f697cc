"""A linear group with every slot's adapters, forward and backward, on the native kernels.

    forward   s = scale drop(x) A^T          y  = x W^T + s B^T
    backward  t = scale dy B                 dx = dy W + drop(t A)
              dB += dy^T s                   dA += t^T drop(x)

The oracle is `ops/reference.py`. N rows, D in, O out, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_core.group import LinearGroup
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
    drops: bool = field(init=False)
    _owners: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layout = self.layout
        self.rates = torch.zeros(layout.rows)
        for span in layout.spans:
            if span.slot is not None and layout.training:
                self.rates[span.start : span.stop] = self.slots[span.slot].spec.dropout
        self.drops = bool(self.rates.any())

    def pieces(self, group: LinearGroup) -> tuple[list[Piece], Tensor]:
        """A group's pieces in the order of the rows, and the piece of each 16 rows (-1: none)."""
        found, which = [], []
        for index, span in enumerate(self.layout.spans):
            held = self.slots.get(span.slot) if span.slot is not None else None
            pair = held.pair(group) if held is not None else None
            if held is not None and pair is not None:
                found.append(Piece((span.start, span.stop), held, pair))
                which.append(index)
        key = tuple(which)
        if key not in self._owners:
            owner = torch.full((self.layout.rows // ALIGN,), -1, dtype=torch.int32)
            for place, index in enumerate(which):
                span = self.layout.spans[index]
                owner[span.start // ALIGN : span.stop // ALIGN] = place
            self._owners[key] = owner
        return found, self._owners[key]


def forward(cast: Cast, group: LinearGroup, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """y [N, O] for x [N, D], and s [N, R] for the way back (None: no adapter is on the group)."""
    y = rows(cast.layout.rows, group.out_features)
    found, owner = cast.pieces(group)
    bias = group.bias.float() if group.bias is not None else None
    if not found:
        return cast.kernels.product(x, group.weight, y, by_rows=True, bias=bias), None
    s = _room(cast, found)
    if cast.drops:
        for dropped, pieces, place in _members(cast, group, x, found):
            ranks = [piece.pair.places[i][2] for piece, i in zip(pieces, place, strict=True)]
            cast.kernels.low(
                dropped,
                [piece.span for piece in pieces],
                [piece.pair.a[r] for piece, r in zip(pieces, ranks, strict=True)],
                [piece.held.scaling for piece in pieces],
                s,
                by_rows=True,
                columns=[r.start for r in ranks],
            )
    else:
        cast.kernels.low(
            x,
            [piece.span for piece in found],
            [piece.pair.a for piece in found],
            [piece.held.scaling for piece in found],
            s,
            by_rows=True,
            columns=[0] * len(found),
            fill=s.shape[1],
        )
    held = [piece.pair.b for piece in found]
    panels = cast.kernels.panels(held, group.out_features, by_rows=True)
    extra = Extra(s, owner, panels, [_steps(piece) for piece in found])
    cast.kernels.product(x, group.weight, y, by_rows=True, bias=bias, extra=extra)
    return y, s


def backward(
    cast: Cast, group: LinearGroup, dy: Tensor, x: Tensor, s: Tensor | None, *, wanted: bool = True
) -> Tensor | None:
    """dx [N, D], if `wanted`; the adapters' gradients go into their slots."""
    found, owner = cast.pieces(group)
    dx = rows(cast.layout.rows, group.in_features) if wanted else None
    if not found or s is None:
        if dx is not None:
            cast.kernels.product(dy, group.weight, dx, by_rows=False)
        return dx
    t = _room(cast, found)
    cast.kernels.low(
        dy,
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
        dy,
        [piece.span for piece, *_ in each],
        [ranks for _, _, (_, _, ranks) in each],
        [places for _, _, (_, places, _) in each],
        [piece.pair.grads_b[index] for piece, index, _ in each],
        turned=True,
    )
    whole = slice(0, group.in_features)
    if not cast.drops:
        cast.kernels.gradient(
            t,
            x,
            [piece.span for piece in found],
            [slice(0, piece.pair.a.shape[0]) for piece in found],
            [whole] * len(found),
            [piece.pair.grad_a for piece in found],
        )
        if dx is not None:
            panels = cast.kernels.panels(
                [piece.pair.a for piece in found], group.in_features, by_rows=False
            )
            extra = Extra(t, owner, panels, [_steps(piece) for piece in found])
            cast.kernels.product(dy, group.weight, dx, by_rows=False, extra=extra)
        return dx
    if dx is not None:
        cast.kernels.product(dy, group.weight, dx, by_rows=False)
    _through_dropout(cast, group, x, t, dx, found)
    return dx


def _through_dropout(
    cast: Cast, group: LinearGroup, x: Tensor, t: Tensor, dx: Tensor | None, found: list[Piece]
) -> None:
    """dA, and the adapters' share of dx, where a dropout lies before A: its mask is drawn anew,
    and each member has one of its own."""
    layout, kernels = cast.layout, cast.kernels
    for dropped, pieces, place in _members(cast, group, x, found):
        ranks = [piece.pair.places[i][2] for piece, i in zip(pieces, place, strict=True)]
        kernels.gradient(
            t,
            dropped,
            [piece.span for piece in pieces],
            ranks,
            [slice(0, group.in_features)] * len(pieces),
            [piece.pair.grad_a[r] for piece, r in zip(pieces, ranks, strict=True)],
        )
        if dx is None:
            continue
        member = pieces[0].pair.places[place[0]][0]
        own = t.new_zeros(t.shape)
        for piece, r in zip(pieces, ranks, strict=True):
            lines = slice(*piece.span)
            own[lines, : r.stop - r.start] = t[lines, r]
        panels = kernels.panels(
            [piece.pair.a[r] for piece, r in zip(pieces, ranks, strict=True)],
            group.in_features,
            by_rows=False,
        )
        steps = [-(-(r.stop - r.start) // 32) for r in ranks]
        share = rows(layout.rows, group.in_features)
        extra = Extra(own, _owner(cast, pieces), panels, steps)
        nothing = dx[:, :0]
        kernels.product(nothing, group.weight, share, by_rows=False, extra=extra)
        kernels.drop(
            share,
            layout.keys,
            layout.positions,
            member.dropout_key,
            cast.rates,
            dx,
            add=True,
        )


def _members(
    cast: Cast, group: LinearGroup, x: Tensor, found: list[Piece]
) -> list[tuple[Tensor, list[Piece], list[int]]]:
    """For each member that has adapters: x after its dropout, the pieces, and the member's place
    in each piece's pair."""
    made = []
    for member in group.members:
        pieces, place = [], []
        for piece in found:
            for index, (own, _, _) in enumerate(piece.pair.places):
                if own is member:
                    pieces.append(piece)
                    place.append(index)
        if pieces:
            dropped = rows(*x.shape)
            layout = cast.layout
            cast.kernels.drop(
                x, layout.keys, layout.positions, member.dropout_key, cast.rates, dropped
            )
            made.append((dropped, pieces, place))
    return made


def _owner(cast: Cast, pieces: list[Piece]) -> Tensor:
    owner = torch.full((cast.layout.rows // ALIGN,), -1, dtype=torch.int32)
    for index, piece in enumerate(pieces):
        owner[piece.span[0] // ALIGN : piece.span[1] // ALIGN] = index
    return owner


def _room(cast: Cast, found: list[Piece]) -> Tensor:
    """An s for these pieces: ranks padded to whole steps, with zeros."""
    width = max(32 * _steps(piece) for piece in found)
    if cast.drops:
        return torch.zeros(cast.layout.rows, width, dtype=torch.bfloat16)
    return torch.empty(cast.layout.rows, width, dtype=torch.bfloat16)


def _steps(piece: Piece) -> int:
    return -(-piece.pair.a.shape[0] // 32)
