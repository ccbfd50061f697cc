"""A frozen embedding with adapters in its slots: A is looked up, B multiplied.

    ids [B, T] ──┬── W [V, O] (frozen), looked up ────────── + ── y [B, T, O]
                 └── A [R, V], looked up ─ B [O, R] ─ × s ───┘

which is a linear layer whose input is one-hot: what reads a layer's weight (merging, digests) finds
[in, out] as in transformers' Conv1D. V entries, O width out, R rank. As in PEFT and loralib A
starts at zero and B is normal; there is no dropout, and A of the padding entry learns nothing.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_core import rng
from lora_core.errors import TargetError
from lora_core.layer import Focus, LoraLinear, Stored
from lora_core.spec import AdapterSpec


class LoraEmbedding(LoraLinear):
    """An nn.Embedding and its slots."""

    joins = False

    def __init__(self, base: nn.Module, name: str, focus: Focus) -> None:
        assert isinstance(base, nn.Embedding)
        if base.max_norm is not None or base.scale_grad_by_freq or base.sparse:
            raise TargetError(
                f"{name} is an embedding with max_norm, scale_grad_by_freq or sparse; adapters sit "
                "on plain ones"
            )
        super().__init__(base, name, focus)
        self.transposed = True
        self.in_features, self.out_features = base.num_embeddings, base.embedding_dim

    @property
    def bias(self) -> Tensor | None:
        """None."""
        return None

    @property
    def padding(self) -> int | None:
        """The entry that stands for no word."""
        return cast(nn.Embedding, self.base).padding_idx

    def add(self, slot: str, spec: AdapterSpec) -> None:
        """Put an adapter into a slot: zero A [R, V] and normal B [O, R], which depends on
        (spec.seed, the layer's name) alone."""
        device = self.weight.device
        drawn = rng.uniform(("init", spec.seed, self.name), (2, self.out_features, spec.r))
        b = (-2 * torch.log1p(-drawn[0])).sqrt() * torch.cos(2 * math.pi * drawn[1])
        self.lora_A[slot] = nn.Parameter(torch.zeros(spec.r, self.in_features, device=device))
        self.lora_B[slot] = nn.Parameter(b.to(device))
        self.specs[slot] = spec

    def stored(self, slot: str) -> list[Stored]:
        """As `LoraLinear.stored`."""
        (_, a, of_a), (_, b, of_b) = super().stored(slot)
        return [("lora_embedding_A", a, of_a), ("lora_embedding_B", b, of_b)]

    def forward(self, x: Tensor) -> Tensor:
        """ids [...] to [..., O]."""
        if self.focus.work is not None and self.group is not None:
            return self.focus.work.lookup(self.group, x)
        y: Tensor = self.base(x)
        slot = self.focus.slot
        if slot is None or slot not in self.specs:
            return y
        low = F.embedding(x, self.lora_A[slot].t(), padding_idx=self.padding).to(y.dtype)
        return y + F.linear(low, self.lora_B[slot].to(y.dtype)) * self.specs[slot].scaling
