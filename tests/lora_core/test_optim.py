import math

import pytest
import torch

from lora_core import AdamW, clip_


def shapes():
    return [(4, 7), (13, 4), (1,)]


def gradients(step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator) for shape in shapes()]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_torchs_adamw(weight_decay):
    ours, theirs = ([p.clone().requires_grad_() for p in gradients(99)] for _ in range(2))
    mine = AdamW(ours, weight_decay=weight_decay)
    oracle = torch.optim.AdamW(theirs, lr=0.0, weight_decay=weight_decay, foreach=False)
    for step in range(30):
        rate = 1e-2 / (step + 1)
        mine.step(gradients(step), rate)
        oracle.param_groups[0]["lr"] = rate
        for parameter, gradient in zip(theirs, gradients(step), strict=True):
            parameter.grad = gradient
        oracle.step()
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        mean, square = mine.moments(index)
        torch.testing.assert_close(mean, oracle.state[b]["exp_avg"], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(square, oracle.state[b]["exp_avg_sq"], rtol=1e-6, atol=1e-7)


def test_moments_are_views_of_the_flat_state():
    optimizer = AdamW([torch.zeros(shape) for shape in shapes()])
    optimizer.moments(1)[0].fill_(2.0)
    assert optimizer.mean.sum() == 2.0 * 13 * 4
    assert optimizer.mean.shape == (4 * 7 + 13 * 4 + 1,)


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clip_equals_torchs(limit):
    ours = gradients(3)
    theirs = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes()]
    for parameter, gradient in zip(theirs, gradients(3), strict=True):
        parameter.grad = gradient
    expected = torch.nn.utils.clip_grad_norm_(theirs, limit).item()
    assert clip_(ours, limit) == pytest.approx(expected, rel=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.grad, rtol=1e-6, atol=1e-8)


def test_clip_leaves_what_is_no_number_and_what_has_no_limit():
    wild = [torch.tensor([1.0, math.nan])]
    assert math.isnan(clip_(wild, 1.0))
    assert wild[0][0] == 1.0
    free = [torch.tensor([3.0, 4.0])]
    assert clip_(free, math.inf) == 5.0
    assert free[0].tolist() == [3.0, 4.0]
