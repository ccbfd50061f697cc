import math

import pytest
import torch

from lora_core import AdamW, clip_
from lora_core.ops import reference

SIZE = 4 * 7 + 13 * 4 + 1


def gradient(step):
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_torchs_adamw_and_the_paper(weight_decay):
    ours, theirs = gradient(99), gradient(99).requires_grad_()
    mine = AdamW(ours, weight_decay=weight_decay)
    oracle = torch.optim.AdamW([theirs], lr=0.0, weight_decay=weight_decay, foreach=False)
    rates = [1e-2 / (step + 1) for step in range(30)]
    for step, rate in enumerate(rates):
        mine.step(gradient(step), rate)
        oracle.param_groups[0]["lr"] = rate
        theirs.grad = gradient(step)
        oracle.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-7)
    written = reference.adamw(gradient(99), [gradient(s) for s in range(30)], rates, weight_decay)
    torch.testing.assert_close(ours, written, rtol=1e-5, atol=1e-6)
    held = oracle.state[theirs]
    torch.testing.assert_close(mine.mean, held["exp_avg"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(mine.square, held["exp_avg_sq"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("native", [False, True])
def test_paces_are_torchs_parameter_groups(native, request):
    kernels = request.getfixturevalue("kernels") if native else None
    ours, cut = gradient(99), 31
    first, second = (part.clone().requires_grad_() for part in (ours[:cut], ours[cut:]))
    mine = AdamW(
        ours,
        weight_decay=0.1,
        paces=[(slice(0, cut), 1.0), (slice(cut, SIZE), 8.0)],
        kernels=kernels,
    )
    groups = [{"params": [first], "lr": 1e-2}, {"params": [second], "lr": 8e-2}]
    oracle = torch.optim.AdamW(groups, weight_decay=0.1, foreach=False)
    for step in range(30):
        mine.step(gradient(step), 1e-2)
        first.grad, second.grad = gradient(step)[:cut], gradient(step)[cut:]
        oracle.step()
    together = torch.cat([first, second]).detach()
    torch.testing.assert_close(ours, together, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clip_equals_torchs(limit):
    ours, theirs = gradient(3), torch.nn.Parameter(torch.zeros(SIZE))
    theirs.grad = gradient(3)
    expected = torch.nn.utils.clip_grad_norm_([theirs], limit).item()
    assert clip_(ours, limit) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(ours, theirs.grad, rtol=1e-6, atol=1e-8)


def test_clip_leaves_what_is_no_number_and_what_has_no_limit():
    wild = torch.tensor([1.0, math.nan])
    assert math.isnan(clip_(wild, 1.0))
    assert wild[0] == 1.0
    free = torch.tensor([3.0, 4.0])
    assert clip_(free, math.inf) == 5.0
    assert free.tolist() == [3.0, 4.0]
