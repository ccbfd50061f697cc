import pytest
import torch
from torch.nn import functional as F

from lora_core import token_loss
from lora_core.loss import TILE, _fused, _stepwise, row_loss
from lora_core.ops import reference


def plain(hidden, weight, labels, bias=None, softcap=None):
    logits = F.linear(hidden, weight, bias)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    right = int(((logits.argmax(-1) == labels) & (labels != -100)).sum())
    return F.cross_entropy(logits, labels, reduction="sum"), right


def problem(rows=23, width=16, vocabulary=50):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator)
    labels = torch.randint(0, vocabulary, (rows,), generator=generator)
    return hidden, weight, labels, torch.randn(vocabulary, generator=generator)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("vocabulary", [50, 20_000])
def test_loss_and_gradient_equal_cross_entropy(vocabulary, softcap, biased):
    hidden, weight, labels, bias = problem(vocabulary=vocabulary)
    bias = bias if biased else None
    ours, theirs = (hidden.clone().requires_grad_() for _ in range(2))
    total, correct = token_loss(ours, weight, labels, bias=bias, softcap=softcap)
    expected, right = plain(theirs, weight, labels, bias, softcap)
    (total / 23).backward()
    (expected / 23).backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert int(correct) == right
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_rows_without_a_label_count_for_nothing():
    hidden, weight, labels, _ = problem(rows=24)
    labels[[0, 5, 6, 23]] = -100
    ours, theirs = (hidden.clone().requires_grad_() for _ in range(2))
    total, correct = token_loss(ours.view(2, 12, 16), weight, labels.view(2, 12))
    expected, right = plain(theirs, weight, labels)
    total.backward()
    expected.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert int(correct) == right
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert not ours.grad[[0, 5, 6, 23]].any()


def test_no_labels_is_no_loss():
    total, correct = token_loss(torch.empty(0, 4), torch.ones(5, 4), torch.empty(0).long())
    assert (total.item(), int(correct)) == (0.0, 0)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_row_losses_equal_the_reference(softcap):
    hidden, weight, labels, bias = problem(rows=300)
    ours, theirs = (hidden.clone().requires_grad_() for _ in range(2))
    given = torch.linspace(0.1, 1.0, 300)
    losses = row_loss(ours, weight, labels, bias=bias, softcap=softcap, scale=0.5)
    # the scale multiplies what the head and its bias make
    expected = reference.row_loss(theirs, weight, labels, bias, softcap, 0.5)
    losses.backward(given)
    expected.backward(given)
    torch.testing.assert_close(losses.detach(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_kernel_equals_the_products(dtype):
    hidden, weight, labels, _ = problem(rows=TILE, width=64, vocabulary=9000)
    hidden, weight = hidden.to(dtype), (weight * 0.3).to(dtype)
    one = _fused(hidden, weight, None, labels, None, 1.0, True)
    two = _stepwise(hidden, weight, None, labels, None, 1.0, True)
    slack = 1e-4 if dtype == torch.float32 else 3e-2
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=slack, atol=slack)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rows_bits_do_not_depend_on_the_others(dtype):
    hidden, weight, labels, _ = problem(rows=1500, width=64, vocabulary=9000)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    whole = hidden.clone().requires_grad_()
    row_loss(whole, weight, labels).sum().backward()
    for start, stop in ((0, 7), (250, 301), (900, 1500), (1499, 1500)):
        part = hidden[start:stop].clone().requires_grad_()
        losses = row_loss(part, weight, labels[start:stop])
        losses.sum().backward()
        assert torch.equal(part.grad, whole.grad[start:stop])
        assert torch.equal(losses, row_loss(hidden, weight, labels)[start:stop])


def test_the_head_gets_no_gradient_and_all_logits_never_exist():
    hidden, weight, labels, _ = problem(rows=64, vocabulary=20_000)
    hidden.requires_grad_()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape[-1:] != weight.shape[-1:]:
                largest = max(largest, out.numel())
            return out

    with Watch():
        total, _ = token_loss(hidden, weight, labels, softcap=3.0)
    total.backward()
    assert 64 * 8192 <= largest <= TILE * 8192
    assert weight.grad is None
    assert hidden.grad is not None
