"""Sums over layers of real size do not depend on how many threads there are."""

import pytest
import torch

from lora_core.variants import dora, learnable_scaling, qalora


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_no_sum_is_parted_between_threads(threads):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2048, 640, generator=generator).bfloat16()
    given, b = torch.randn(2, 60_000, 8, generator=generator)
    slope = torch.randn(24, 4096, generator=generator)
    gain = torch.tensor([0.7])
    found = []
    for count in (1, threads):
        torch.set_num_threads(count)
        parts = [dora.lengths(weight), *learnable_scaling.gather(given, b, gain)]
        found.append([*parts, qalora.gather(slope, 32)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
