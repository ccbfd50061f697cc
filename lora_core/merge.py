"""Fold an adapter into the base's weights, and take it out again to the last bit. One adapter at
a time; nothing is written to disk here.

The way back is either the base's own safetensors files, mapped, which costs no memory, or a copy
of the weights that `merge` keeps where no such folder is given.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lora_core import private
from lora_core.errors import LoraError
from lora_core.inject import eject, focus_of, layers
from lora_core.layer import Focus, LoraLinear
from lora_core.mapped import Mapped

_KEPT = "_unmerged"


def merge(model: nn.Module, slot: str = "default", *, source: Path | str | None = None) -> None:
    """Put the slot's adapter into the weight of each of its layers (`LoraLinear.merged`: for all
    but DoRA W + scaling * B A), in float32 and rounded once to the weight's dtype; and what the
    slot has of its own (`private.py`) in the place of the base's.

    With `source`, the folder of the base's safetensors files, no layer is kept in memory: `unmerge`
    reads the weights from there again, and that they lie there bit by bit is checked first.
    Without it the weights as they were are kept, a full copy of the layers of the slot.

    Raises: LoraError when an adapter is merged already, when no layer has the slot, when one is
    quantised (its weight cannot hold the sum), or when the source does not hold the weights there
    are; then nothing has changed.
    """
    focus, hit = _layers_of(model, slot)
    if source is not None:
        files = Mapped(source)
        for layer in hit:
            if not _same_bits(layer.weight, _original(files, layer)):
                raise LoraError(f"{source} does not hold the weights of {layer.name}")
    with torch.no_grad():
        for layer in hit:
            if source is None:
                setattr(layer, _KEPT, layer.weight.detach().clone())
            layer.weight.copy_(layer.merged(slot))
    private.fold(model, slot)
    focus.merged, focus.slot = slot, None


def unmerge(model: nn.Module, *, source: Path | str | None = None) -> None:
    """Restore the very bits from before `merge`, and set its slot to work again.

    `source` is the folder `merge` was given. Raises: LoraError when nothing is merged, when the
    folder does not hold the layers, or when there is neither a folder nor a kept copy; then
    nothing has changed.
    """
    focus = focus_of(model)
    if focus is None or focus.merged is None:
        raise LoraError("nothing is merged")
    hit = [layer for layer in layers(model).values() if focus.merged in layer.specs]
    files = Mapped(source) if source is not None else None
    for layer in hit:
        if hasattr(layer, _KEPT):
            continue
        if files is None:
            raise LoraError("merge kept no copy: name the folder of the base's files as source")
        _original(files, layer)
    with torch.no_grad():
        for layer in hit:
            if hasattr(layer, _KEPT):
                layer.weight.copy_(getattr(layer, _KEPT))
                delattr(layer, _KEPT)
            elif files is not None:
                layer.weight.copy_(_original(files, layer))
    private.restore(model, focus.merged)
    focus.slot, focus.merged = focus.merged, None


def fold(model: nn.Module, slot: str = "default") -> None:
    """Merge for good: the weights take the adapter in, its slot is emptied, and nothing is kept.

    Raises: as `merge`.
    """
    focus, hit = _layers_of(model, slot)
    with torch.no_grad():
        for layer in hit:
            layer.weight.copy_(layer.merged(slot))
    private.fold(model, slot)
    eject(model, slot)
    focus.slot = None


def _layers_of(model: nn.Module, slot: str) -> tuple[Focus, list[LoraLinear]]:
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
    return focus, hit


def _original(files: Mapped, layer: LoraLinear) -> Tensor:
    """The layer's weight in the files. Raises: FormatError for one of another kind."""
    found = files.tensor(f"{layer.name}.weight")
    if found.shape != layer.weight.shape or found.dtype != layer.weight.dtype:
        raise LoraError(f"{files.folder} holds {layer.name} in another shape or dtype")
    return found


def _same_bits(one: Tensor, other: Tensor) -> bool:
    held = one.detach()
    return torch.equal(
        held.contiguous().view(torch.uint8), other.to(held.device).contiguous().view(torch.uint8)
    )
