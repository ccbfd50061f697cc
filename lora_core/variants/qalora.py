"""QA-LoRA's adapter: A reads the means of groups of inputs.

"QA-LoRA: Quantization-Aware Low-Rank Adaptation of Large Language Models" (Xu et al., 2023). With
groups of g of the D inputs, A is [R, D / g] and reads (D / g) times each group's mean, as in the
paper's code and in PEFT. So the columns of a group are all the same in B A, and B A can be added to
the zero points of a base quantised in groups of g. It runs as a plain A [R, D] of repeated columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lora_core.errors import SpecError


def check(name: str, width: int, r: int, size: int) -> None:
    """Raises SpecError where groups of `size` do not part the layer's inputs, or are too few for
    the rank."""
    if width % size:
        raise SpecError(
            f"qalora_group_size {size} does not divide the {width} inputs of the layer {name}"
        )
    if r > width // size:
        raise SpecError(
            f"rank {r} is larger than the {width // size} groups of {size} inputs that the layer "
            f"{name} has"
        )


def spread(a: Tensor, size: int) -> Tensor:
    """What runs as A [R, D], for A [R, D / size]."""
    return (a * (a.shape[1] / size)).repeat_interleave(size, dim=1)


@torch.no_grad()
def gather(given: Tensor, size: int) -> Tensor:
    """The gradient of A [R, D / size], for that of what ran as A [R, D]."""
    groups = given.shape[1] // size
    return given.reshape(given.shape[0], groups, size).sum(dim=-1) * (groups / size)
