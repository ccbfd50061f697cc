"""The norm against the formula, and which modules are taken over."""

import pytest
import torch
from torch import nn

from lora_core.ops.norm import rms_norm, take_over
from tests.lora_core.models import KINDS, tiny


def formula(x, weight, eps):
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps) * weight


@pytest.mark.parametrize("shape", [(7, 32), (2, 3, 5, 12)])
def test_value_and_gradient_equal_the_formula(shape):
    draw = torch.Generator().manual_seed(0)
    x, given = (torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(shape[-1], generator=draw)
    ours = x.float().requires_grad_()
    theirs = x.clone().requires_grad_()
    out = rms_norm(ours, weight, 1e-6)
    expected = formula(theirs, weight.double(), 1e-6)
    out.backward(given.float())
    expected.backward(given)
    torch.testing.assert_close(out, expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_models_norms_are_taken_over_and_agree(kind):
    model = tiny(kind)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.linspace(-0.3, 0.4, len(parameter)))
    ids = torch.arange(20)[None]
    before = model(ids).logits
    count = take_over(model)
    norms = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]
    assert count == len(norms)
    assert (count > 0) == (kind != "gpt2")
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("plus", [0.0, 1.0])
def test_large_weights_are_not_mistaken_for_one_more(plus):
    class SomeRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            weight = torch.linspace(20.0, 60.0, 64).bfloat16()
            self.weight, self.eps = nn.Parameter(weight), 1e-6

        def forward(self, x):
            made = formula(x.float(), self.weight.float() + plus, self.eps)
            return made.to(x.dtype)

    model = nn.Sequential(SomeRMSNorm())
    assert take_over(model) == 1
    assert torch.equal(model[0].forward.factor, plus + model[0].weight.float())


def test_a_norm_of_another_kind_is_left_alone():
    class OddRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x):
            return formula(x, self.weight, self.eps) + 0.1

    model = nn.Sequential(OddRMSNorm())
    assert take_over(model) == 0
    assert isinstance(model[0].forward.__self__, OddRMSNorm)
