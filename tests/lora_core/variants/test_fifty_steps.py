"""Fifty steps of each variant in float32 equal PEFT's modules with torch's AdamW: losses and
parameters within 1e-5."""

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora import variants as peft_variants
from torch.nn import functional as F

from lora_core import Trainer
from lora_core.examples import batch
from lora_core.inject import layers
from tests.lora_core.models import KINDS, job, tiny

RATE, DECAY, CLIP = 2e-3, 0.01, 0.5


def pairs(trainer, theirs):
    """Our layer and PEFT's, by name."""
    ours = layers(trainer.model)
    for name, module in theirs.base_model.model.named_modules():
        if name in ours:
            yield ours[name], module


def adamw(theirs):
    learning = [p for p in theirs.parameters() if p.requires_grad]
    return torch.optim.AdamW(learning, lr=RATE, weight_decay=DECAY)


def fifty(trainer, mine, theirs, optimizer, before_each=lambda: None):
    """Train both side by side, PEFT one example at a time."""
    learning = [p for group in optimizer.param_groups for p in group["params"]]
    first = [group["lr"] for group in optimizer.param_groups]
    for step in range(1, 51):
        report = trainer.step()[0]
        before_each()
        optimizer.zero_grad()
        total, count = 0.0, 0
        for index in batch(len(mine.examples), 4, mine.seed, step):
            ids, mask = mine.examples[index]
            out = theirs(input_ids=ids[None].long()).logits[0, :-1][mask[1:]]
            total = total + F.cross_entropy(out, ids[1:][mask[1:]].long(), reduction="sum")
            count += int(mask[1:].sum())
        loss = total / count
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(learning, CLIP)
        for group, rate in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = rate * (1 - (step - 1) / mine.total_steps)
        optimizer.step()
        assert report.loss == pytest.approx(loss.item(), rel=1e-5), step
        assert report.grad_norm == pytest.approx(norm.item(), rel=1e-4), step


def close(ours, theirs):
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def begun(kind, **spec):
    changes = {f"spec_{name}": value for name, value in spec.items()}
    mine = job("j", 3, epochs=17, max_grad_norm=CLIP, weight_decay=DECAY, **changes)
    trainer = Trainer(tiny(kind), slots=1)
    trainer.join(mine)
    return trainer, mine


def started_as(trainer, kind, **config):
    """PEFT's model with our adapter's first numbers."""
    asked = dict(r=4, lora_alpha=8, target_modules="all-linear", bias="none")
    theirs = peft.get_peft_model(tiny(kind), peft.LoraConfig(**asked | config))
    for own, module in pairs(trainer, theirs):
        module.lora_A["default"].weight.data.copy_(own.lora_A["slot0"])
        module.lora_B["default"].weight.data.copy_(own.lora_B["slot0"])
    return theirs


@pytest.mark.parametrize("kind", KINDS)
def test_dora(kind, one_thread):
    trainer, mine = begun(kind, dora=True)
    theirs = started_as(trainer, kind, use_dora=True)
    for own, module in pairs(trainer, theirs):
        close(own.lora_magnitude["slot0"], module.lora_magnitude_vector["default"].weight)
    fifty(trainer, mine, theirs, adamw(theirs))
    for own, module in pairs(trainer, theirs):
        close(own.lora_magnitude["slot0"], module.lora_magnitude_vector["default"].weight)
        close(own.lora_B["slot0"], module.lora_B["default"].weight)
        close(own.lora_A["slot0"], module.lora_A["default"].weight)


def test_loraplus_by_pefts_own_optimizer(one_thread):
    trainer, mine = begun("llama", loraplus_lr_ratio=8.0)
    theirs = started_as(trainer, "llama")
    made = create_loraplus_optimizer(
        theirs,
        torch.optim.AdamW,
        lr=RATE,
        loraplus_lr_ratio=8.0,
        loraplus_weight_decay=DECAY,
    )
    fifty(trainer, mine, theirs, made)
    for own, module in pairs(trainer, theirs):
        close(own.lora_A["slot0"], module.lora_A["default"].weight)
        close(own.lora_B["slot0"], module.lora_B["default"].weight)


def test_learnable_scaling_where_pefts_scaling_is_a_parameter(one_thread):
    trainer, mine = begun("llama", learnable_scaling=True)
    theirs = started_as(trainer, "llama")
    optimizer = adamw(theirs)
    gains = [torch.nn.Parameter(torch.ones(1)) for _ in pairs(trainer, theirs)]
    optimizer.add_param_group({"params": gains})

    def scale():
        for gain, (_, module) in zip(gains, pairs(trainer, theirs), strict=True):
            module.scaling["default"] = gain * 2.0

    fifty(trainer, mine, theirs, optimizer, before_each=scale)
    for gain, (own, module) in zip(gains, pairs(trainer, theirs), strict=True):
        close(own.lora_gain["slot0"], gain)
        close(own.lora_B["slot0"], module.lora_B["default"].weight)
        close(own.lora_A["slot0"], module.lora_A["default"].weight)
    assert max(abs(gain.item() - 1) for gain in gains) > 0.01


def test_qalora_by_pefts_own_variant(one_thread):
    """PEFT puts it on GPTQ layers only; its arithmetic works on any."""
    trainer, mine = begun("llama", qalora_group_size=8)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", use_qalora=True, qalora_group_size=8
    )
    theirs = peft.get_peft_model(tiny("llama"), config)
    for own, module in pairs(trainer, theirs):
        peft_variants.QALoraLinearVariant.init(module, "default", config)
        module.lora_variant["default"] = peft_variants.QALoraLinearVariant()
        module.lora_A["default"].weight.data.copy_(own.lora_A["slot0"])
    fifty(trainer, mine, theirs, adamw(theirs))
    for own, module in pairs(trainer, theirs):
        assert own.lora_A["slot0"].shape == (4, own.in_features // 8)
        close(own.lora_A["slot0"], module.lora_A["default"].weight)
        close(own.lora_B["slot0"], module.lora_B["default"].weight)
