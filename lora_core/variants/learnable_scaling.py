"""Learnable scaling: a trainable number g per layer that multiplies alpha / r.

Described in "A deeper dive into LoRA" (LoRA for language model enthusiasts): the scaling is a
parameter and no constant. Here B runs as g B, so a slot merges and is exported as plain LoRA.
O width out, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: where every gain starts: plain LoRA
START = 1.0
#: so many numbers are added up by one thread, whatever there are
_SERIAL = 16384


def spread(b: Tensor, gain: Tensor) -> Tensor:
    """What runs as B: gain [1] times B [O, R]."""
    return b * gain


@torch.no_grad()
def gather(given: Tensor, b: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of B [O, R] and of the gain [1], for that of what ran as B: g G and <G, B>."""
    rows = (given * b).sum(dim=-1)
    parts = [part.sum() for part in torch.split(rows, _SERIAL)]
    return given * gain, torch.stack(parts).sum()[None]
