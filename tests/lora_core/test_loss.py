import pytest
import torch
from torch.nn import functional as F

from lora_core import token_loss


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
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_loss_and_gradient_equal_cross_entropy(chunk, softcap, biased):
    hidden, weight, labels, bias = problem()
    bias = bias if biased else None
    ours, theirs = (hidden.clone().requires_grad_() for _ in range(2))
    total, correct = token_loss(ours, weight, labels, bias=bias, softcap=softcap, chunk=chunk)
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
    total, correct = token_loss(ours.view(2, 12, 16), weight, labels.view(2, 12), chunk=5)
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


def test_the_head_gets_no_gradient_and_no_product_sees_more_than_a_chunk():
    hidden, weight, labels, _ = problem(rows=64)
    hidden.requires_grad_()
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.mm.default and out.shape[1] == 50:
                seen.append(out.shape[0])
            return out

    with Watch():
        total, _ = token_loss(hidden, weight, labels, chunk=8)
    total.backward()
    assert seen == [8] * 8
    assert weight.grad is None
    assert hidden.grad is not None
