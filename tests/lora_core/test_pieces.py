"""Loss, schedule, random numbers, optimizer state, merge: each against what it should be."""

import pytest
import torch
from torch.nn import functional as F

from lora_core import (
    AdapterSpec,
    LoraError,
    State,
    Trainer,
    inject,
    learning_rate,
    merge,
    token_loss,
    unmerge,
    weights_digest,
)
from lora_core.examples import batch, total_steps
from lora_core.inject import layers
from lora_core.layer import Focus, LoraLinear
from lora_core.rng import permutation, seed_of, uniform
from tests.lora_core.models import job, tiny


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_loss_and_gradient_equal_cross_entropy(chunk, softcap):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator)
    labels = torch.randint(0, 50, (23,), generator=generator)
    total, correct = token_loss(hidden, weight, labels, chunk_rows=chunk, softcap=softcap)
    (total / 23).backward()
    ours, hidden.grad = hidden.grad, None
    logits = hidden @ weight.T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    F.cross_entropy(logits, labels).backward()
    assert total.item() / 23 == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert int(correct) == int((logits.argmax(-1) == labels).sum())
    torch.testing.assert_close(ours, hidden.grad, rtol=1e-4, atol=1e-6)


def test_no_labels_is_no_loss():
    total, correct = token_loss(torch.empty(0, 4), torch.ones(5, 4), torch.empty(0).long())
    assert (total.item(), int(correct)) == (0.0, 0)


def test_schedules():
    assert learning_rate(1.0, "constant", 9, 10, 0) == 1.0
    assert [learning_rate(1.0, "constant", s, 10, 4) for s in (1, 2, 4)] == [0.25, 0.5, 1.0]
    assert [learning_rate(1.0, "linear", s, 4, 0) for s in (1, 2, 4)] == [1.0, 0.75, 0.25]
    assert learning_rate(1.0, "cosine", 1, 4, 0) == 1.0
    assert learning_rate(1.0, "cosine", 3, 4, 0) == pytest.approx(0.5)


def test_batches_take_each_example_once_an_epoch_in_a_new_order():
    assert total_steps(10, 4, 2) == 6
    epochs = [[i for s in range(first, first + 3) for i in batch(10, 4, 1, s)] for first in (1, 4)]
    assert [sorted(e) for e in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    assert batch(10, 4, 1, 1) != batch(10, 4, 2, 1)


def test_random_numbers_are_uniform_and_depend_on_their_key_only():
    drawn = uniform(("a", 1), (200, 500))
    torch.random.manual_seed(99)
    assert torch.equal(drawn, uniform(("a", 1), (200, 500)))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert drawn.mean().item() == pytest.approx(0.5, abs=5e-3)
    assert drawn.var().item() == pytest.approx(1 / 12, abs=2e-3)
    other = uniform(("a", 2), (200, 500))
    correlation = torch.corrcoef(torch.stack([drawn.flatten(), other.flatten()]))[0, 1]
    assert abs(correlation.item()) < 0.02
    assert sorted(permutation(("p",), 50)) == list(range(50))


def test_dropout_keeps_its_share_and_the_mean():
    layer = LoraLinear(torch.nn.Linear(64, 8), "l", Focus())
    keys = torch.tensor([seed_of(("row", i)) for i in range(4)])
    x = torch.ones(4, 100, 64)
    out = layer._drop(x, 0.25, keys)
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(out[1:2], layer._drop(x[1:2], 0.25, keys[1:2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerge_restores_the_bits(dtype):
    model = tiny("gpt2", dtype)
    before = weights_digest(model)
    ids = torch.arange(3, 13)[None]
    inject(model, AdapterSpec(r=2, seed=1))
    for layer in layers(model).values():
        torch.nn.init.constant_(layer.lora_B["default"], 0.05)
    on_the_fly = model(ids).logits
    merge(model)
    assert weights_digest(model) != before
    torch.testing.assert_close(
        model(ids).logits, on_the_fly, atol=1e-4 if dtype == torch.float32 else 0.1, rtol=0.05
    )
    with pytest.raises(LoraError, match="merged already"):
        merge(model)
    unmerge(model)
    assert weights_digest(model) == before
    torch.testing.assert_close(model(ids).logits, on_the_fly, rtol=0, atol=0)
    with pytest.raises(LoraError, match="nothing is merged"):
        unmerge(model)


def test_a_state_that_does_not_fit_is_refused_and_the_slot_stays_free():
    trainer = Trainer(tiny("llama"), slots=1)
    with pytest.raises(LoraError, match="does not fit"):
        trainer.join(job("j", 1), State(2, {}))
    trainer.join(job("j", 1))
