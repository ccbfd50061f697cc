"""A frozen linear layer with adapters in its slots. One concept, one layer.

    x [B, T, D] ──┬── base (frozen) ─────────────── + ── y [B, T, O]
                  └─ A [R, D] ─ B [O, R] ─ × scaling ─┘

B rows, T tokens, D width in, O width out, R rank. Masters A and B are float32; the product runs
in the base's dtype. A variant (`variants/`) may have further parameters, or run as an A and B that
are made of its own. By itself a layer works for one slot, the one in the `Focus` all layers of a
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
from lora_core.quantize.layer import QuantizedLinear
from lora_core.spec import AdapterSpec
from lora_core.variants import dora, learnable_scaling, qalora

if TYPE_CHECKING:
    from lora_core.group import LinearGroup
    from lora_core.ops.norm import Norm
    from lora_core.ops.tokens import Tokens


#: PEFT's name of DoRA's magnitudes
MAGNITUDE = "lora_magnitude_vector"
#: a tensor's name in a file, the tensor, and its shape there
Stored = tuple[str, Tensor, tuple[int, ...]]


class Work(Protocol):
    """A fused step under way: it makes the outputs of a group of layers."""

    def product(self, group: LinearGroup, x: Tensor) -> tuple[Tensor, ...]:
        """One output [..., O of the member] for each member of the group."""

    def norm(self, part: Norm, x: Tensor) -> Tensor:
        """A norm's output [..., D], with the slots' own weights."""

    def tokens(self, part: Tokens, ids: Tensor, out: Tensor) -> Tensor:
        """The embedding's output [..., D] for ids [...], with the slots' own vectors in it."""

    def lookup(self, group: LinearGroup, ids: Tensor) -> Tensor:
        """The output [..., O] of an embedding for ids [...]."""


@dataclass
class Focus:
    """Which slot is at work, which is folded into the weights, and the fused step, if one runs."""

    slot: str | None = None
    merged: str | None = None
    work: Work | None = None


class LoraLinear(nn.Module):
    """A base layer (nn.Linear, transformers' Conv1D with weight [D, O], or a quantised one) and its
    slots."""

    #: whether it may share a product with others that read its input
    joins = True

    def __init__(self, base: nn.Module, name: str, focus: Focus) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.focus = focus
        self.transposed = type(base).__name__ == "Conv1D"
        shape = shape_of(base)
        rows, columns = shape[0], shape[1:].numel()
        self.in_features, self.out_features = (
            (rows, columns) if self.transposed else (columns, rows)
        )
        self.lora_A = nn.ParameterDict()
        self.lora_B = nn.ParameterDict()
        self.lora_gain = nn.ParameterDict()
        self.lora_magnitude = nn.ParameterDict()
        self.specs: dict[str, AdapterSpec] = {}
        self.dropout_key = rng.seed_of(("dropout", name))
        self.group: LinearGroup | None = None
        self.place = 0

    @property
    def quantized(self) -> QuantizedLinear | None:
        """The base, if its weight is kept in few bits."""
        return self.base if isinstance(self.base, QuantizedLinear) else None

    @property
    def of_conv1d(self) -> bool:
        """Whether it stands for a Conv1D, quantised or not."""
        return self.transposed or (self.quantized is not None and self.quantized.of_conv1d)

    @property
    def weight(self) -> Tensor:
        """The base's own weight; of a quantised one, made whole each time it is asked for."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The base's own bias."""
        bias = self.base.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias

    @property
    def rows(self) -> Tensor:
        """The base's own weight as [O, D], whatever way round it is kept."""
        return self.weight.T if self.transposed else self.weight

    def add(self, slot: str, spec: AdapterSpec) -> None:
        """Put an adapter into a slot: Kaiming-uniform A [R, D] (a = sqrt 5; QA-LoRA's is
        [R, D / group]), zero B [O, R], a gain of 1, the magnitudes [O] of the weight's own rows;
        all float32. A depends on (spec.seed, the layer's name) alone."""
        device = device_of(self.base)
        inputs = self.in_features // (spec.qalora_group_size or 1)
        bound = 1.0 / math.sqrt(inputs)
        drawn = rng.uniform(("init", spec.seed, self.name), (spec.r, inputs))
        a = (drawn * 2 - 1) * bound
        self.lora_A[slot] = nn.Parameter(a.to(device))
        self.lora_B[slot] = nn.Parameter(torch.zeros(self.out_features, spec.r, device=device))
        if spec.learnable_scaling:
            start = torch.full((1,), learnable_scaling.START, device=device)
            self.lora_gain[slot] = nn.Parameter(start)
        if spec.dora:
            self.lora_magnitude[slot] = nn.Parameter(dora.lengths(self.rows))
        self.specs[slot] = spec

    def stored(self, slot: str) -> list[Stored]:
        """What PEFT calls a slot's tensors, the tensors (parameters, but for a B that a gain is
        folded into), and the shape PEFT keeps them in."""
        a, b = self.lora_A[slot], self.lora_B[slot]
        if slot in self.lora_gain:
            b = learnable_scaling.spread(b, self.lora_gain[slot])
        found = [("lora_A.weight", a, tuple(a.shape)), ("lora_B.weight", b, tuple(b.shape))]
        if slot in self.lora_magnitude:
            magnitude = self.lora_magnitude[slot]
            found.append((MAGNITUDE, magnitude, tuple(magnitude.shape)))
        return found

    def remove(self, slot: str) -> None:
        """Empty a slot."""
        if slot in self.specs:
            for held in self._held().values():
                if slot in held:
                    del held[slot]
            del self.specs[slot]

    def parameters_of(self, slot: str) -> dict[str, nn.Parameter]:
        """What is trained in a slot: A, B, and a variant's gain or magnitude."""
        return {part: held[slot] for part, held in self._held().items() if slot in held}

    def effective(self, slot: str) -> tuple[Tensor, Tensor]:
        """A [R, D] and B [O, R] as they run, whatever they are made of."""
        a, b, spec = self.lora_A[slot], self.lora_B[slot], self.specs[slot]
        if spec.qalora_group_size is not None:
            a = qalora.spread(a, spec.qalora_group_size)
        if slot in self.lora_gain:
            b = learnable_scaling.spread(b, self.lora_gain[slot])
        return a, b

    def delta(self, slot: str) -> Tensor:
        """scaling * B A in the layout of the base's weight ([O, D], Conv1D [D, O]), float32."""
        a, b = self.effective(slot)
        product: Tensor = self.specs[slot].scaling * (b @ a)
        return product.T if self.transposed else product

    def merged(self, slot: str) -> Tensor:
        """The whole weight with the slot's adapter in it, float32, in the layout of the base's."""
        weight, delta = self.weight.detach().float(), self.delta(slot)
        if slot not in self.lora_magnitude:
            return weight + delta
        magnitude = self.lora_magnitude[slot]
        if self.transposed:
            return dora.merged(weight.T, delta.T, magnitude).T
        return dora.merged(weight, delta, magnitude)

    def forward(self, x: Tensor) -> Tensor:
        """base(x) + scaling * (x A^T) B^T; x [..., D] to [..., O]."""
        if self.focus.work is not None and self.group is not None:
            return self.group.outputs(self.place, x, self.focus)
        y: Tensor = self.base(x)
        slot = self.focus.slot
        if slot is None or slot not in self.specs:
            return y
        scaling = self.specs[slot].scaling
        a, b = (part.to(x.dtype) for part in self.effective(slot))
        shift = F.linear(F.linear(x, a), b) * scaling
        if slot not in self.lora_magnitude:
            return y + shift
        inner = shift + (y if self.bias is None else y - self.bias)
        rows = self.rows.detach()
        length = dora.lengths_with(dora.lengths(rows), rows, a.detach(), b.detach(), scaling)
        return dora.turned(y + shift, inner, self.lora_magnitude[slot] / length - 1.0)

    def _held(self) -> dict[str, nn.ParameterDict]:
        return {
            "A": self.lora_A,
            "B": self.lora_B,
            "gain": self.lora_gain,
            "magnitude": self.lora_magnitude,
        }


def shape_of(base: nn.Module) -> torch.Size:
    """The shape of a base layer's weight, which is not made whole for that."""
    return _kept(base).shape


def dtype_of(base: nn.Module) -> torch.dtype:
    """The dtype of a base layer's weight."""
    return _kept(base).dtype


def device_of(base: nn.Module) -> torch.device:
    """Where a base layer's weight is."""
    return _kept(base).device


def _kept(base: nn.Module) -> QuantizedLinear | Tensor:
    """What tells of a weight without making it whole."""
    if isinstance(base, QuantizedLinear):
        return base
    weight = base.weight
    assert isinstance(weight, Tensor)
    return weight
