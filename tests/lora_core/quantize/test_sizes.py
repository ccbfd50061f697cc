"""Bits and bytes, and the example the documentation gives."""

import pytest

from lora_core import SpecError
from lora_core.quantize import bits_per_weight, weight_bytes


def test_bits_count_scales_and_zero_points_in():
    assert bits_per_weight("bfloat16") == 16
    # 4, and 8 for each 64, and 32 for each 64 * 256: the 0.127 of QLoRA's double quantisation
    assert bits_per_weight("nf4") == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-6)
    assert bits_per_weight("int8") == pytest.approx(8, abs=0.01)
    assert bits_per_weight("int4") == bits_per_weight("int4-g32") == 4 + 2 * 32 / 32
    assert bits_per_weight("int4-g128") == 4 + 2 * 32 / 128
    with pytest.raises(SpecError, match="no quantisation"):
        bits_per_weight("nf8")


def test_a_model_of_175_billion_weights():
    assert weight_bytes("bfloat16", 175e9) == 350e9
    assert weight_bytes("nf4", 175e9) == pytest.approx(90.28e9, rel=1e-3)
