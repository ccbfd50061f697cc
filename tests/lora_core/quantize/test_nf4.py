"""NF4 against bitsandbytes' CPU functions, bit for bit."""

import pytest
import torch

from lora_core.quantize import nf4

bnb = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
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
