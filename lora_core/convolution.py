"""A frozen convolution with adapters in its slots: a linear layer over patches (im2col).

    x [B, C, *space] ── patches [B, P, C k] ── a linear layer's product [B, P, O] ── y [B, O, *]

so all a step does for linear layers, it does here with B P rows instead of B. B examples, C
channels in, k numbers of the kernel, P places it is put at, O channels out. Masters are A [R, C k]
and B [O, R]; PEFT keeps them as A [R, C, *kernel] and B [O, R, 1, …]. Dropout acts on patches, so
a number that lies in several is dropped in each by itself.
"""

from __future__ import annotations

import math
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from lora_core.errors import TargetError
from lora_core.layer import Focus, LoraLinear, Stored


def is_convolution(module: nn.Module) -> bool:
    """Whether it is a Conv1d or Conv2d an adapter may sit on."""
    return isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == 1


def refuse_groups(module: nn.Module, name: str) -> None:
    """Raises: TargetError for a convolution in groups."""
    if isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups != 1:
        raise TargetError(
            f"{name} is a convolution in {module.groups} groups; adapters sit on those with one"
        )


class LoraConv(LoraLinear):
    """A Conv1d or Conv2d with one group, and its slots."""

    joins = False

    def __init__(self, base: nn.Module, name: str, focus: Focus) -> None:
        refuse_groups(base, name)
        assert isinstance(base, nn.Conv1d | nn.Conv2d)
        base.weight.data = base.weight.data.contiguous()
        super().__init__(base, name, focus)
        self._space = len(base.kernel_size)

    @property
    def weight(self) -> Tensor:
        """The base's own weight, seen as [O, C k]."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight.flatten(1)

    def stored(self, slot: str) -> list[Stored]:
        """As `LoraLinear.stored`."""
        base = cast(nn.Conv2d, self.base)
        (first, a, _), (second, b, _) = super().stored(slot)
        ones = (1,) * self._space
        return [
            (first, a, (a.shape[0], base.in_channels, *base.kernel_size)),
            (second, b, (*b.shape, *ones)),
        ]

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, *space] (or [C, *space]) to [B, O, *places]."""
        if x.dim() == self._space + 1:
            return self.forward(x[None])[0]
        slot = self.focus.slot
        if self.focus.work is not None and self.group is not None:
            rows, places = self._patches(x)
            return self._folded(self.group.outputs(self.place, rows, self.focus), places)
        y: Tensor = self.base(x)
        if slot is None or slot not in self.specs:
            return y
        rows, places = self._patches(x)
        a, b = (part.to(x.dtype) for part in self.effective(slot))
        made = F.linear(F.linear(rows, a), b) * self.specs[slot].scaling
        return y + self._folded(made, places)

    def _patches(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """[B, P, C k], and how P lies in space."""
        base = cast(nn.Conv2d, self.base)
        mode = "constant" if base.padding_mode == "zeros" else base.padding_mode
        beside: list[int] = base._reversed_padding_repeated_twice
        if any(beside):
            x = F.pad(x, beside, mode=mode)
        places = [
            (size - step * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, step in zip(
                x.shape[2:], base.kernel_size, base.stride, base.dilation, strict=True
            )
        ]
        if self._space == 1:
            x = x.unsqueeze(2)
        kernel, stride, dilation = (
            (1,) * (2 - self._space) + tuple(each)
            for each in (base.kernel_size, base.stride, base.dilation)
        )
        columns = F.unfold(x, kernel, dilation=dilation, stride=stride)
        assert columns.shape[-1] == math.prod(places)
        return columns.transpose(1, 2).contiguous(), places

    def _folded(self, y: Tensor, places: list[int]) -> Tensor:
        """[B, P, O] to [B, O, *places]."""
        return y.transpose(1, 2).reshape(y.shape[0], self.out_features, *places).contiguous()
