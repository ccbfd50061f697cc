"""A frozen linear layer with adapters in its slots. One concept, one layer.

    x [B, T, D] ──┬── base (frozen) ─────────────── + ── y [B, T, O]
                  └─ dropout ─ A [R, D] ─ B [O, R] ─ × scaling ─┘

B rows, T tokens, D width in, O width out, R rank. Masters A and B are float32; the product runs
in the base's dtype. Which slot is at work stands in the `Focus` all layers of a model share.
Putting layers into a model is `inject.py`'s, folding them into weights `merge.py`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_core import rng
from lora_core.errors import SpecError
from lora_core.spec import AdapterSpec


@dataclass
class Focus:
    """Which slot is at work, which is folded into the weights, and for dropout the int64 key [B]
    of each row of the batch; without keys there is no dropout."""

    slot: str | None = None
    row_keys: Tensor | None = None
    merged: str | None = None


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
        """Put an adapter into a slot: Kaiming-uniform A [R, D] (a = sqrt 5), zero B [O, R], both
        float32; A depends on (spec.seed, the layer's name) alone."""
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
        """scaling * B A in the layout of the base's weight ([O, D], Conv1D [D, O]), float32."""
        product: Tensor = self.specs[slot].scaling * (self.lora_B[slot] @ self.lora_A[slot])
        return product.T if self.transposed else product

    def forward(self, x: Tensor) -> Tensor:
        """base(x) + scaling * (drop(x) A^T) B^T; x [..., D] to [..., O]."""
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

        x [B, T, D], or [B T, D] with the rows of a sequence side by side; row_keys [B] int64.
        Raises: SpecError for an input that is not made of whole sequences.
        """
        if x.numel() % (len(row_keys) * self.in_features):
            raise SpecError(f"{self.name} cannot have dropout: its input is not one row per token")
        seeds = rng.mix(row_keys.to(x.device) ^ self._layer_key)
        drawn = rng.uniform_from(seeds, x.numel() // len(row_keys))
        return x * (drawn >= rate).reshape(x.shape).to(x.dtype) / (1.0 - rate)
