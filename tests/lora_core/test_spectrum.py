import math

import pytest
import torch

from lora_core.spectrum import (
    effective_rank,
    energy_kept,
    factored,
    halves,
    rank_for,
    singular_values,
)


def pair(out, width, rank, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rank, width, generator=draw),
        torch.randn(out, rank, generator=draw),
    )


@pytest.mark.parametrize(("out", "width", "rank"), [(20, 30, 4), (30, 20, 7), (5, 40, 8)])
def test_it_is_the_svd_of_the_dense_product(out, width, rank):
    a, b = pair(out, width, rank)
    dense = b.double() @ a.double()
    u, s, v = factored(a, b)
    whole = torch.linalg.svdvals(dense)
    torch.testing.assert_close(s[: len(whole)], whole[: len(s)], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(singular_values(a, b), s, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(u @ torch.diag(s) @ v, dense)
    low, high = halves(u, s, v, 2)
    best_u, best_s, best_v = torch.linalg.svd(dense, full_matrices=False)
    best = best_u[:, :2] @ torch.diag(best_s[:2]) @ best_v[:2]
    torch.testing.assert_close(high @ low, best)


def test_shares_and_ranks():
    s = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)
    assert energy_kept(s, 1) == pytest.approx(0.8)
    assert energy_kept(torch.zeros(3), 1) == 1.0
    other = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    assert rank_for([s], 0.8) == 1
    assert rank_for([s], 0.81) == 2
    assert rank_for([s, other], 0.7) == 2  # (4+1 + 1+1) of 8
    assert rank_for([s, other], 1.0) == 3
    assert rank_for([torch.zeros(4)], 0.9) == 1


def test_the_effective_rank_is_that_of_equal_values():
    assert effective_rank(torch.ones(5)) == pytest.approx(5)
    assert effective_rank(torch.tensor([3.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0
    s = torch.tensor([3.0, 1.0])
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(s) == pytest.approx(expected)
