"""A frozen linear layer with adapters in its slots. One concept, one layer.

    x [B, T, D] ──┬── base (frozen) ─────────────── + ── y [B, T, O]
                  └─ A [R, D] ─ B [O, R] ─ × scaling ─┘

B rows, T tokens, D width in, O width out, R rank. Masters A and B are float32; the product runs
in the base's dtype. By itself a layer works for one slot, the one in the `Focus` all layers of a
model share. In a fused step the focus holds the step's `Work` instead, and the layer's group
(`group.py`) makes the product for all slots. Putting layers into a model is `inject.py`'s, folding
them into weights `merge.py`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_core import rng
from lora_core.spec import AdapterSpec

if TYPE_CHECKING:
    from lora_core.group import LinearGroup


class Work(Protocol):
    """A fused step under way: it makes the outputs of a group of layers."""

    def product(self, group: LinearGroup, x: Tensor) -> tuple[Tensor, ...]:
        """One output [..., O of the member] for each member of the group."""

    def lookup(self, group: LinearGroup, ids: Tensor) -> Tensor:
        """The output [..., O] of an embedding for ids [...]."""


@dataclass
class Focus:
    """Which slot is at work, which is folded into the weights, and the fused step, if one runs."""

    slot: str | None = None
    merged: str | None = None
    work: Work | None = None


class LoraLinear(nn.Module):
    """A base layer (nn.Linear, or transformers' Conv1D with weight [D, O]) and its slots."""

    #: whether it may share a product with others that read its input
    joins = True

    def __init__(self, base: nn.Module, name: str, focus: Focus) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.focus = focus
        self.transposed = type(base).__name__ == "Conv1D"
        rows, columns = self.weight.shape
        self.in_features, self.out_features = (
            (rows, columns) if self.transposed else (columns, rows)
        )
        self.lora_A = nn.ParameterDict()
        self.lora_B = nn.ParameterDict()
        self.specs: dict[str, AdapterSpec] = {}
        self.dropout_key = rng.seed_of(("dropout", name))
        self.group: LinearGroup | None = None
        self.place = 0

    @property
    def weight(self) -> Tensor:
        """The base's own weight."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The base's own bias."""
        bias = self.base.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def add(self, slot: str, spec: AdapterSpec) -> None:
        """Put an adapter into a slot: Kaiming-uniform A [R, D] (a = sqrt 5), zero B [O, R], both
        float32; A depends on (spec.seed, the layer's name) alone."""
        device = self.weight.device
        bound = 1.0 / math.sqrt(self.in_features)
        drawn = rng.uniform(("init", spec.seed, self.name), (spec.r, self.in_features))
        a = (drawn * 2 - 1) * bound
        self.lora_A[slot] = nn.Parameter(a.to(device))
        self.lora_B[slot] = nn.Parameter(torch.zeros(self.out_features, spec.r, device=device))
        self.specs[slot] = spec

    def stored(self, slot: str) -> list[tuple[str, nn.Parameter, tuple[int, ...]]]:
        """What PEFT calls a slot's A and B, the numbers, and the shape PEFT keeps them in."""
        a, b = self.lora_A[slot], self.lora_B[slot]
        return [("lora_A.weight", a, tuple(a.shape)), ("lora_B.weight", b, tuple(b.shape))]

    def remove(self, slot: str) -> None:
        """Empty a slot."""
        if slot in self.specs:
            del self.lora_A[slot], self.lora_B[slot], self.specs[slot]

    def delta(self, slot: str) -> Tensor:
        """scaling * B A in the layout of the base's weight ([O, D], Conv1D [D, O]), float32."""
        product: Tensor = self.specs[slot].scaling * (self.lora_B[slot] @ self.lora_A[slot])
        return product.T if self.transposed else product

    def forward(self, x: Tensor) -> Tensor:
        """base(x) + scaling * (x A^T) B^T; x [..., D] to [..., O]."""
        if self.focus.work is not None and self.group is not None:
            return self.group.outputs(self.place, x, self.focus)
        y: Tensor = self.base(x)
        slot = self.focus.slot
        if slot is None or slot not in self.specs:
            return y
        low = F.linear(x, self.lora_A[slot].to(x.dtype))
        return y + F.linear(low, self.lora_B[slot].to(x.dtype)) * self.specs[slot].scaling
