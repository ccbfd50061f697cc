"""The fused product of a group against the plain formulas, and its dropout."""

import pytest
import torch
from torch import nn

from lora_core import AdapterSpec, attention, inject
from lora_core.group import find_groups
from lora_core.inject import carry_all, layers
from lora_core.ops import reference
from lora_core.ops.linear import keep_mask
from lora_core.segments import Layout, Sequence, cut
from lora_core.weights import SlotWeights
from lora_core.work import Pass

WIDTH = 24


class Two(nn.Module):
    """Two layers on one input, and one behind them."""

    def __init__(self, bias):
        super().__init__()
        self.one = nn.Linear(WIDTH, 8, bias=bias)
        self.two = nn.Linear(WIDTH, 12, bias=bias)
        self.last = nn.Linear(20, 6, bias=bias)

    def forward(self, x):
        return self.last(torch.cat([self.one(x), self.two(x)], dim=-1))


def sequences(*lengths, key=0):
    return [
        Sequence(torch.arange(n), torch.ones(n, dtype=torch.bool), key=key + i)
        for i, n in enumerate(lengths)
    ]


def prepared(bias, specs):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Two(bias)
    carriers = carry_all(model)
    find_groups(model, carriers, lambda: model(torch.zeros(1, WIDTH)))
    draw = torch.Generator().manual_seed(5)
    for slot, spec in specs.items():
        inject(model, spec, slot)
        for layer in layers(model).values():
            if slot in layer.specs:
                nn.init.normal_(layer.lora_B[slot], generator=draw)
            if slot in layer.lora_gain:
                layer.lora_gain[slot].data.fill_(0.7)
            if slot in layer.lora_magnitude:
                layer.lora_magnitude[slot].data.mul_(1.3)
    return model, {slot: SlotWeights(model, slot) for slot in specs}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_outputs_and_gradients_equal_the_reference(rate, bias):
    specs = {
        "a": AdapterSpec(r=2, alpha=4, dropout=rate),
        "b": AdapterSpec(r=5, alpha=3, target_modules=("two",)),
        "c": AdapterSpec(r=3, alpha=3, target_modules=("one", "last"), rslora=True),
        "d": AdapterSpec(r=2, alpha=2, target_modules=("two", "last"), dora=True, dropout=rate),
        "e": AdapterSpec(r=2, alpha=2, learnable_scaling=True, dropout=rate),
        "f": AdapterSpec(r=3, alpha=0.1, qalora_group_size=4, dropout=rate),
        "g": AdapterSpec(r=2, alpha=3, dora=True),
        "h": AdapterSpec(r=4, alpha=0.1, qalora_group_size=2, learnable_scaling=True),
    }
    model, slots = prepared(bias, specs)
    assert [len(layer.group.members) for layer in layers(model).values()] == [2, 2, 1]
    segments = cut("a", sequences(3, 7, key=10)) + cut("b", sequences(5)) + cut("c", sequences(20))
    segments += [s for slot in "defgh" for s in cut(slot, sequences(9, 4, key=ord(slot)))]
    layout = Layout([*segments, *cut(None, sequences(4)), *cut("a", sequences(6, key=20))])
    x = torch.randn(layout.rows, WIDTH, generator=torch.Generator().manual_seed(1))
    given = torch.randn(layout.rows, 6, generator=torch.Generator().manual_seed(2))
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()

    focus = next(iter(layers(model).values())).focus
    focus.work = Pass(layout, slots, torch.zeros((), requires_grad=True))
    out = model(mine)
    focus.work = None
    out.backward(given)

    leaves = {
        (slot, name, part): parameter.detach().clone().requires_grad_()
        for name, layer in layers(model).items()
        for slot in layer.specs
        for part, parameter in layer.parameters_of(slot).items()
    }

    def layer_output(name, rows):
        layer = layers(model)[name]
        owned = []
        for span in layout.spans:
            if span.slot is None or span.slot not in layer.specs:
                continue
            spec = specs[span.slot]
            keep = None
            if spec.dropout:
                width = layer.in_features
                keep = keep_mask(layout, span, spec.dropout, layer.dropout_key, width)
            own = {part: leaves[span.slot, name, part] for part in layer.parameters_of(span.slot)}
            adapter = reference.Adapter(
                own["A"],
                own["B"],
                spec.scaling,
                keep,
                spec.dropout,
                magnitude=own.get("magnitude"),
                gain=own.get("gain"),
                size=spec.qalora_group_size or 1,
            )
            owned.append((slice(span.start, span.stop), adapter))
        return reference.linear(rows, layer.weight, layer.base.bias, owned)

    first = torch.cat([layer_output("one", theirs), layer_output("two", theirs)], dim=-1)
    expected = layer_output("last", first)
    expected.backward(given)
    torch.testing.assert_close(out.detach(), expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    for held in slots.values():
        held.gather()
    for (slot, name, part), leaf in leaves.items():
        held = slots[slot]
        place = held.places[f"{name}.{part}"]
        ours = held.grad[place].view(leaf.shape)
        torch.testing.assert_close(ours, leaf.grad, rtol=1e-4, atol=1e-4)


def test_the_groups_weights_are_the_layers_own():
    model, _ = prepared(True, {})
    one, two = model.one, model.two
    assert one.group is two.group
    assert torch.equal(one.group.weight, torch.cat([one.weight, two.weight]))
    assert one.weight.data_ptr() == one.group.weight.data_ptr()
    with torch.no_grad():
        two.weight.zero_()
        two.base.bias.zero_()
    assert not one.group.weight[8:].any()
    assert not one.group.bias[8:].any()


def mask_of(rate, lengths, key=0, layer_key=5, width=64):
    layout = Layout(cut("s", sequences(*lengths, key=key)))
    return torch.cat([keep_mask(layout, span, rate, layer_key, width) for span in layout.spans])


def test_dropout_keeps_its_share_and_is_independent():
    keep = mask_of(0.25, [100, 100, 32], width=256)
    assert keep.float().mean().item() == pytest.approx(0.75, abs=0.01)
    flat = keep[:200].float().reshape(4, -1)
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.05


def test_a_mask_depends_on_layer_sequence_and_position_only():
    both = mask_of(0.25, [30, 50])
    assert torch.equal(both[:30], mask_of(0.25, [30])[:30])
    assert torch.equal(both[30:80], mask_of(0.25, [50], key=1)[:50])
    assert torch.equal(both[30:45], mask_of(0.25, [15], key=1)[:15])
    assert not torch.equal(both[:30], mask_of(0.25, [30], layer_key=6)[:30])
    assert not torch.equal(both[:30], mask_of(0.25, [30], key=9)[:30])


def test_attention_without_a_layout_is_plain():
    q, k = (torch.randn(2, h, 6, 8, generator=torch.Generator().manual_seed(h)) for h in (4, 2))
    out, _ = attention.packed(None, q, k, k, scaling=0.5)
    wide = k.repeat_interleave(2, 1)
    expected = nn.functional.scaled_dot_product_attention(q, wide, wide, is_causal=True, scale=0.5)
    torch.testing.assert_close(out, expected.transpose(1, 2))
