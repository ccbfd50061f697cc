import torch
from torch import nn

from lora_core import AdapterSpec, inject, weights_digest
from tests.lora_core.models import tiny


def test_notices_one_changed_weight_and_ignores_adapters():
    model = tiny("llama", torch.bfloat16)
    before = weights_digest(model)
    inject(model, AdapterSpec(r=2))
    assert weights_digest(model) == before
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1.0
    assert weights_digest(model) != before


def test_modules_called_base_keep_their_name():
    class Odd(nn.Module):
        def __init__(self, name):
            super().__init__()
            inner = nn.Module()
            inner.add_module(name, nn.Linear(3, 3))
            self.base = inner
            self.lora_A = nn.Linear(2, 2)
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.fill_(1.0)

    plain, other = Odd("x"), Odd("y")
    before = weights_digest(plain)
    assert before != weights_digest(other)
    inject(plain, AdapterSpec(r=1))
    assert weights_digest(plain) == before
    with torch.no_grad():
        plain.lora_A.base.weight.fill_(2.0)
    assert weights_digest(plain) != before
