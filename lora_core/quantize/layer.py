"""A frozen linear layer whose weight is kept in few bits, in the place of a whole one.

    x [..., D] ── weight [O, D], made from its parts for this product ── (+ bias) ── y [..., O]

D width in, O width out. Adapters sit on it as on any layer (`lora_core/layer.py`); in a fused step
its group makes the weight once for all rows (`scratch.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_core.errors import LoraError
from lora_core.quantize.method import Method


class QuantizedLinear(nn.Module):
    """y = x W^T + bias, where W [O, D] is made of its parts when it is asked for. No gradient
    reaches it.

    The parts are buffers under the names their method gives them; their dtypes are their own,
    whatever the model is cast to. `dtype` is that of the weight once it is whole. `of_conv1d`
    says that it stands for a Conv1D, whose weight was [D, O].
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        method: Method,
        *,
        bias: bool,
        dtype: torch.dtype,
        of_conv1d: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.method = method
        self.dtype = dtype
        self.of_conv1d = of_conv1d
        shapes = method.shapes(out_features, in_features)
        self._names = tuple(shapes)
        for name, (shape, kind) in shapes.items():
            self.register_buffer(name, torch.empty(shape, dtype=kind, device=device))
        held = torch.empty(out_features, dtype=dtype, device=device) if bias else None
        self.register_parameter(
            "bias", None if held is None else nn.Parameter(held, requires_grad=False)
        )

    @classmethod
    def of(cls, layer: nn.Module, method: Method) -> QuantizedLinear:
        """A linear layer (or Conv1D) in few bits. Raises: SpecError for widths the method cannot
        take."""
        turned = type(layer).__name__ == "Conv1D"
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        whole = weight.detach().T.contiguous() if turned else weight.detach()
        made = cls(
            whole.shape[1],
            whole.shape[0],
            method,
            bias=bias is not None,
            dtype=whole.dtype,
            of_conv1d=turned,
            device=whole.device,
        )
        for name, part in method.quantize(whole).items():
            setattr(made, name, part)
        if isinstance(bias, Tensor):
            made.bias = nn.Parameter(bias.detach(), requires_grad=False)
        return made

    @property
    def parts(self) -> dict[str, Tensor]:
        """What is kept of the weight."""
        return {name: self.get_buffer(name) for name in self._names}

    @property
    def shape(self) -> torch.Size:
        """[O, D]."""
        return torch.Size((self.out_features, self.in_features))

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return self.get_buffer(self._names[0]).device

    @property
    def weight(self) -> Tensor:
        """The whole weight [O, D], made anew each time."""
        room = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        return self.method.dequantize(self.parts, room)

    def forward(self, x: Tensor) -> Tensor:
        """y [..., O] for x [..., D]."""
        y: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y

    def extra_repr(self) -> str:
        """As torch shows its own layers."""
        return f"{self.in_features}, {self.out_features}, {self.method.name}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        before = self.parts
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, part in before.items():
            moved = self.get_buffer(name)
            if moved.dtype != part.dtype:
                setattr(self, name, part.to(moved.device))
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self


class _Product(torch.autograd.Function):
    """Makes the weight again for the backward instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        bias = layer.bias
        assert bias is None or isinstance(bias, Tensor)
        return F.linear(x, layer.weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0]
        return dy @ ctx.layer.weight.to(dy.dtype), None


def quantize_layers(model: nn.Module, names: Iterable[str], method: Method) -> None:
    """Put these linear layers into few bits, in place, one after another.

    Raises: SpecError for widths the method cannot take, LoraError for a layer that is quantised
    already or no linear layer; the layers before it have changed then.
    """
    for name in names:
        parent, _, leaf = name.rpartition(".")
        holder = model.get_submodule(parent) if parent else model
        layer = getattr(holder, leaf)
        if isinstance(layer, QuantizedLinear):
            raise LoraError(f"{name} is quantised already ({layer.method.name})")
        if not isinstance(layer, nn.Linear) and type(layer).__name__ != "Conv1D":
            raise LoraError(f"{name} is no linear layer but a {type(layer).__name__}")
        setattr(holder, leaf, QuantizedLinear.of(layer, method))
