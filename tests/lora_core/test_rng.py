import pytest
import torch

from lora_core import permutation, uniform
from lora_core.rng import mix, seed_of


def test_uniform_over_its_range():
    drawn = uniform(("a", 1), (200, 500))
    assert drawn.dtype == torch.float32
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert drawn.mean().item() == pytest.approx(0.5, abs=5e-3)
    assert drawn.var().item() == pytest.approx(1 / 12, abs=2e-3)
    bins = torch.histc(drawn, bins=100, min=0, max=1)
    chi_squared = ((bins - 1000) ** 2 / 1000).sum().item()
    assert 50 < chi_squared < 160  # 99 degrees of freedom: outside is rarer than 1 in 10,000


def test_keys_and_neighbours_are_independent():
    rows = torch.stack([uniform(("k", i), (20000,)) for i in range(6)])
    between = torch.corrcoef(rows) - torch.eye(6)
    assert between.abs().max() < 0.03
    one = rows[0]
    for lag in (1, 2, 64):
        pair = torch.stack([one[:-lag], one[lag:]])
        assert abs(torch.corrcoef(pair)[0, 1].item()) < 0.03


def test_depends_on_the_key_only():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = uniform(("a", 1), (50,))
        torch.manual_seed(2)
        before = torch.get_rng_state()
        assert torch.equal(first, uniform(("a", 1), (50,)))
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first[:20], uniform(("a", 1), (20,)))
    assert not torch.equal(first, uniform(("a", 2), (50,)))
    assert seed_of(("a", 1)) != seed_of(("a1",))


def test_mix_is_the_published_function():
    """The first outputs of splitmix64 seeded with 0."""
    golden = 0x9E3779B97F4A7C15
    counters = [(golden * i) % 2**64 for i in (1, 2, 3)]
    signed = [c - 2**64 if c >= 2**63 else c for c in counters]
    got = [v % 2**64 for v in mix(torch.tensor(signed)).tolist()]
    assert got == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_permutation():
    assert sorted(permutation(("p",), 50)) == list(range(50))
    assert permutation(("p",), 50) == permutation(("p",), 50)
    assert permutation(("p",), 50) != permutation(("q",), 50)
    assert permutation(("p",), 0) == []
    first = torch.tensor([permutation(("p", i), 5)[0] for i in range(1000)])
    assert torch.bincount(first, minlength=5).min() > 150


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_equal_on_cuda():
    assert torch.equal(uniform(("c",), (1000,)), uniform(("c",), (1000,), "cuda").cpu())
