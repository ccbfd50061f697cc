"""A digest of the base's weights, to prove that training left them alone."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def weights_digest(model: nn.Module) -> str:
    """sha256 over name, dtype, shape and bytes of every parameter that is not an adapter's."""
    digest = hashlib.sha256()
    seen: set[int] = set()
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        plain = name.replace(".base.", ".")
        digest.update(f"{plain}|{parameter.dtype}|{tuple(parameter.shape)}|".encode())
        data = parameter.detach().cpu().contiguous().view(torch.uint8).numpy()
        digest.update(data.tobytes())
    return digest.hexdigest()
