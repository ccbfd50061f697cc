"""A digest of the base's weights, to prove that training left them alone. Adapters are not part of
it, and of the buffers only what quantised layers keep of their weights."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterator

from torch import Tensor, nn

from lora_core.inject import layers
from lora_core.quantize.layer import QuantizedLinear


def weights_digest(model: nn.Module) -> str:
    """sha256 (hex) over name, dtype, shape and bytes of every parameter that is not an adapter's,
    in the order of the model, then of every part of a quantised weight; the same whether or not
    adapters are in it."""
    carriers = set(layers(model))
    digest = hashlib.sha256()
    for name, parameter in _held(model):
        plain = _plain(name, carriers)
        if plain is None:
            continue
        digest.update(f"{plain}|{parameter.dtype}|{tuple(parameter.shape)}|".encode())
        _feed(digest, parameter)
    return digest.hexdigest()


def _held(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            for part, tensor in module.parts.items():
                yield f"{name}.{part}", tensor


def _plain(name: str, carriers: set[str]) -> str | None:
    """The parameter's name in the bare model; None for an adapter's."""
    parts = name.split(".")
    for i in range(len(parts)):
        if ".".join(parts[:i]) in carriers:
            if parts[i] != "base":
                return None
            return ".".join(parts[:i] + parts[i + 1 :])
    return name


def _feed(digest: hashlib._Hash, parameter: Tensor) -> None:
    """The bytes of a tensor, without numpy and without a further copy."""
    data = parameter.detach().cpu().contiguous()
    size = data.numel() * data.element_size()
    if size:
        digest.update((ctypes.c_char * size).from_address(data.data_ptr()))
