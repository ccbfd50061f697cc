"""The decoder by hand against the same model in float32, and against the general way in bf16."""

import pytest
import torch

from lora_core import Trainer
from tests.lora_core.models import job, tiny

NATIVE = ("llama", "mistral", "qwen2", "qwen3", "gemma3")


def jobs(dropout):
    """Jobs of different rank, length, targets and variant."""
    return [
        job("a", 1, spec_r=3, spec_dropout=dropout, batch_size=5),
        job("b", 2, spec_r=40, spec_target_modules=("q_proj", "down_proj"), shift_group=8),
        job("c", 3, spec_r=8, spec_dropout=dropout / 2, spec_target_modules=r".*(up|o|v)_proj"),
        job("d", 4, spec_r=5, spec_dropout=dropout, spec_dora=True),
        job("e", 5, spec_dora=True, spec_target_modules=("k_proj", "up_proj", "down_proj")),
        job("f", 6, spec_dropout=dropout, spec_qalora_group_size=8, spec_learnable_scaling=True),
    ]


def gradients(trainer, dropout):
    """Each job's gradient before it is clipped, and its loss, once B is not zero any more."""
    for each in jobs(dropout):
        trainer.join(each)
    for _ in range(3):
        reports = trainer.step()
    found = {}
    for report in reports:
        grad = trainer._active[report.job_id].weights.grad
        found[report.job_id] = (grad * (report.grad_norm / grad.norm()), report.loss)
    return found


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("kind", NATIVE)
def test_as_near_to_float32_as_the_general_way(kind, dropout, kernels, one_thread):
    native = Trainer(tiny(kind, torch.bfloat16, whole=True), slots=6, kernels=kernels)
    general = Trainer(tiny(kind, torch.bfloat16, whole=True), slots=6)
    exact = Trainer(tiny(kind, torch.bfloat16, whole=True).float(), slots=6, kernels=kernels)
    assert (native.native, general.native, exact.native) == (True, False, False)
    mine, theirs, truth = (gradients(each, dropout) for each in (native, general, exact))
    for name, (grad, loss) in truth.items():
        scale = grad.norm()
        own, other = (float((each[name][0] - grad).norm() / scale) for each in (mine, theirs))
        assert own < max(1.2 * other, 0.02), (name, own, other)
        assert abs(mine[name][1] - loss) < 3e-3 * loss


@pytest.mark.parametrize("kind", NATIVE)
def test_evaluation_and_hits(kind, kernels):
    native = Trainer(tiny(kind, torch.bfloat16, whole=True), slots=1, kernels=kernels)
    exact = Trainer(tiny(kind, torch.bfloat16, whole=True).float(), slots=1)
    examples = job("x", 5).examples
    loss, accuracy = native.evaluate(None, examples)
    wanted, share = exact.evaluate(None, examples)
    assert loss == pytest.approx(wanted, rel=2e-3)
    assert accuracy == pytest.approx(share, abs=0.03)
    native.join(job("x", 5))
    reports = [native.step()[0] for _ in range(3)]
    assert all(report.token_accuracy is not None for report in reports)


def test_what_is_not_of_the_pattern_goes_the_general_way(kernels):
    assert not Trainer(tiny("gpt2", torch.bfloat16), slots=1, kernels=kernels).native
    assert not Trainer(tiny("llama", torch.bfloat16), slots=1, kernels=kernels).native  # width 48
    changed = tiny("llama", torch.bfloat16, whole=True)
    changed.model.layers[1].mlp.act_fn = torch.nn.ReLU()
    assert not Trainer(changed, slots=1, kernels=kernels).native


def test_a_layer_that_computes_more_is_found_out(kernels):
    model = tiny("llama", torch.bfloat16, whole=True)
    first = model.model.layers[0].forward
    model.model.layers[0].forward = lambda *given, **named: first(*given, **named) * 1.5
    assert not Trainer(model, slots=1, kernels=kernels).native


def test_what_its_attention_asks_for_has_to_be_seen(kernels):
    model = tiny("llama", torch.bfloat16, packed=False, whole=True)
    assert not Trainer(model, slots=2, kernels=kernels).native


def test_one_forward_a_micro_batch(kernels):
    trainer = Trainer(tiny("qwen3", torch.bfloat16, whole=True), slots=6, kernels=kernels)
    for each in jobs(0.1):
        trainer.join(each)
    before = trainer.passes
    trainer.step()
    assert trainer.passes == before + 1
