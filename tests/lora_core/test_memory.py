"""What steps take: the fit, the cuts and refusals it leads to, and memory that runs out all the
same."""

import math

import pytest
import torch

from lora_core import (
    AdapterSpec,
    Costs,
    Examples,
    MemoryLimitError,
    SpecError,
    Trainer,
    memory,
    targets,
)
from lora_core.inject import layers
from lora_core.segments import Sequence, cut
from tests.lora_core.models import examples, job, tiny


def test_the_fit_finds_the_factors():
    made = memory.fit([(r, s, 1000 + 7 * r + 3 * s) for r, s in ((256, 10), (512, 10), (512, 90))])
    assert (made.fixed, made.row, made.square) == pytest.approx((1000, 7, 3))
    segments = cut("s", [Sequence(torch.arange(40), torch.ones(40, dtype=torch.bool))] * 3)
    assert memory.amounts(segments) == (128, 3 * 64**2)
    expected = memory.SLACK + memory.MARGIN * (1000 + 7 * 128 + 3 * 3 * 64**2)
    assert made.of(segments) == pytest.approx(expected, abs=2)


def test_probes_of_one_length_still_give_a_fit():
    made = memory.fit([(256, 256 * 32, 9000), (1536, 1536 * 32, 52_000), (512, 512 * 32, 17_600)])
    for rows, size in ((256, 9000), (1536, 52_000)):
        fitted = made.fixed + made.row * rows + made.square * rows * 32
        assert fitted == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize("kind", ["gpt2", "gemma3"])
def test_a_model_with_few_positions_is_measured_too(kind, one_thread):
    """128 positions, fewer than the longest probe has tokens."""
    trainer = Trainer(tiny(kind), slots=1)
    assert trainer.fused
    assert trainer.calibrate() is not None


def test_a_measured_trainer_predicts_more_than_it_holds(one_thread):
    trainer = Trainer(tiny("llama"), slots=2)
    assert trainer.predicted_peak() is None
    costs = trainer.calibrate()
    trainer.join(job("a", 1))
    assert costs is not None
    assert costs.row > 0
    assert trainer.predicted_peak() > memory.held(torch.device("cpu")) * 0.5
    assert trainer.step()[0].error is None


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "variant",
    [{}, {"dora": True}, {"learnable_scaling": True, "qalora_group_size": 4}],
)
def test_a_variants_numbers_and_copies_are_counted(kind, variant, one_thread):
    bare, full = tiny(kind), Trainer(tiny(kind), slots=1)
    spec = AdapterSpec(r=3, **variant)
    before = memory.size_of(bare, spec, targets(bare, spec))
    full.join(job("j", 1, spec_r=3, **{f"spec_{name}": value for name, value in variant.items()}))
    weights = full._active["j"].weights
    apart = sum(gradient.numel() for gradient in weights._apart)
    assert weights.size == before
    assert before.numbers == weights.master.numel()
    assert before.copies == (2 * apart if spec.dora else apart)
    widths = sum(layer.out_features for layer in layers(full.model).values())
    assert before.keeps == (4 * widths if spec.dora else 0)
    assert memory.slot_bytes(before) == 22 * before.numbers + 8 * before.copies


def test_what_dora_keeps_of_its_rows_cuts_its_steps(one_thread):
    plain, turned = Trainer(tiny("llama"), slots=1), Trainer(tiny("llama"), slots=1)
    many = examples(4, count=30, longest=100)
    for trainer, dora in ((plain, False), (turned, True)):
        trainer.join(job("j", 1, examples=many, batch_size=15, spec_dora=dora))
        trainer.costs_are(Costs(fixed=0.0, row=1.0, square=0.0))
        trainer.budget.limit = trainer.budget.idle + trainer._slot_bytes() + memory.SLACK + 600_000
        trainer.passed = trainer.passes
        trainer.step()
    kept = turned.budget.keeps["slot0"]
    assert kept > 600_000 // 600
    assert turned.passes - turned.passed > plain.passes - plain.passed


def test_what_can_never_fit_is_refused_with_the_numbers(one_thread):
    trainer = Trainer(tiny("llama", positions=512), slots=3)
    trainer.join(job("before", 1))
    trainer.costs_are(Costs(fixed=0.0, row=2.0**20, square=0.0))
    trainer.budget.limit = memory.held(torch.device("cpu")) + 200 * 2**20
    trainer.join(job("fits", 2))
    with pytest.raises(MemoryLimitError, match=r"\(290 tokens\) needs [\d.]+ GiB of memory and"):
        trainer.join(job("long", 3, examples=examples(3, count=40, longest=300)))
    assert {r.job_id for r in trainer.step()} == {"before", "fits"}


def test_little_memory_cuts_a_step_and_changes_no_bit(one_thread):
    roomy, tight = Trainer(tiny("llama"), slots=1), Trainer(tiny("llama"), slots=1)
    tight.costs_are(Costs(fixed=0.0, row=2.0**20, square=0.0))
    tight.budget.limit = memory.held(torch.device("cpu")) + 300 * 2**20
    for trainer in (roomy, tight):
        many = examples(4, count=30, longest=100)
        trainer.join(job("j", 1, examples=many, batch_size=15))
        trainer.passed = trainer.passes
        trainer.losses = [trainer.step()[0].loss for _ in range(2)]
    assert roomy.losses == tight.losses
    assert tight.passes - tight.passed > roomy.passes - roomy.passed


class Full:
    """A forward on a device with room for so many rows."""

    def __init__(self, forward, room):
        self.forward, self.room, self.refused = forward, room, 0

    def __call__(self, segments, slots, **options):
        if sum(segment.rows for segment in segments) > self.room:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.forward(segments, slots, **options)

    def __getattr__(self, name):
        return getattr(self.forward, name)


def test_out_of_memory_halves_the_budget_and_repeats_the_step(one_thread):
    roomy, full = Trainer(tiny("llama"), slots=3), Trainer(tiny("llama"), slots=3)
    full._forward = Full(full._forward, room=300)
    for trainer in (roomy, full):
        for index in range(3):
            many = examples(index, count=24, longest=60)
            trainer.join(job(f"j{index}", index, examples=many, batch_size=8, spec_dropout=0.1))
    for _ in range(4):
        assert [r.loss for r in roomy.step()] == [r.loss for r in full.step()]
    assert full._forward.refused == full.budget.halvings > 0


def test_a_job_too_large_for_the_device_fails_alone(one_thread):
    alone, full = Trainer(tiny("llama"), slots=1), Trainer(tiny("llama"), slots=2)
    full._forward = Full(full._forward, room=128)
    small = job("small", 1)
    alone.join(small)
    full.join(job("large", 2, examples=examples(2, count=4, longest=120), batch_size=4, epochs=9))
    full.join(small)
    failed = []
    for _ in range(small.total_steps):
        reports = {r.job_id: r for r in full.step()}
        assert reports["small"].loss == alone.step()[0].loss
        failed += [r for r in reports.values() if r.error is not None]
    long = [r for r in failed if r.job_id == "large"]
    for report in long:
        assert isinstance(report.error, MemoryLimitError)
        assert f"step {report.step}" in str(report.error)
        assert math.isnan(report.loss)
    assert len(long) == 1


def test_the_one_too_many_is_who_is_refused_not_the_longest(one_thread):
    """Memory runs out for parts that hold b together with others: they are taken apart."""
    trainer = Trainer(tiny("llama"), slots=3)
    trainer.join(job("long", 1, examples=examples(1, count=4, longest=110), batch_size=4))
    trainer.join(job("b", 2))
    trainer.join(job("c", 3))
    forward = trainer._forward

    class Picky(Full):
        def __call__(self, segments, slots, **options):
            if len(segments) > 1 and any(segment.slot == "slot1" for segment in segments):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(segments, slots, **options)

    trainer._forward = Picky(forward, 0)
    assert [r.error for r in trainer.step()] == [None] * 3
    assert trainer.budget.halvings > 0
    trainer.leave("b")
    trainer._forward = forward
    before = trainer.passes
    trainer.step()
    assert trainer.passes == before + 1  # all rows at once again


def test_memory_that_runs_out_in_an_evaluation_fails_its_owner(one_thread):
    trainer = Trainer(tiny("llama"), slots=2)
    held = examples(9, count=1, longest=120)
    trainer.join(job("checked", 1, validation=held, eval_every=1, epochs=1))
    trainer.join(job("other", 2, epochs=1))
    rows = cut(None, [Sequence(*held[0])])[0].rows
    forward = trainer._forward

    class NoEvaluation(Full):
        def __call__(self, segments, slots, training=True):
            if not training:
                raise MemoryError
            return forward(segments, slots, training=training)

    trainer._forward = NoEvaluation(forward, 0)
    checked, other = trainer.step()
    assert isinstance(checked.error, MemoryLimitError)
    assert f"{rows} rows" in str(checked.error)
    assert other.error is None
    assert [r.job_id for r in trainer.step()] == ["other"]


def test_examples_the_base_cannot_read_are_refused_at_the_door(one_thread):
    trainer = Trainer(tiny("gpt2"), slots=2)
    trainer.join(job("good", 1))
    with pytest.raises(SpecError, match="140 tokens, and the base has positions for 128"):
        trainer.join(job("long", 2, examples=Examples.of([([5] * 140, [True] * 140)])))
    with pytest.raises(SpecError, match="the token 97, and the base knows 97"):
        trainer.join(job("odd", 2, examples=Examples.of([([5, 97], [True] * 2)])))
    long = Examples.of([([5] * 140, [True] * 140)])
    with pytest.raises(SpecError, match="140 tokens"):
        trainer.join(job("checked", 2, validation=long))
    assert [r.job_id for r in trainer.step()] == ["good"]


def test_other_errors_are_not_taken_for_it(one_thread):
    trainer = Trainer(tiny("llama"), slots=1)
    trainer.join(job("j", 1))

    def broken(*_, **__):
        raise RuntimeError("shapes do not match")

    trainer._forward = broken
    with pytest.raises(RuntimeError, match="shapes"):
        trainer.step()
    assert memory.out_of_memory(
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory")
    )
    assert memory.out_of_memory(MemoryError())
