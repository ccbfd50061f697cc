"""A frozen linear layer with adapters in its slots. One concept, one layer.

    x [B, T, D] ──┬── base (frozen) ─────────────── + ── y [B, T, O]
                  └─ dropout ─ A [R, D] ─ B [O, R] ─ × scaling ─┘

B rows, T tokens, D width in, O width out, R rank. Masters A and B are float32; the product runs
in the base's dtype. Which slot is at work stands in the `Focus` all layers of a model share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_core import rng
from lora_core.spec import AdapterSpec


@dataclass
class Focus:
    """Which slot is at work, and for dropout the int64 key [B] of each row of the batch."""

    slot: str | None = None
    row_keys: Tensor | None = None


class LoraLinear(nn.Module):
    """A base layer (nn.Linear, or transformers' Conv1D with weight [D, O]) and its slots."""

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
        self._layer_key = rng.seed_of(("dropout", name))

    @property
    def weight(self) -> Tensor:
        """The base's own weight."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def add(self, slot: str, spec: AdapterSpec) -> None:
        """Put an adapter into a slot: Kaiming-uniform A (a = sqrt 5), zero B."""
        device = self.weight.device
        bound = 1.0 / math.sqrt(self.in_features)
        drawn = rng.uniform(("init", spec.seed, self.name), (spec.r, self.in_features))
        a = (drawn * 2 - 1) * bound
        self.lora_A[slot] = nn.Parameter(a.to(device))
        self.lora_B[slot] = nn.Parameter(torch.zeros(self.out_features, spec.r, device=device))
        self.specs[slot] = spec

    def remove(self, slot: str) -> None:
        """Empty a slot."""
        if slot in self.specs:
            del self.lora_A[slot], self.lora_B[slot], self.specs[slot]

    def delta(self, slot: str) -> Tensor:
        """scaling * B A in the layout of the base's weight, float32."""
        product: Tensor = self.specs[slot].scaling * (self.lora_B[slot] @ self.lora_A[slot])
        return product.T if self.transposed else product

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        slot = self.focus.slot
        if slot is None or slot not in self.specs:
            return y
        spec = self.specs[slot]
        if spec.dropout > 0 and self.focus.row_keys is not None:
            x = self._drop(x, spec.dropout, self.focus.row_keys)
        low = F.linear(x, self.lora_A[slot].to(x.dtype))
        return y + F.linear(low, self.lora_B[slot].to(x.dtype)) * spec.scaling

    def _drop(self, x: Tensor, rate: float, row_keys: Tensor) -> Tensor:
        """Dropout whose mask depends on (seed, step, layer, sequence, position) only.

        x [B, T, D]; row_keys [B] int64.
        """
        rows, tokens, width = x.shape
        seeds = rng.mix(row_keys.to(x.device) ^ self._layer_key)
        keep = rng.uniform_from(seeds, tokens * width).reshape(rows, tokens, width) >= rate
        return x * keep.to(x.dtype) / (1.0 - rate)
