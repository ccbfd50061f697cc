"""The trainer against PEFT with torch's AdamW, and against itself alone, beside others, resumed."""

import hashlib
import threading

import peft
import pytest
import torch
from torch.nn import functional as F

from lora_core import (
    DivergedError,
    Examples,
    LoraError,
    SpecError,
    State,
    Trainer,
    load_adapter,
    merge,
    permutation,
    unmerge,
    weights_digest,
)
from lora_core.examples import batch
from lora_core.inject import layers
from tests.lora_core.models import KINDS, examples, job, tiny


def finish(trainer, name, folder):
    """Step until `name` is done; its losses and the digest of its weights file."""
    losses = []
    while True:
        mine = [r for r in trainer.step() if r.job_id == name]
        assert mine[0].error is None
        losses.append(mine[0].loss)
        if mine[0].finished:
            trainer.export(name, folder)
            trainer.leave(name)
            data = (folder / "adapter_model.safetensors").read_bytes()
            return losses, hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_fifty_steps_equal_peft_and_adamw(kind, rslora, one_thread):
    mine = job("j", 3, epochs=17, spec_rslora=rslora, max_grad_norm=0.5, weight_decay=0.01)
    trainer = Trainer(tiny(kind), slots=1)
    trainer.join(mine)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", use_rslora=rslora, bias="none"
    )
    theirs = peft.get_peft_model(tiny(kind), config)
    ours = layers(trainer.model)
    for name, module in theirs.base_model.model.named_modules():
        if name in ours:
            module.lora_A["default"].weight.data.copy_(ours[name].lora_A["slot0"])
            module.lora_B["default"].weight.data.copy_(ours[name].lora_B["slot0"])
    learning = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.0, weight_decay=0.01)
    for step in range(1, 51):
        report = trainer.step()[0]
        optimizer.zero_grad()
        total, count = 0.0, 0
        for index in batch(len(mine.examples), 4, mine.seed, step):
            ids, mask = mine.examples[index]
            out = theirs(input_ids=ids[None].long()).logits[0, :-1][mask[1:]]
            total = total + F.cross_entropy(out, ids[1:][mask[1:]].long(), reduction="sum")
            count += int(mask[1:].sum())
        loss = total / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 0.5)
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - (step - 1) / mine.total_steps)
        optimizer.step()
        assert report.tokens == count
        assert report.loss == pytest.approx(loss.item(), rel=1e-5), step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neighbours_and_a_resume_change_no_bit(dtype, tmp_path):
    mine = job("mine", 1, spec_dropout=0.1)
    alone = Trainer(tiny("llama", dtype), slots=1)
    alone.join(mine)
    expected = finish(alone, "mine", tmp_path / "alone")

    crowd = Trainer(tiny("llama", dtype), slots=4)
    crowd.join(job("early", 2, spec_r=8))
    crowd.step()
    crowd.join(mine)
    crowd.join(job("leaver", 3, spec_target_modules=("q_proj",)))
    first = [r.loss for r in crowd.step() if r.job_id == "mine"]
    crowd.leave("leaver")
    crowd.join(job("late", 4, spec_dropout=0.3))
    rest, digest = finish(crowd, "mine", tmp_path / "crowd")
    assert (first + rest, digest) == expected

    stop = 1 + permutation(("stop", str(dtype)), mine.total_steps - 1)[0]
    halfway = Trainer(tiny("llama", dtype), slots=2)
    halfway.join(mine)
    for _ in range(stop):
        halfway.step()
    halfway.state("mine").save(tmp_path / "state")
    again = Trainer(tiny("llama", dtype), slots=3)
    again.join(job("other", 9))
    again.join(mine, State.load(tmp_path / "state"))
    losses, digest = finish(again, "mine", tmp_path / "again")
    assert (expected[0][stop:], expected[1]) == (losses, digest)


def test_the_base_is_untouched_and_the_loss_falls(tmp_path, one_thread):
    model = tiny("gemma3")
    before = weights_digest(model)
    trainer = Trainer(model, slots=1)
    trainer.join(job("j", 1, epochs=8, learning_rate=1e-2))
    losses, _ = finish(trainer, "j", tmp_path)
    assert losses[-1] < losses[0] * 0.95
    assert weights_digest(model) == before
    assert not any(layer.specs for layer in layers(model).values())


def test_a_job_that_diverges_fails_alone(tmp_path, one_thread):
    mine = job("mine", 1)
    alone = Trainer(tiny("llama"), slots=1)
    alone.join(mine)
    expected = finish(alone, "mine", tmp_path / "alone")
    trainer = Trainer(tiny("llama"), slots=2)
    trainer.join(job("wild", 2, learning_rate=1e30, schedule="constant"))
    trainer.join(mine)
    losses = []
    while True:
        wild, own = trainer.step()
        losses.append(own.loss)
        if wild.error is not None:
            break
    assert isinstance(wild.error, DivergedError)
    assert wild.error.step == wild.step == len(losses) > 1
    assert not wild.finished
    assert trainer.state("wild").step == wild.step - 1
    assert all(t.isfinite().all() for t in trainer.state("wild").tensors.values())
    losses.append(trainer.step()[0].loss)
    trainer.leave("wild")
    rest, digest = finish(trainer, "mine", tmp_path / "beside")
    assert (losses + rest, digest) == expected


def test_the_token_budget_changes_no_bit(one_thread):
    long = examples(5, count=24, longest=100)
    whole, split = (Trainer(tiny("llama"), slots=1, token_budget=b) for b in (4096, 24))
    for trainer in (whole, split):
        trainer.join(job("j", 5, examples=long, batch_size=8, spec_dropout=0.2))
    for _ in range(6):
        assert whole.step()[0].loss == split.step()[0].loss
    assert split.passes > whole.passes
    one, other = (trainer.state("j").tensors for trainer in (whole, split))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_one_forward_for_all_slots(one_thread):
    trainer = Trainer(tiny("llama"), slots=8)
    for index in range(8):
        trainer.join(job(f"j{index}", index, spec_r=2 + index))
    assert trainer.fused
    for _ in range(3):
        before = trainer.passes
        assert len(trainer.step()) == 8
        assert trainer.passes == before + 1


def test_an_adapter_blown_up_by_its_last_step_is_no_success(one_thread):
    """Its loss was taken before the update: only the evaluation can tell."""
    trainer = Trainer(tiny("llama"), slots=2)
    wild = dict(learning_rate=1e30, schedule="constant", epochs=1, batch_size=4)
    trainer.join(job("j", 1, examples=examples(1, count=4), validation=examples(2, 2), **wild))
    trainer.join(job("other", 2))
    report, other = trainer.step()
    assert isinstance(report.error, DivergedError)
    assert "validation loss" in str(report.error)
    assert not report.finished
    assert report.validation_loss is None
    assert other.error is None
    assert [r.job_id for r in trainer.step()] == ["other"]


def test_nothing_to_learn_in_the_validation_is_no_divergence(one_thread):
    silent = Examples.of([([1, 5, 6], [False] * 3)])
    trainer = Trainer(tiny("llama"), slots=1)
    trainer.join(job("j", 1, validation=silent, eval_every=1))
    report = trainer.step()[0]
    assert (report.error, report.validation_loss) == (None, None)


def test_a_join_leaves_an_adapter_that_is_no_jobs_alone(one_thread, tmp_path):
    trainer = Trainer(tiny("llama"), slots=1)
    trainer.join(job("j", 1))
    trainer.export("j", tmp_path)
    trainer.leave("j")
    load_adapter(trainer.model, tmp_path, slot="slot0")
    with pytest.raises(SpecError, match="'slot0' holds an adapter"):
        trainer.join(job("other", 2))
    assert any("slot0" in layer.specs for layer in layers(trainer.model).values())


def test_a_merged_base_is_not_trained_on(one_thread, tmp_path):
    trainer = Trainer(tiny("llama"), slots=2)
    trainer.join(job("j", 1))
    trainer.step()
    trainer.export("j", tmp_path)
    load_adapter(trainer.model, tmp_path, slot="mine")
    merge(trainer.model, "mine")
    with pytest.raises(LoraError, match="'mine' is merged"):
        trainer.step()
    unmerge(trainer.model)
    assert trainer.step()[0].error is None


def test_apart_the_token_budget_changes_no_bit_either(one_thread):
    many = examples(5, count=12, longest=110)
    whole, split = (
        Trainer(tiny("llama", packed=False), slots=2, token_budget=b) for b in (2048, 16)
    )
    for trainer in (whole, split):
        trainer.join(job("j", 5, examples=many, batch_size=12, epochs=3))
    split.join(job("beside", 6))
    for _ in range(3):
        assert whole.step()[0].loss == split.step()[0].loss
    one, other = (trainer.state("j").tensors for trainer in (whole, split))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_model_that_cannot_pack_trains_apart(tmp_path, one_thread):
    """With attention of its own a model sees every sequence by itself, and the losses agree."""
    apart, packed = Trainer(tiny("llama", packed=False), slots=2), Trainer(tiny("llama"), slots=2)
    assert (apart.fused, packed.fused) == (False, True)
    for trainer in (apart, packed):
        trainer.join(job("a", 1, spec_dropout=0.1))
        trainer.join(job("b", 2, spec_target_modules=("q_proj", "down_proj")))
    for _ in range(6):
        for one, other in zip(apart.step(), packed.step(), strict=True):
            assert one.loss == pytest.approx(other.loss, rel=1e-5)


def test_evaluation_of_the_bare_base_and_at_the_end(one_thread):
    trainer = Trainer(tiny("llama"), slots=1)
    held = examples(77, count=5)
    bare = trainer.evaluate(None, held)
    trainer.join(job("j", 1, epochs=1, validation=held, eval_every=2))
    reports = [trainer.step()[0] for _ in range(3)]
    assert [r.validation_loss is not None for r in reports] == [False, True, True]
    assert trainer.evaluate(None, held) == bare
    assert reports[-1].validation_loss != bare[0]
    own = (reports[-1].validation_loss, reports[-1].validation_accuracy)
    assert trainer.evaluate("j") == trainer.evaluate_slot("slot0", held) == own
    assert trainer.evaluate_slot(None, held) == bare
    with pytest.raises(SpecError, match="no examples"):
        trainer.evaluate(None)
    with pytest.raises(SpecError, match="no layer has a slot 'slot3'"):
        trainer.evaluate_slot("slot3", held)


def test_slots_run_out_and_unknown_jobs_are_named(one_thread):
    trainer = Trainer(tiny("llama"), slots=1)
    trainer.join(job("a", 1))
    with pytest.raises(SpecError, match="all 1 slots"):
        trainer.join(job("b", 2))
    with pytest.raises(SpecError, match="no slot"):
        trainer.leave("b")
    with pytest.raises(SpecError, match="in a slot already"):
        trainer.join(job("a", 1))
    assert [trainer.step()[0].epoch for _ in range(6)] == [0, 0, 0, 1, 1, 1]
    assert trainer.step() == []


def test_an_adapter_loaded_by_name_evaluates_as_it_did_in_its_job(tmp_path, one_thread):
    trainer = Trainer(tiny("llama"), slots=1)
    trainer.join(job("j", 1, validation=examples(77, count=5)))
    finish(trainer, "j", tmp_path)
    trainer.join(job("j", 1, validation=examples(77, count=5)))
    while not (report := trainer.step()[0]).finished:
        pass
    model = tiny("llama")
    load_adapter(model, tmp_path, slot="mine")
    again = Trainer(model, slots=1)
    assert again.evaluate_slot("mine", examples(77, count=5))[0] == report.validation_loss
    assert again.evaluate_slot(None, examples(77, count=5))[0] != report.validation_loss


def test_a_batch_without_labels_is_a_step_without_gradient(one_thread):
    silent = Examples.of([([1, 5, 6], [False] * 3), ([1, 7], [True, False])])
    trainer = Trainer(tiny("llama"), slots=1)
    trainer.join(job("j", 1, examples=silent, epochs=1))
    before = trainer.state("j").tensors
    report = trainer.step()[0]
    assert (report.loss, report.tokens, report.input_tokens) == (0.0, 0, 5)
    assert (report.grad_norm, report.error, report.finished) == (0.0, None, True)
    assert all(torch.equal(before[n], t) for n, t in trainer.state("j").tensors.items())


def test_join_and_leave_wait_for_the_end_of_a_step():
    trainer = Trainer(tiny("llama"), slots=2)
    trainer.join(job("a", 1, epochs=30))
    inside, done, seen = threading.Event(), threading.Event(), []
    take = trainer._take

    def slow(*given):
        inside.set()
        done.wait(0.2)
        seen.append(sorted(layers(trainer.model)["model.layers.0.mlp.up_proj"].specs))
        return take(*given)

    trainer._take = slow
    other = threading.Thread(target=lambda: (inside.wait(), trainer.join(job("b", 2)), done.set()))
    other.start()
    trainer.step()
    other.join()
    assert seen == [["slot0"]]
    assert {r.job_id for r in trainer.step()} == {"a", "b"}


def test_patience_ends_a_job_with_its_best_adapter_resumed_or_not(tmp_path, one_thread):
    held = examples(77, count=5)
    mine = job(
        "j", 1, epochs=30, learning_rate=3e-2, schedule="constant",
        validation=held, eval_every=2, patience=3, min_delta=1e-3,
    )  # fmt: skip

    def end(trainer):
        reports = []
        while not reports or not reports[-1].finished:
            reports.append(trainer.step()[0])
        trainer.export("j", tmp_path)
        return reports, (tmp_path / "adapter_model.safetensors").read_bytes()

    trainer = Trainer(tiny("llama"), slots=1)
    trainer.join(mine)
    reports, data = end(trainer)
    seen = {r.step: r.validation_loss for r in reports if r.validation_loss is not None}
    last = reports[-1]
    assert last.stopped_early
    assert last.step < mine.total_steps
    assert last.step >= last.best_step + 2
    assert trainer.evaluate("j")[0] == seen[last.best_step] == min(seen.values())
    assert seen[last.best_step] < seen[last.step]
    assert trainer.step() == []

    again = Trainer(tiny("llama"), slots=1)
    again.join(mine)
    for _ in range(last.best_step + 3):
        again.step()
    again.state("j").save(tmp_path / "state")
    third = Trainer(tiny("llama"), slots=1)
    third.join(mine, State.load(tmp_path / "state"))
    rest, same = end(third)
    assert same == data
    assert [r.loss for r in rest] == [r.loss for r in reports[last.best_step + 3 :]]


def test_a_long_evaluation_keeps_nobody_waiting(one_thread):
    held = examples(9, count=40)
    mine = {"validation": held, "eval_every": 2, "epochs": 3}
    alone = Trainer(tiny("llama"), slots=1)
    alone.join(job("a", 1, **mine))
    wanted = [alone.step()[0] for _ in range(9)]
    assert wanted[-1].finished
    trainer = Trainer(tiny("llama"), slots=2, token_budget=64)
    trainer.join(job("a", 1, **mine))
    trainer.join(job("b", 2, epochs=12))
    found, between = [], 0
    while len(found) < len(wanted):
        reports = {report.job_id: report for report in trainer.step()}
        assert "b" in reports or trainer._active["b"].step == 36
        found += [reports["a"]] if "a" in reports else []
        between += "a" not in reports
        assert trainer.evaluating == ([] if "a" in reports else ["a"])
        if between == 1:
            trainer.state("a")  # settles what is under way; nothing is lost or told twice
    assert between > 3
    told = [(r.step, r.loss, r.validation_loss, r.best_step, r.finished) for r in found]
    assert told == [(r.step, r.loss, r.validation_loss, r.best_step, r.finished) for r in wanted]
