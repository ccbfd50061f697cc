"""The thin formula for the rows' lengths against the dense one, by torch and by the kernels."""

import pytest
import torch

from lora_core.variants import dora


def drawn(out, width, rank, dtype=torch.float32):
    generator = torch.Generator().manual_seed(out + rank)
    shapes = ((out, width), (rank, width), (out, rank))
    return (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


@pytest.mark.parametrize("rank", [1, 3, 32, 40])
def test_the_thin_formula_is_the_dense_one(rank):
    weight, a, b = drawn(48, 80, rank)
    own = dora.lengths(weight)
    torch.testing.assert_close(own, weight.square().sum(dim=1).sqrt(), rtol=1e-6, atol=0)
    made = dora.lengths_with(own, weight, a, b, 0.7)
    torch.testing.assert_close(made, dora.lengths(weight + 0.7 * b @ a), rtol=1e-5, atol=0)
    assert torch.equal(dora.lengths_with(own, weight, a, torch.zeros_like(b), 0.7), own)


def test_a_row_of_nothing_gives_no_infinity():
    weight, a, b = torch.zeros(2, 4), torch.ones(1, 4), torch.tensor([[0.0], [2.0]])
    made = dora.lengths_with(dora.lengths(weight), weight, a, b, 1.0)
    assert made[0] > 0
    assert made[1] == pytest.approx(4.0)


@pytest.mark.parametrize("rank", [1, 3, 32, 40])
@pytest.mark.parametrize("out", [32, 96, 20])
def test_the_kernels_products_are_as_near_and_no_threads_change_them(rank, out, kernels):
    weight, a, b = drawn(out, 64, rank, torch.bfloat16)
    b = b * 0.2
    own = dora.lengths(weight)
    dense = dora.lengths(weight.float() + 0.7 * b.float() @ a.float())
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(dora.lengths_with(own, weight, a, b, 0.7, kernels.times))
    torch.testing.assert_close(found[0], dense, rtol=5e-3, atol=0)
    assert torch.equal(*found)
