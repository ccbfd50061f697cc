"""Tiny models with adapters that are no longer zero."""

import torch

from lora_core import AdapterSpec, inject, private
from lora_core.inject import layers
from tests.lora_core.models import tiny


def filled(model, slot="default", **spec):
    """Put an adapter with random A and B into a slot of `model`; the same for the same seed."""
    spec = AdapterSpec(**{"r": 4, "alpha": 8.0, "seed": 1, **spec})
    inject(model, spec, slot)
    draw = torch.Generator().manual_seed(spec.seed)
    for layer in layers(model).values():
        if slot in layer.specs:
            b = layer.lora_B[slot]
            b.data.copy_(torch.randn(b.shape, generator=draw) * 0.05)
            if slot in layer.lora_magnitude:
                layer.lora_magnitude[slot].data.mul_(1.1)
            if slot in layer.lora_gain:
                layer.lora_gain[slot].data.fill_(0.5)
    for own in private.parameters_of(model, slot).values():
        own.data.mul_(1.1)
    return model


def with_adapter(kind="llama", dtype=torch.float32, slot="default", **spec):
    """A tiny model with one such adapter."""
    return filled(tiny(kind, dtype), slot, **spec)
