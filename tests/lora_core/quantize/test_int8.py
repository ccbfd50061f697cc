"""Row-wise int8 against bitsandbytes' vector-wise functions, bit for bit."""

import pytest
import torch

from lora_core.quantize.int8 import Int8

SHAPE = (96, 640)


def weight(dtype=torch.float32):
    draw = torch.Generator().manual_seed(3)
    return (torch.randn(SHAPE, generator=draw) * 0.02).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_codes_and_values_are_those_of_bitsandbytes(dtype):
    bnb = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    given = weight(dtype)
    parts = Int8().quantize(given)
    codes, scale, outliers = bnb.int8_vectorwise_quant(given.half(), threshold=0.0)
    assert outliers is None
    half = Int8().quantize(given.half())
    assert torch.equal(half["absmax"], scale)
    assert (half["codes"].int() - codes.int()).abs().max() <= 1  # they multiply in float16
    theirs = bnb.int8_vectorwise_dequant(parts["codes"], parts["absmax"])
    ours = Int8().dequantize(parts, torch.empty(SHAPE))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_within_half_a_step_of_the_weight():
    given = weight()
    given[5] = 0
    parts = Int8().quantize(given)
    made = Int8().dequantize(parts, torch.empty(SHAPE))
    step = parts["absmax"][:, None] / 127
    assert bool(((made - given).abs() <= step / 2 * 1.001).all())
    assert not made[5].any()
    assert parts["codes"].abs().amax(dim=1).eq(127).sum() == SHAPE[0] - 1
    half = Int8().dequantize(parts, torch.empty(SHAPE, dtype=torch.bfloat16))
    assert torch.equal(half, made.to(torch.bfloat16))
