"""Packed attention against the reference, and what it must not depend on."""

import pytest
import torch

from lora_core import attention, segments
from lora_core.ops import reference
from lora_core.segments import Layout, Sequence, cut


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layout_of(*lengths, group=None):
    sequences = [Sequence(torch.arange(n), torch.ones(n, dtype=torch.bool)) for n in lengths]
    return Layout(cut("s", sequences, group))


def run(layout, q, k, v, **options):
    """[N, H, E] in, [N, H, E] out."""
    with attention.over(layout):
        out, _ = attention.packed(
            None, *(each.transpose(0, 1)[None] for each in (q, k, v)), **options
        )
    return out[0]


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("long", [1024, 8])
@pytest.mark.parametrize("group", [None, 8, 12])
def test_equals_the_reference(window, softcap, long, group, monkeypatch):
    monkeypatch.setattr(segments, "LONG", long)
    lengths = (3, 40, 9, 17)
    layout = layout_of(*lengths, group=group)
    places, start = [], 0
    for n in lengths:
        places.append(slice(start, start + n))
        start += n
    shapes = ((4, 8), (2, 8), (2, 12))
    inputs = [drawn(layout.rows, *shape, seed=sum(shape)) for shape in shapes]
    ours = [each.clone().requires_grad_() for each in inputs]
    theirs = [each.clone().requires_grad_() for each in inputs]
    out = run(layout, *ours, scaling=0.4, sliding_window=window, softcap=softcap)
    expected = reference.attention(*theirs, places, 0.4, window, softcap, group)
    torch.testing.assert_close(out.detach(), expected.detach(), rtol=1e-4, atol=1e-5)
    given = drawn(*out.shape, seed=9)
    out.backward(given)
    expected.backward(given)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [None, 16])
def test_a_sequences_bits_do_not_depend_on_the_others(dtype, group):
    lengths = (30, 7, 31, 64, 12, 29)
    whole = layout_of(*lengths, group=group)
    q, k, v = (drawn(whole.rows, h, 32, seed=h).to(dtype) for h in (4, 2, 3))
    v = v[:, :2].contiguous()
    leaves = [each.clone().requires_grad_() for each in (q, k, v)]
    out = run(whole, *leaves)
    given = drawn(*out.shape, seed=9).to(dtype)
    out.backward(given)
    start = 0
    for n in lengths:
        alone = layout_of(n, group=group)
        rows = slice(start, start + n)
        start += n
        own = []
        for each in (q, k, v):
            padded = torch.zeros(alone.rows, *each.shape[1:], dtype=dtype)
            padded[:n] = each[rows]
            own.append(padded.requires_grad_())
        mine = run(alone, *own)
        part = torch.zeros(mine.shape, dtype=dtype)
        part[:n] = given[rows]
        mine.backward(part)
        assert torch.equal(mine[:n], out[rows])
        for one, other in zip(own, leaves, strict=True):
            assert torch.equal(one.grad[:n], other.grad[rows])


def test_no_number_stays_in_its_sequence():
    layout = layout_of(10, 12)
    q, k, v = (drawn(layout.rows, 2, 8, seed=s) for s in range(3))
    k[3] = torch.nan
    out = run(layout, q, k, v)
    assert out[5].isnan().any()
    assert out[10:].isfinite().all()
