"""How sequences become segments, micro-batches and rows."""

import pytest
import torch

from lora_core.segments import (
    Layout,
    Sequence,
    cut,
    micro_batches,
    padded_length,
    whole_rows,
)


def sequence(length, learn=None):
    mask = torch.ones(length, dtype=torch.bool) if learn is None else torch.tensor(learn)
    return Sequence(torch.arange(length) + 100, mask)


def test_a_cut_depends_on_the_lengths_alone():
    parts = cut("s", [sequence(n) for n in (100, 100, 56, 1, 300, 2)])
    assert [[len(s.ids) for s in part.sequences] for part in parts] == [
        [100, 100, 56],
        [1],
        [300],
        [2],
    ]
    assert [part.rows for part in parts] == [256, 16, 304, 16]


def test_micro_batches_keep_order_and_budget():
    parts = cut("a", [sequence(n) for n in (250, 250, 30)]) + cut("b", [sequence(500)])
    assert [part.tokens for part in parts] == [250, 250, 30, 500]
    sizes = [[part.rows for part in each] for each in micro_batches(parts, 550)]
    assert sizes == [[256, 256, 32], [512]]
    assert [len(each) for each in micro_batches(parts, 1)] == [1, 1, 1, 1]


def test_a_layout_says_where_everything_lies():
    parts = [
        *cut("a", [sequence(3), sequence(5, [True, False, True, True, False])]),
        *cut("b", [sequence(40)]),
    ]
    layout = Layout(parts)
    assert layout.rows == 64
    assert layout.tokens == 48
    assert [(s.slot, s.start, s.stop) for s in layout.spans] == [("a", 0, 16), ("b", 16, 64)]
    assert [(s.label_start, s.label_stop) for s in layout.spans] == [(0, 4), (4, 43)]
    assert layout.positions[:9].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0]
    assert layout.label_rows[:4].tolist() == [0, 1, 4, 5]
    assert layout.labels[:4].tolist() == [101, 102, 102, 103]
    assert torch.equal(layout.ids[layout.label_rows + 1], layout.labels)
    assert [(b.length, b.count) for b in layout.buckets] == [(32, 2), (64, 1)]
    small = layout.buckets[0]
    assert small.rows.tolist() == list(range(8))
    assert small.gather[:3].tolist() == [0, 1, 2]
    assert set(small.gather[3:32].tolist()) == {0}  # padding repeats the sequence's own first row


def test_lengths_are_padded_to_few():
    assert [padded_length(n) for n in (1, 32, 33, 200, 512, 513, 1025)] == [
        32, 32, 64, 256, 512, 768, 1280,
    ]  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 6, 16])
@pytest.mark.parametrize("widths", [(640, 2048, 256), (32, 48, 16), (576, 1536)])
def test_each_threads_share_ends_with_a_whole_vector(threads, widths):
    for wanted in (1, 100, 128, 500, 1062, 2048):
        rows = whole_rows(wanted, widths, threads)
        assert wanted <= rows < wanted + 16 * threads + 512
        for width in widths:
            used = min(threads, -(-rows * width // 32768))
            assert rows * width % (32 * used) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_four_threads_an_activation_gives_a_row_its_own_bits(dtype):
    """The case that showed it: 128 rows of 640, of which torch gives three threads a share."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        rows = whole_rows(128, (640,), 4)
        x = torch.randn(rows, 640, generator=torch.Generator().manual_seed(0)).to(dtype)
        for kernel in (torch.nn.functional.silu, torch.nn.functional.gelu, torch.tanh):
            whole = kernel(x)
            for start in (0, 16, 48):
                part = x[start : start + 16].clone()
                assert torch.equal(kernel(part), whole[start : start + 16])
    finally:
        torch.set_num_threads(before)
