"""Several adapters of one base as one: their weighted sum, exactly or at a rank that is asked for.

A [R, D], B [O, R] of one adapter, R' the sum of all ranks. The exact sum puts the A on top of each
other and the B side by side, as PEFT's `add_weighted_adapter` does with "cat"; with a rank it is
its "svd", without ever forming O x D.
"""

from __future__ import annotations

import torch
from torch import nn

from lora_core.errors import SpecError
from lora_core.inject import eject, focus_of, inject, layers
from lora_core.layer import LoraLinear
from lora_core.spec import AdapterSpec
from lora_core.spectrum import factored, halves


def combine(
    model: nn.Module, weights: dict[str, float], into: str, *, rank: int | None = None
) -> AdapterSpec:
    """Fill the free slot `into` with sum(weight * scaling * B A) over the slots of `weights`, and
    set it to work; the slots themselves stay as they are.

    Without `rank` the sum is exact and its rank the sum of theirs; with it, it is the nearest one
    of that rank in each layer. Its scaling is 1. Raises: SpecError for a slot no layer has, one
    that is taken, or a rank larger than a layer (then name a smaller one), LoraError while an
    adapter is merged; then nothing has changed.
    """
    present = layers(model)
    if not weights:
        raise SpecError("nothing to combine")
    for slot in weights:
        if not any(slot in layer.specs for layer in present.values()):
            raise SpecError(f"no layer has a slot {slot!r}")
    hit = {n: one for n, one in present.items() if any(s in one.specs for s in weights)}
    ranks = {s: next(one.specs[s].r for one in hit.values() if s in one.specs) for s in weights}
    r = rank or sum(ranks.values())
    spec = AdapterSpec(r=r, alpha=float(r), target_modules=tuple(sorted(hit)))
    focus = focus_of(model)
    before = focus.slot if focus is not None else None
    inject(model, spec, into)
    try:
        with torch.no_grad():
            for layer in hit.values():
                _fill(layer, weights, into, rank)
    except BaseException:
        eject(model, into)
        if focus is not None:
            focus.slot = before
        raise
    return spec


def _fill(layer: LoraLinear, weights: dict[str, float], into: str, rank: int | None) -> None:
    a, b = layer.lora_A[into], layer.lora_B[into]
    own = [slot for slot in weights if slot in layer.specs]
    tall = torch.cat([layer.lora_A[slot] for slot in own])
    wide = torch.cat(
        [layer.lora_B[slot] * (weights[slot] * layer.specs[slot].scaling) for slot in own], dim=1
    )
    if rank is not None:
        u, s, v = factored(tall.cpu(), wide.cpu())
        tall, wide = halves(u, s, v, rank)
    a.zero_()
    b.zero_()
    a[: len(tall)].copy_(tall)
    b[:, : wide.shape[1]].copy_(wide)
