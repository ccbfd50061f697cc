"""A whole decoder by hand: embedding, layers, last norm, head; forward and backward.

As `forward.py` sees it, one autograd function from nothing to the losses of the label rows. N rows,
M label rows, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_core.decoder import block
from lora_core.decoder.linear import Cast
from lora_core.decoder.plan import Plan
from lora_core.native.kernels import Kernels, rows
from lora_core.segments import Layout
from lora_core.weights import SlotWeights

#: the head takes rows in blocks of this
_BLOCK = 32


@dataclass(frozen=True)
class Head:
    """weight bf16 [V, D]; logits are softcap(scale h W^T)."""

    weight: Tensor
    scale: float
    softcap: float | None


class Decoder:
    """A recognised model on native kernels."""

    def __init__(self, plan: Plan, head: Head, kernels: Kernels) -> None:
        self.plan = plan
        self.head = head
        self.kernels = kernels

    def losses(
        self, layout: Layout, slots: dict[str, SlotWeights], anchor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Losses float32 [M] of the label rows, and whether the likeliest token is the label, bool
        [M]. Taken backward, the losses leave the gradients in `slots`."""
        losses, hits = _Losses.apply(anchor, self, layout, slots)  # type: ignore[no-untyped-call]
        return losses, hits

    @torch.no_grad()
    def agrees(self, layout: Layout, states: list[Tensor]) -> bool:
        """Whether each layer by itself makes of the model's own state [T, D] before it the model's
        own state after it. Over all layers together roundings add up; here they do not, and a
        layer that computes something else shows."""
        layers, norm = self.plan.layers, self.plan.norm
        if len(states) != len(layers) + 1:
            return False
        way, count = _Way(self, layout, {}), len(states[0])
        way.angles = self.plan.angles(layout.positions, states[0])
        for index, (layer, before, after) in enumerate(
            zip(layers, states, states[1:], strict=False)
        ):
            x = rows(layout.rows, before.shape[1])
            x[count:] = 0
            x[:count] = before
            made, _ = block.forward(way.cast, layer, x, way.angles[layer.angles], way.sequences)
            if index + 1 == len(layers):
                x = made
                made = rows(*x.shape)
                self.kernels.norm(x, norm.weight, norm.eps, made)
                before = torch.zeros_like(after)
            change, size = (after.float() - before.float()).norm(), after.float().norm()
            error = (made[:count].float() - after.float()).norm()
            if not bool(error <= 0.02 * change + size / 256):
                return False
        return True

    @torch.no_grad()
    def hidden(self, layout: Layout, slots: dict[str, SlotWeights]) -> Tensor:
        """Last hidden states [N, D]."""
        way = _Way(self, layout, slots)
        x = way.forward(keep=False)
        out = rows(*x.shape)
        self.kernels.norm(x, self.plan.norm.weight, self.plan.norm.eps, out)
        return out


class _Way:
    """One pass through the layers and back."""

    def __init__(self, decoder: Decoder, layout: Layout, slots: dict[str, SlotWeights]) -> None:
        self.plan = decoder.plan
        self.layout = layout
        self.cast = Cast(decoder.kernels, layout, slots)
        starts, lengths = [], []
        for span, segment in zip(layout.spans, layout.segments, strict=True):
            row = span.start
            for sequence in segment.sequences:
                starts.append(row)
                lengths.append(sequence.tokens)
                row += sequence.tokens
        inside = torch.zeros(layout.rows, dtype=torch.bool)
        for start, length in zip(starts, lengths, strict=True):
            inside[start : start + length] = True
        self.sequences = block.Sequences(
            torch.tensor(starts), torch.tensor(lengths), (~inside).nonzero().flatten()
        )
        self.kept: list[block.Kept] = []
        self.angles: dict[str, tuple[Tensor, Tensor]] = {}

    def forward(self, *, keep: bool) -> Tensor:
        """The states [N, D] before the last norm."""
        embedded = self.plan.embed(self.layout.ids)
        self.angles = self.plan.angles(self.layout.positions, embedded)
        x = rows(*embedded.shape)
        x.copy_(embedded)
        for layer in self.plan.layers:
            x, kept = block.forward(self.cast, layer, x, self.angles[layer.angles], self.sequences)
            if keep:
                self.kept.append(kept)
        return x

    def backward(self, slope: Tensor) -> None:
        """From the slope [N, D] of the states before the last norm down to the first layer."""
        held: Tensor | None = slope
        for index in reversed(range(len(self.plan.layers))):
            layer = self.plan.layers[index]
            assert held is not None
            held = block.backward(
                self.cast,
                layer,
                held,
                self.kept.pop(),
                self.angles[layer.angles],
                self.sequences,
                wanted=index > 0,
            )


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        _anchor: Tensor,
        decoder: Decoder,
        layout: Layout,
        slots: dict[str, SlotWeights],
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0]
        way = _Way(decoder, layout, slots)
        x = way.forward(keep=wanted)
        picked, count = layout.label_rows, len(layout.label_rows)
        size = -(-count // _BLOCK) * _BLOCK
        own, normed = rows(size, x.shape[1]), rows(size, x.shape[1])
        own[count:] = 0
        own[:count] = x.index_select(0, picked)
        norm, head = decoder.plan.norm, decoder.head
        inverse = decoder.kernels.norm(own, norm.weight, norm.eps, normed)
        labels = torch.zeros(size, dtype=torch.int64)
        labels[:count] = layout.labels
        losses, hits, slope = decoder.kernels.head(
            normed, head.weight, labels, scale=head.scale, softcap=head.softcap, wanted=wanted
        )
        hits = hits[:count]
        ctx.mark_non_differentiable(hits)
        if wanted:
            ctx.held = (decoder, way, own, inverse, slope, x.shape)
        return losses[:count], hits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        decoder, way, own, inverse, slope, shape = ctx.held
        del ctx.held
        assert grads[0] is not None
        picked = way.layout.label_rows
        given = rows(*own.shape)
        given[len(picked) :] = 0
        torch.mul(slope[: len(picked)], grads[0][:, None], out=given[: len(picked)])
        back = rows(*own.shape)
        decoder.kernels.norm_back(given, own, decoder.plan.norm.weight, inverse, back)
        whole = rows(*shape)
        whole.zero_()
        whole.index_copy_(0, picked, back[: len(picked)])
        way.backward(whole)
        return None, None, None, None
