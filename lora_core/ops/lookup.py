"""An embedding's base rows and every slot's adapters on it, forward and backward by hand.

    forward   y = W[ids];  per segment  S = A[ids],  y += s S B^T
    backward               per segment  dS = s dY B,  dA[ids] += dS,  dB += s dY^T S

Each segment's numbers come from its own rows alone. N rows, V entries, O width out, R ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_core.lookup import LoraEmbedding
from lora_core.ops.linear import owned

if TYPE_CHECKING:
    from lora_core.group import LinearGroup
    from lora_core.segments import Axis
    from lora_core.weights import SlotWeights


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        ids: Tensor,
        _anchor: Tensor,
        group: LinearGroup,
        axis: Axis,
        slots: dict[str, SlotWeights],
    ) -> Tensor:
        flat = ids.reshape(-1)
        y = F.embedding(flat, group.members[0].weight)
        lows = []
        mine = owned(group, axis, slots)
        for span, held, pair in mine:
            low = pair.a.index_select(1, flat[span.start : span.stop]).t().contiguous()
            y[span.start : span.stop].addmm_(low, pair.b.t(), alpha=held.scaling)
            lows.append(low)
        ctx.save_for_backward(flat, *lows)
        ctx.group, ctx.owned = group, mine
        return y.view(*ids.shape, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, *lows = ctx.saved_tensors
        dy = grads[0].reshape(flat.shape[0], -1).contiguous()
        layer = ctx.group.members[0]
        assert isinstance(layer, LoraEmbedding)
        for (span, held, pair), low in zip(ctx.owned, lows, strict=True):
            rows = slice(span.start, span.stop)
            pair.grads_b[0].add_(torch.mm(dy[rows].t(), low), alpha=held.scaling)
            ds = torch.mm(dy[rows], pair.b).mul_(held.scaling).to(pair.grad_a.dtype)
            ids = flat[rows]
            if layer.padding is not None:
                real = ids != layer.padding
                ids, ds = ids[real], ds[real]
            pair.grad_a.t().index_add_(0, ids, ds)
        return None, None, None, None, None


def lookup(
    ids: Tensor, anchor: Tensor, group: LinearGroup, axis: Axis, slots: dict[str, SlotWeights]
) -> Tensor:
    """The embedding's output [..., O] for ids [...] whose rows are `axis`'s; `anchor` as in
    `group_product`."""
    made: Tensor = _Lookup.apply(  # type: ignore[no-untyped-call]
        ids, anchor, group, axis, slots
    )
    return made
