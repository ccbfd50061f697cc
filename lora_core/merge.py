"""Fold an adapter into the base's weights, and take it out again to the last bit."""

from __future__ import annotations

import torch
from torch import nn

from lora_core.errors import LoraError
from lora_core.inject import layers

_KEPT = "_unmerged"


def merge(model: nn.Module, slot: str = "default") -> None:
    """W += scaling * B A in every layer of the slot; the sum is taken in float32.

    The weights as they were are kept for `unmerge`. Raises: LoraError when merged already or
    when no layer has the slot.
    """
    hit = [layer for layer in layers(model).values() if slot in layer.specs]
    if not hit:
        raise LoraError(f"no layer has a slot {slot!r}")
    if any(hasattr(layer, _KEPT) for layer in hit):
        raise LoraError("an adapter is merged already; unmerge it first")
    with torch.no_grad():
        for layer in hit:
            original = layer.weight.detach().clone()
            setattr(layer, _KEPT, original)
            layer.weight.copy_((original.float() + layer.delta(slot)).to(original.dtype))
            layer.focus.slot = None


def unmerge(model: nn.Module, slot: str = "default") -> None:
    """Restore the very bits from before `merge`, and set the slot to work again.

    Raises: LoraError when nothing is merged.
    """
    hit = [layer for layer in layers(model).values() if hasattr(layer, _KEPT)]
    if not hit:
        raise LoraError("nothing is merged")
    with torch.no_grad():
        for layer in hit:
            layer.weight.copy_(getattr(layer, _KEPT))
            delattr(layer, _KEPT)
            layer.focus.slot = slot
