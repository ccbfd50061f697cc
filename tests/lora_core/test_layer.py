import math

import pytest
import torch
from torch import nn

from lora_core import AdapterSpec
from lora_core.layer import Focus, LoraLinear
from lora_core.ops import reference


def layer(name="l", **spec):
    made = LoraLinear(nn.Linear(64, 8), name, Focus())
    made.add("s", AdapterSpec(**{"r": 4, **spec}))
    made.focus.slot = "s"
    return made


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


@pytest.mark.parametrize(
    "spec", [{"dora": True}, {"learnable_scaling": True}, {"qalora_group_size": 16}]
)
def test_a_variants_formula_and_its_merged_weight(spec):
    made = layer(alpha=1.0, **spec)
    generator = torch.Generator().manual_seed(0)
    for part in made.parameters_of("s").values():
        part.data += 0.3 * torch.randn(part.shape, generator=generator)
    x = torch.linspace(-1, 1, 64 * 6).reshape(6, 64)
    held = made.parameters_of("s")
    adapter = reference.Adapter(
        held["A"],
        held["B"],
        0.25,
        magnitude=held.get("magnitude"),
        gain=held.get("gain"),
        size=spec.get("qalora_group_size", 1),
    )
    bias = made.base.bias
    expected = reference.linear(x, made.base.weight, bias, [(slice(0, 6), adapter)])
    torch.testing.assert_close(made(x), expected)
    torch.testing.assert_close(x @ made.merged("s").T + bias, expected)
    made.remove("s")
    assert not made.parameters_of("s")
    assert torch.equal(made(x), made.base(x))
