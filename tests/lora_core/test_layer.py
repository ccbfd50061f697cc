import math

import pytest
import torch
from torch import nn

from lora_core import AdapterSpec, SpecError
from lora_core.layer import Focus, LoraLinear
from lora_core.rng import seed_of


def layer(name="l", **spec):
    made = LoraLinear(nn.Linear(64, 8), name, Focus())
    made.add("s", AdapterSpec(**{"r": 4, **spec}))
    made.focus.slot = "s"
    return made


def keys(count, step=1):
    return torch.tensor([seed_of(("row", step, i)) for i in range(count)])


def test_the_masters_start_as_kaiming_says():
    made = layer(r=8)
    a, b = made.lora_A["s"], made.lora_B["s"]
    assert (a.shape, b.shape, a.dtype) == ((8, 64), (8, 8), torch.float32)
    assert not b.any()
    bound = 1 / math.sqrt(64)
    assert a.abs().max() <= bound
    assert a.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert torch.equal(a, layer(r=8).lora_A["s"])
    assert not torch.equal(a, layer(r=8, seed=1).lora_A["s"])
    assert not torch.equal(a, layer("other", r=8).lora_A["s"])


@pytest.mark.parametrize("rslora", [False, True])
def test_the_formula(rslora):
    made = layer(alpha=12.0, rslora=rslora)
    nn.init.normal_(made.lora_B["s"], generator=torch.Generator().manual_seed(0))
    x = torch.linspace(-1, 1, 64 * 6).reshape(2, 3, 64)
    scaling = 12.0 / (2.0 if rslora else 4.0)
    expected = made.base(x) + scaling * (x @ made.lora_A["s"].T @ made.lora_B["s"].T)
    torch.testing.assert_close(made(x), expected)
    made.focus.slot = None
    assert torch.equal(made(x), made.base(x))


def test_dropout_keeps_its_share_and_the_mean():
    out = layer()._drop(torch.ones(4, 100, 64), 0.25, keys(4))
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)
    flat = (out == 0).float().reshape(4, -1)
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.05


def test_a_mask_depends_on_step_layer_sequence_and_position_only():
    x = torch.ones(4, 100, 64)
    out = layer()._drop(x, 0.25, keys(4))
    assert torch.equal(out[1:3], layer()._drop(x[1:3], 0.25, keys(4)[1:3]))
    assert torch.equal(out[:, :30], layer()._drop(x[:, :30], 0.25, keys(4)))
    assert torch.equal(out, layer()._drop(x.reshape(400, 64), 0.25, keys(4)).view(4, 100, 64))
    assert not torch.equal(out, layer("other")._drop(x, 0.25, keys(4)))
    assert not torch.equal(out, layer()._drop(x, 0.25, keys(4, step=2)))


def test_without_keys_there_is_no_dropout_and_odd_inputs_are_refused():
    made = layer(dropout=0.5)
    nn.init.ones_(made.lora_B["s"])
    x = torch.ones(3, 5, 64)
    assert torch.equal(made(x), made(x))
    made.focus.row_keys = keys(3)
    assert not torch.equal(made(x)[0, 0], made(x)[0, 1])
    with pytest.raises(SpecError, match="l cannot have dropout"):
        made(torch.ones(7, 64))
