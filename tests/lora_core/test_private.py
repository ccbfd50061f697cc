"""Norms and tokens a slot has of its own, against PEFT's, and what they must not depend on."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from lora_core import (
    AdapterSpec,
    FormatError,
    SpecError,
    TargetError,
    Trainer,
    eject,
    inject,
    load_adapter,
    private,
    save_adapter,
)
from lora_core.examples import batch
from tests.lora_core.models import VOCAB, examples, job, tiny

TOKENS = (3, 5, 8, 13, 21, 34, 55, 89)
NORMS = ("input_layernorm", "post_attention_layernorm", "model.norm")
IDS = torch.arange(40)[None] * 7 % VOCAB


def spec(**more):
    return AdapterSpec(
        **{"r": 4, "seed": 3, "train_norms": True, "trainable_tokens": TOKENS} | more
    )


def moved(model):
    """Something learnt in everything a slot may train."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in private.parameters_of(model, "default").values():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.2)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)


def test_thirty_steps_equal_peft_and_adamw(one_thread):
    wanted = spec(target_modules=("q_proj", "down_proj"))
    mine = job("j", 1, examples=examples(1, count=30), epochs=8, learning_rate=3e-3)
    mine = replace(mine, spec=wanted)
    trainer = Trainer(tiny("llama"), slots=1)
    trainer.join(mine)
    theirs = get_peft_model(
        tiny("llama", packed=False),
        LoraConfig(
            r=4,
            lora_alpha=32,
            target_modules=["q_proj", "down_proj"],
            modules_to_save=list(NORMS),
            trainable_token_indices={"embed_tokens": list(TOKENS)},
        ),
    )
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_A" in name:
                key = f"base_model.model.{name.replace('.lora_A.slot0', '.lora_A.default.weight')}"
                theirs.get_parameter(key).copy_(parameter)
    learnt = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=3e-3, weight_decay=0.0)
    steps = 30
    assert mine.total_steps >= steps
    for step in range(1, steps + 1):
        report = trainer.step()[0]
        optimizer.zero_grad()
        total = count = 0
        for index in batch(len(mine.examples), mine.optimizer_batch, mine.seed, step):
            ids, mask = mine.examples[index]
            logits = theirs(ids.long()[None]).logits[0, :-1]
            losses = torch.nn.functional.cross_entropy(logits, ids.long()[1:], reduction="none")
            total, count = total + losses[mask[1:]].sum(), count + int(mask[1:].sum())
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(learnt, mine.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = report.learning_rate
        optimizer.step()
        assert report.loss == pytest.approx(float((total / count).detach()), rel=1e-5)
    held, fresh = private.parameters_of(trainer.model, "slot0"), tiny("llama")
    assert len(held) == 6  # two layers' two norms, the last one, and the tokens
    for name, parameter in held.items():
        module, _, part = name.rpartition(".")
        last = (
            "modules_to_save.default.weight"
            if part == "weight"
            else "token_adapter.trainable_tokens_delta.default"
        )
        other = theirs.get_parameter(f"base_model.model.{module}.{last}")
        torch.testing.assert_close(parameter, other, rtol=1e-4, atol=2e-6)
        start = fresh.get_submodule(module).weight
        start = start if part == "weight" else start[list(TOKENS)]
        assert float((parameter - start).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_peft_loads_ours_and_we_load_pefts(kind, tmp_path):
    wanted = spec() if kind != "gemma3" else spec(trainable_tokens=())
    ours = tiny(kind, packed=False)
    inject(ours, wanted)
    bare = tiny(kind, packed=False)(IDS).logits
    moved(ours)
    logits = ours(IDS).logits
    assert not torch.allclose(logits, bare, atol=1e-2)
    save_adapter(ours, tmp_path / "ours")
    peft = PeftModel.from_pretrained(tiny(kind, packed=False), tmp_path / "ours")
    torch.testing.assert_close(peft(IDS).logits, logits, rtol=1e-4, atol=1e-5)
    peft.save_pretrained(tmp_path / "theirs")
    again = tiny(kind, packed=False)
    assert load_adapter(again, tmp_path / "theirs").train_norms
    torch.testing.assert_close(again(IDS).logits, logits, rtol=1e-4, atol=1e-5)
    eject(again)
    assert not any(part.own for part in private.parts(again).values())
    torch.testing.assert_close(again(IDS).logits, bare, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("native", [False, True])
def test_who_has_his_own_changes_nobody_elses(native, kernels, tmp_path):
    given = kernels if native else None

    def make():
        return tiny("llama", torch.bfloat16, whole=native)

    jobs = [
        job("norms", 1, spec_train_norms=True, spec_dropout=0.1),
        job("plain", 2),
        job("both", 3, spec_train_norms=True, spec_trainable_tokens=TOKENS, shift_group=8),
        job("tokens", 4, spec_trainable_tokens=tuple(range(0, VOCAB, 2))),
    ]
    trainer = Trainer(make(), slots=4, kernels=given)
    assert trainer.native == native
    for each in jobs:
        trainer.join(each)
    ended = {}
    while reports := trainer.step():
        for report in reports:
            if report.finished:
                trainer.export(report.job_id, tmp_path / report.job_id)
                trainer.leave(report.job_id)
                ended[report.job_id] = report
    assert len(ended) == 4
    for each in jobs:
        lone = Trainer(make(), slots=1, kernels=given)
        lone.join(each)
        while lone.step():
            pass
        lone.export(each.job_id, tmp_path / "alone")
        one, other = (
            (tmp_path / name / "adapter_model.safetensors").read_bytes()
            for name in (each.job_id, "alone")
        )
        assert one == other, each.job_id


def test_the_native_way_is_as_near_to_float32_as_the_general_one(kernels):
    each = job("j", 3, spec_train_norms=True, spec_trainable_tokens=TOKENS, batch_size=5)

    def gradient(dtype, given):
        model = tiny("llama", torch.bfloat16, whole=True).to(dtype)
        trainer = Trainer(model, slots=1, kernels=given)
        assert trainer.native == (given is not None)
        trainer.join(each)
        for _ in range(3):
            report = trainer.step()[0]
        weights = trainer._active["j"].weights
        names = private.parameters_of(model, "slot0")
        return {n: weights.gradient(n) * (report.grad_norm / weights.grad.norm()) for n in names}

    exact = gradient(torch.float32, None)
    general, native = gradient(torch.bfloat16, None), gradient(torch.bfloat16, kernels)
    for name, value in exact.items():
        far, near = (float((g[name] - value).norm() / value.norm()) for g in (general, native))
        assert near < max(1.5 * far, 0.03), (name, near, far)


@pytest.mark.parametrize(
    ("kind", "wanted", "error", "words"),
    [
        ("gpt2", {"trainable_tokens": ()}, TargetError, "no RMS norm"),
        ("gemma3", {"train_norms": False}, TargetError, "tied"),
        ("llama", {"trainable_tokens": (VOCAB,)}, SpecError, f"0 to {VOCAB - 1}"),
    ],
)
def test_what_a_model_has_not_is_refused_and_changes_nothing(kind, wanted, error, words):
    model = tiny(kind, packed=False)
    before = model(IDS).logits
    with pytest.raises(error, match=words):
        inject(model, spec(**wanted))
    assert not any("lora" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(model(IDS).logits, before, rtol=1e-4, atol=1e-5)


def test_other_modules_of_pefts_are_refused(tmp_path):
    peft = get_peft_model(
        tiny("llama", packed=False),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    )
    peft.save_pretrained(tmp_path)
    with pytest.raises(FormatError, match=r"modules_to_save other than .*\(lm_head|model"):
        load_adapter(tiny("llama", packed=False), tmp_path)


def test_a_state_carries_them(one_thread):
    each = job("j", 1, spec_train_norms=True, spec_trainable_tokens=TOKENS)
    whole, first = Trainer(tiny("llama"), slots=1), Trainer(tiny("llama"), slots=1)
    for trainer in (whole, first):
        trainer.join(each)
    for _ in range(4):
        whole.step()
    for _ in range(2):
        first.step()
    second = Trainer(tiny("llama"), slots=1)
    second.join(each, first.state("j"))
    for _ in range(2):
        second.step()
    one, other = (private.parameters_of(t.model, "slot0") for t in (whole, second))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
