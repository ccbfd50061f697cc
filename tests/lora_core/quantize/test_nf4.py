"""NF4 against bitsandbytes on a CPU, bit for bit, and the native kernel against plain torch."""

import pytest
import torch

from lora_core.quantize import kernels as chosen
from lora_core.quantize import nf4

SHAPES = [(64, 64), (16, 32), (96, 640), (640, 2048), (7, 10), (33, 64), (5, 13), (1, 64)]


def weights(shape, dtype, seed=1):
    draw = torch.Generator().manual_seed(seed)
    found = torch.randn(shape, generator=draw) * 0.02
    found[0, : shape[1] // 3] *= 40  # outliers in some blocks
    found[-1, -1] = 0.0
    return found.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_scales_and_values_are_those_of_bitsandbytes(shape, dtype):
    bnb = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    weight = weights(shape, dtype)
    parts = nf4.Nf4().quantize(weight)
    codes, state = bnb.quantize_4bit(
        weight, blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    assert torch.equal(parts["codes"], codes.view(-1))
    assert torch.equal(parts["absmax"], state.absmax)
    assert torch.equal(parts["scales"], state.state2.absmax)
    assert torch.equal(parts["offset"], state.offset)
    assert torch.equal(nf4.tree(weight.device), state.state2.code)
    if weight.numel() % 64 == 0:
        # Their AVX-512 kernel counts blocks by rows, and is off where 64 does not divide a row.
        state.shape = torch.Size((weight.numel() // 64, 64))
    theirs = bnb.dequantize_4bit(codes, state).view(shape)
    ours = nf4.Nf4().dequantize(parts, torch.empty(shape, dtype=dtype))
    assert torch.equal(ours, theirs)


def test_a_block_of_zeros_and_a_weight_of_one_block():
    for weight in (torch.zeros(8, 64), torch.full((1, 64), 0.5)):
        parts = nf4.Nf4().quantize(weight)
        made = nf4.Nf4().dequantize(parts, torch.empty_like(weight))
        assert torch.equal(made, weight)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 64), (96, 640), (33, 64), (16, 32), (48, 4)])
def test_the_native_kernel_makes_the_same_weight(shape, threads, kernels):
    method, weight = nf4.Nf4(), weights(shape, torch.bfloat16, seed=2)
    parts = method.quantize(weight)
    plain = method.dequantize(parts, torch.empty_like(weight))
    torch.set_num_threads(threads)
    filled = torch.full_like(weight, torch.nan)
    assert torch.equal(method.dequantize(parts, filled, kernels), plain)
    wide = method.dequantize(parts, torch.empty(shape), kernels)  # float32: not theirs
    assert torch.equal(wide.to(torch.bfloat16), plain)


def test_the_kernel_is_asked_for_what_it_can(kernels):
    levels = torch.tensor(nf4.LEVELS)
    codes, scales = torch.zeros(48, dtype=torch.uint8), torch.ones(2)
    for size, dtype, suits in ((64, torch.bfloat16, True), (96, torch.bfloat16, False),
                               (64, torch.float32, False)):  # fmt: skip
        out = torch.zeros(1, size, dtype=dtype)
        asked = (codes[: size // 2], levels, scales[: -(-size // 64)], 64, out)
        assert chosen.dequantize_nf4(*asked, kernels) is suits
        assert chosen.dequantize_nf4(*asked, None) is False
        assert bool((out == -1).all()) is suits
