"""A group's base product and every slot's adapters on it, forward and backward by hand.

One autograd function: the input is kept once, the base has no gradient, and the adapters'
gradients go straight into their slots' float32 buffers, segment by segment in order.

    forward   y = x W^T;  per segment  S = x A^T,  y += s S B^T
    backward  dX = dY W;  per segment  dS = s dY B,  dX += dS A,  dA += dS^T x,  dB += s dY^T S

A slot with DoRA turns its own rows of y by what `variants/dora.py` says.

Each product over a segment sees that segment's rows and nothing else. N rows, D in, O out, R ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lora_core import rng
from lora_core.ops.products import product
from lora_core.variants import dora

if TYPE_CHECKING:
    from lora_core.group import LinearGroup
    from lora_core.segments import Axis, Span
    from lora_core.weights import Pair, SlotWeights


def keep_mask(layout: Axis, span: Span, rate: float, layer_key: int, width: int) -> Tensor:
    """Which inputs of a segment dropout keeps, bool [rows, width]: a function of (seed, step,
    layer, sequence, position) alone, for each sequence counted from its own first token."""
    rows = slice(span.start, span.stop)
    seeds = rng.mix(layout.keys[rows] ^ layer_key)
    return rng.uniform_at(seeds, layout.positions[rows] * width, width) >= rate


class _Group(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        _anchor: Tensor,
        group: LinearGroup,
        layout: Axis,
        slots: dict[str, SlotWeights],
    ) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])
        y = product(flat, group.weight.t(), group.bias)
        lows: list[Tensor] = []
        inners: list[Tensor] = []
        mine = owned(group, layout, slots)
        for span, held, pair in mine:
            low = _low(flat, layout, span, held, pair)
            own = y[span.start : span.stop].addmm_(low, pair.b.t(), alpha=held.scaling)
            lows.append(low)
            if pair.turn is not None:
                inner = _inner(group, flat, own, low, layout, span, held, pair)
                own.copy_(dora.turned(own, inner, pair.turn.less))
                inners.append(inner)
        ctx.save_for_backward(flat, *lows, *inners)
        ctx.group, ctx.layout, ctx.owned, ctx.shape = group, layout, mine, x.shape
        # No views as autograd knows them: a model may add to an output in place.
        shape = x.shape[:-1]
        return tuple(
            torch.ops.aten._unsafe_view.default(part, [*shape, part.shape[1]])
            for part in torch.unsafe_split_with_sizes(y, group.sizes, dim=1)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, *kept = ctx.saved_tensors
        group, layout, owned = ctx.group, ctx.layout, ctx.owned
        lows, inners = kept[: len(owned)], iter(kept[len(owned) :])
        parts = [grad.reshape(flat.shape[0], -1) for grad in grads]
        dy = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, dim=1)
        slopes, behind = _turned_back(dy, owned, inners, layout)
        wanted = ctx.needs_input_grad[0]
        dx = product(behind, group.weight) if wanted else None
        for (span, held, pair), low, own in zip(owned, lows, slopes, strict=True):
            rows = slice(span.start, span.stop)
            ds = torch.mm(own, pair.b).mul_(held.scaling)
            db = torch.mm(own.t(), low)
            for (_, mine, ranks), grad in zip(pair.places, pair.grads_b, strict=True):
                grad.add_(db[mine, ranks], alpha=held.scaling)
            if held.spec.dropout > 0:
                _masked(flat, dx, ds, dy, layout, span, held, pair)
            else:
                pair.grad_a.add_(torch.mm(ds.t(), flat[rows]))
                if dx is not None:
                    dx[rows].addmm_(ds, pair.a)
        return (dx.view(ctx.shape) if dx is not None else None), None, None, None, None


def group_product(
    x: Tensor, anchor: Tensor, group: LinearGroup, layout: Axis, slots: dict[str, SlotWeights]
) -> tuple[Tensor, ...]:
    """The outputs of a group's members, each [..., O of the member], for x [..., D] whose rows
    are `layout`'s. `anchor` is any tensor that requires a gradient: it keeps the first layer,
    whose input requires none, in the backward."""
    outputs: tuple[Tensor, ...] = _Group.apply(  # type: ignore[no-untyped-call]
        x, anchor, group, layout, slots
    )
    return outputs


def owned(
    group: LinearGroup, layout: Axis, slots: dict[str, SlotWeights]
) -> list[tuple[Span, SlotWeights, Pair]]:
    """The segments whose slot has adapters on the group, in order."""
    found = []
    for span in layout.spans:
        held = slots.get(span.slot) if span.slot is not None else None
        pair = held.pair(group) if held is not None else None
        if held is not None and pair is not None:
            found.append((span, held, pair))
    return found


def _low(flat: Tensor, layout: Axis, span: Span, held: SlotWeights, pair: Pair) -> Tensor:
    """S = drop(x) A^T [rows, R]; each member has a dropout of its own."""
    x = flat[span.start : span.stop]
    rate = held.spec.dropout
    if rate <= 0 or not layout.training:
        return torch.mm(x, pair.a.t())
    low = x.new_empty(x.shape[0], pair.a.shape[0])
    for member, _, ranks in pair.places:
        keep = keep_mask(layout, span, rate, member.dropout_key, x.shape[1])
        low[:, ranks] = torch.mm(_dropped(x, keep, rate), pair.a[ranks].t())
    return low


def _inner(
    group: LinearGroup,
    flat: Tensor,
    own: Tensor,
    low: Tensor,
    layout: Axis,
    span: Span,
    held: SlotWeights,
    pair: Pair,
) -> Tensor:
    """DoRA's u [rows, O], for a segment's part of the output so far (`own`)."""
    rate = held.spec.dropout
    if rate <= 0 or not layout.training:
        return own.clone() if group.bias is None else own - group.bias
    x = flat[span.start : span.stop]
    inner = torch.zeros_like(own)
    for member, mine, ranks in pair.places:
        keep = keep_mask(layout, span, rate, member.dropout_key, x.shape[1])
        made = product(_dropped(x, keep, rate), member.rows.t())
        inner[:, mine] = made.addmm_(low[:, ranks], pair.b[mine, ranks].t(), alpha=held.scaling)
    return inner


def _turned_back(
    dy: Tensor,
    owned: list[tuple[Span, SlotWeights, Pair]],
    inners: Iterator[Tensor],
    layout: Axis,
) -> tuple[list[Tensor], Tensor]:
    """The slopes [rows, O] of each segment's adapter, and what of dy [N, O] goes through the base's
    weight: both are c dy for DoRA, but for a base whose input is not dropped. Leaves the gradient
    of c."""
    slopes, behind = [], dy
    for span, held, pair in owned:
        rows = slice(span.start, span.stop)
        own = dy[rows]
        if pair.turn is not None:
            inner = next(inners)
            pair.turn.grad.add_((own.float() * inner.float()).sum(dim=0))
            own = dora.slope_of(own, pair.turn.less)
            if held.spec.dropout <= 0 or not layout.training:
                behind = dy.clone() if behind is dy else behind
                behind[rows] = own
        slopes.append(own)
    return slopes, behind


def _masked(
    flat: Tensor,
    dx: Tensor | None,
    ds: Tensor,
    dy: Tensor,
    layout: Axis,
    span: Span,
    held: SlotWeights,
    pair: Pair,
) -> None:
    """dA and the adapters' share of dX where a dropout lies before A; its mask is drawn anew."""
    rate = held.spec.dropout
    rows = slice(span.start, span.stop)
    x = flat[rows]
    for member, mine, ranks in pair.places:
        keep = keep_mask(layout, span, rate, member.dropout_key, x.shape[1])
        own = ds[:, ranks]
        pair.grad_a[ranks].add_(torch.mm(own.t(), _dropped(x, keep, rate)))
        if dx is None:
            continue
        back = torch.mm(own, pair.a[ranks])
        if pair.turn is not None:
            more = (dy[rows, mine] * pair.turn.less[mine]).to(dy.dtype)
            back.add_(product(more, member.rows))
        dx[rows].add_(_dropped(back, keep, rate))


def _dropped(x: Tensor, keep: Tensor, rate: float) -> Tensor:
    return x * keep.to(x.dtype) / (1.0 - rate)
