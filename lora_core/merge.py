"""Fold an adapter into the base's weights, and take it out again to the last bit. One adapter at
a time; nothing is written to disk here.
"""

from __future__ import annotations

import torch
from torch import nn

from lora_core.errors import LoraError
from lora_core.inject import focus_of, layers

_KEPT = "_unmerged"


def merge(model: nn.Module, slot: str = "default") -> None:
    """Put the slot's adapter into the weight of each of its layers (`LoraLinear.merged`: for all
    but DoRA W + scaling * B A); taken in float32 and rounded once to the weight's dtype.

    The weights as they were are kept (a full copy) for `unmerge`. Raises: LoraError when an
    adapter is merged already, when no layer has the slot, or when one is quantised: its weight
    cannot hold the sum.
    """
    focus = focus_of(model)
    hit = [layer for layer in layers(model).values() if slot in layer.specs]
    if focus is None or not hit:
        raise LoraError(f"no layer has a slot {slot!r}")
    if focus.merged is not None:
        raise LoraError(f"slot {focus.merged!r} is merged already; unmerge it first")
    few = next((layer for layer in hit if layer.quantized is not None), None)
    if few is not None:
        raise LoraError(
            f"{few.name} is quantised and cannot hold an adapter's sum: merge into the "
            "full-precision base"
        )
    with torch.no_grad():
        for layer in hit:
            original = layer.weight.detach().clone()
            setattr(layer, _KEPT, original)
            layer.weight.copy_(layer.merged(slot).to(original.dtype))
    focus.merged, focus.slot = slot, None


def unmerge(model: nn.Module) -> None:
    """Restore the very bits from before `merge`, and set its slot to work again.

    Raises: LoraError when nothing is merged.
    """
    focus = focus_of(model)
    if focus is None or focus.merged is None:
        raise LoraError("nothing is merged")
    with torch.no_grad():
        for layer in layers(model).values():
            if hasattr(layer, _KEPT):
                layer.weight.copy_(getattr(layer, _KEPT))
                delattr(layer, _KEPT)
    focus.slot, focus.merged = focus.merged, None
