"""Group-wise int4, and QA-LoRA's merge: still int4, and exactly the model with its adapter."""

import pytest
import torch

from lora_core import SpecError
from lora_core.quantize.int4 import Int4, merge_qalora

WIDE, D, G, R = 24, 96, 16, 4


def drawn(*shape, seed=5, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=dtype)


def test_within_half_a_step_and_exact_at_both_ends_of_a_group():
    weight = drawn(WIDE, D)
    weight[3, :G] = 0.25  # a group of equal numbers
    method = Int4(G)
    parts = method.quantize(weight)
    made = method.dequantize(parts, torch.empty(WIDE, D))
    step = parts["scales"].repeat_interleave(G, dim=1)
    assert bool(((made - weight).abs() <= step / 2 + 1e-6).all())
    groups, whole = weight.view(WIDE, -1, G), made.view(WIDE, -1, G)
    torch.testing.assert_close(whole.amin(2), groups.amin(2), rtol=0, atol=0)
    torch.testing.assert_close(whole.amax(2), groups.amax(2), rtol=1e-6, atol=1e-6)
    assert torch.equal(made[3, :G], weight[3, :G])


@pytest.mark.parametrize("pooled", ["sum", "mean"])
def test_a_merged_qalora_adapter_is_exact_and_still_int4(pooled):
    method = Int4(G)
    parts = {n: p.double() if p.is_floating_point() else p
             for n, p in method.quantize(drawn(WIDE, D)).items()}  # fmt: skip
    a, b = (
        drawn(R, D // G, seed=6, dtype=torch.float64),
        drawn(WIDE, R, seed=7, dtype=torch.float64),
    )
    x = drawn(11, D, seed=8, dtype=torch.float64)
    factor, scaling = {"sum": 1.0, "mean": 1.0 / G}[pooled], 0.75

    whole = method.dequantize(parts, torch.empty(WIDE, D, dtype=torch.float64))
    groups = x.view(11, D // G, G)
    read = groups.sum(2) if pooled == "sum" else groups.mean(2)
    wanted = x @ whole.T + scaling * (read @ a.T) @ b.T

    merged = merge_qalora(parts, a, b, scaling=scaling, factor=factor)
    assert torch.equal(merged["codes"], parts["codes"])
    assert torch.equal(merged["scales"], parts["scales"])
    assert not torch.equal(merged["zeros"], parts["zeros"])
    moved = method.dequantize(merged, torch.empty(WIDE, D, dtype=torch.float64))
    torch.testing.assert_close(x @ moved.T, wanted, rtol=1e-13, atol=1e-12)
    # The same, as an adapter over all inputs: A repeated over each group.
    effective = factor * a.repeat_interleave(G, dim=1)
    torch.testing.assert_close(moved - whole, scaling * b @ effective, rtol=1e-12, atol=1e-14)


def test_bad_groups_are_refused():
    with pytest.raises(SpecError, match="groups of 64 do not divide a width of 96"):
        Int4(64).quantize(drawn(WIDE, D))
    for size in (0, 1, 7, -2):
        with pytest.raises(SpecError, match="even number"):
            Int4(size)
    parts = Int4(G).quantize(drawn(WIDE, D))
    with pytest.raises(SpecError, match="does not fit"):
        merge_qalora(parts, drawn(R, D), drawn(WIDE, R), scaling=1.0)
