"""DoRA on the native kernels: what its pieces add to a linear group's forward and backward.

The formulas are in `variants/dora.py`; everything here sees one piece's rows and nothing else.
N rows of a piece, D in, O out of the group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_core.native.kernels import Extra, rows
from lora_core.segments import ALIGN
from lora_core.variants import dora

if TYPE_CHECKING:
    from lora_core.decoder.linear import Cast, Piece
    from lora_core.group import LinearGroup


def turn(
    cast: Cast, group: LinearGroup, piece: Piece, x: Tensor, y: Tensor, s: Tensor
) -> Tensor | None:
    """Turn the piece's rows of y, which hold base, bias and adapter; returns u [N, O] for the way
    back (None: not DoRA)."""
    turned = piece.pair.turn
    if turned is None:
        return None
    lines = slice(*piece.span)
    own = y[lines]
    if _drops(cast, piece):
        inner = _dropped(cast, group, piece, x, s)
    else:
        inner = own.clone() if group.bias is None else own - group.bias
    own.copy_(dora.turned(own, inner, turned.less))
    return inner


def slopes(
    cast: Cast, pieces: list[Piece], inners: list[Tensor | None], dy: Tensor
) -> tuple[Tensor, Tensor]:
    """The slopes of the adapters, and what goes back through the base's weight, for those of y:
    dy itself where there is no DoRA. Leaves the gradient of c."""
    adapters = behind = dy
    for piece, inner in zip(pieces, inners, strict=True):
        turned = piece.pair.turn
        if turned is None or inner is None:
            continue
        lines = slice(*piece.span)
        own = dy[lines]
        ones = own.new_zeros(len(own), 32)
        ones[:, 0] = 1
        cast.kernels.gradient(
            ones,
            own * inner,
            [(0, len(own))],
            [slice(0, 1)],
            [slice(0, own.shape[1])],
            [turned.grad[None]],
        )
        adapters = _copied(dy) if adapters is dy else adapters
        slope = dora.slope_of(own, turned.less)
        adapters[lines] = slope
        if not _drops(cast, piece):
            behind = _copied(dy) if behind is dy else behind
            behind[lines] = slope
    return adapters, behind


def through_dropout(
    cast: Cast, group: LinearGroup, piece: Piece, places: slice, dy: Tensor, back: Tensor
) -> None:
    """Add to `back` [all rows, D] what a member's dropped input gets through the base's weight."""
    turned = piece.pair.turn
    if turned is not None:
        lines = slice(*piece.span)
        more = rows(len(dy[lines]), places.stop - places.start)
        more.copy_(dy[lines, places] * turned.less[places])
        made = rows(len(more), group.in_features)
        cast.kernels.product(more, group.weight[places], made, by_rows=False)
        back[lines].add_(made)


def _dropped(cast: Cast, group: LinearGroup, piece: Piece, x: Tensor, s: Tensor) -> Tensor:
    """drop(x) W^T + s B^T [N, O], where each member has a dropout of its own."""
    kernels, layout, lines = cast.kernels, cast.layout, slice(*piece.span)
    given = x[lines]
    inner = torch.zeros(len(given), group.out_features, dtype=x.dtype)
    owner = torch.zeros(len(given) // ALIGN, dtype=torch.int32)
    for member, places, ranks in piece.pair.places:
        dropped = rows(*given.shape)
        kernels.drop(
            given,
            layout.keys[lines],
            layout.positions[lines],
            member.dropout_key,
            cast.rates[lines],
            dropped,
        )
        width = ranks.stop - ranks.start
        steps = -(-width // 32)
        own = s.new_zeros(len(given), 32 * steps)
        own[:, :width] = s[lines, ranks]
        panels = kernels.panels([piece.pair.b[places, ranks]], member.out_features, by_rows=True)
        kernels.product(
            dropped,
            group.weight[places],
            inner[:, places],
            by_rows=True,
            extra=Extra(own, owner, panels, [steps]),
        )
    return inner


def _drops(cast: Cast, piece: Piece) -> bool:
    return piece.held.spec.dropout > 0 and cast.layout.training


def _copied(x: Tensor) -> Tensor:
    made = rows(*x.shape)
    return made.copy_(x)
