"""Neighbour-proof, as a property: whoever trains beside a job, whenever they join, leave or fail,
wherever it is killed and resumed, however the budget cuts its rows, its adapter's bytes are those
it gets alone.

Each seed draws a schedule: jobs of random variant, rank, targets, dropout, batch, length and rate,
some of which diverge or are cancelled. Failing seeds belong into SEEDS for good.
"""

import hashlib
import random

import pytest
import torch

from lora_core import AdapterSpec, State, Trainer
from lora_core.inject import targets
from lora_core.quantize import method_of, quantize_layers
from tests.lora_core.models import KINDS, examples, job, tiny

SCHEDULES = 25  # for each of eight models, and five on native kernels: 325 in all
FEW = 6  # for each of the quantised ones: the arithmetic is the same
SEEDS: list[int] = []
_TARGETS = ("all-linear", ("q_proj", "v_proj"), ("down_proj",), r".*(gate_proj|o_proj)")
_GPT2_TARGETS = ("all-linear", ("c_attn",), ("mlp.c_proj",), r".*(c_fc|attn.c_proj)")
_VARIANTS = (
    {},
    {},
    {"spec_dora": True},
    {"spec_dora": True, "spec_loraplus_lr_ratio": 4.0},
    {"spec_learnable_scaling": True},
    {"spec_qalora_group_size": 4},
    {"spec_qalora_group_size": 2, "spec_learnable_scaling": True},
    {"spec_loraplus_lr_ratio": 8.0},
)


def drawn_job(draw, name, kind):
    """A random small job; half of them with dropout."""
    seed = draw.randrange(2**20)
    more = random.Random(seed + 1)
    return job(
        name,
        seed,
        epochs=draw.randint(1, 2),
        batch_size=draw.randint(1, 5),
        accumulation=draw.choice((1, 1, 2)),
        learning_rate=draw.choice((1e-3, 5e-3)),
        schedule=draw.choice(("constant", "linear", "cosine")),
        warmup_ratio=draw.choice((0.0, 0.3)),
        weight_decay=draw.choice((0.0, 0.1)),
        max_grad_norm=draw.choice((0.1, 1.0)),
        examples=examples(seed, count=draw.randint(2, 7), longest=draw.choice((6, 24, 70))),
        shift_group=more.choice((None, None, 8, 20)),
        spec_r=draw.choice((1, 3, 8)),
        spec_rslora=draw.random() < 0.3,
        spec_train_norms=kind != "gpt2" and more.random() < 0.3,
        spec_dropout=draw.choice((0.0, 0.1, 0.0, 0.4)),
        spec_target_modules=draw.choice(_GPT2_TARGETS if kind == "gpt2" else _TARGETS),
        **random.Random(seed).choice(_VARIANTS),
    )


def digest(trainer, name, folder):
    trainer.export(name, folder)
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


class Schedule:
    """One seed played on one trainer; `digests` by job when all is over."""

    def __init__(self, trainer, kind, seed, folder):
        self.draw = random.Random(seed)
        self.trainer, self.kind, self.folder = trainer, kind, folder
        self.digests, self.jobs, self.killed = {}, {}, {}
        self.busy, self.steps = 0, 0

    def play(self):
        waiting = [
            drawn_job(self.draw, f"j{i}", self.kind) for i in range(self.draw.randint(9, 12))
        ]
        waiting.append(job("wild", 1, learning_rate=1e30, schedule="constant", epochs=9))
        self.draw.shuffle(waiting)
        going: dict[str, object] = {}
        while waiting or going or self.killed:
            while len(going) < self.trainer.slots and (self.killed or waiting):
                self._join(waiting, going)
                if self.draw.random() < 0.1:
                    break
            reports = self.trainer.step()
            self.busy, self.steps = self.busy + len(reports), self.steps + 1
            for report in reports:
                self._after(report, going)

    def _join(self, waiting, going):
        if self.killed and (not waiting or self.draw.random() < 0.5):
            name, (mine, state) = self.killed.popitem()
        else:
            mine, state = waiting.pop(), None
            name = mine.job_id
        self.trainer.join(mine, state)
        going[name] = mine

    def _after(self, report, going):
        name = report.job_id
        if report.error is not None:
            assert name == "wild"
            self._leave(name, going)
        elif report.finished:
            self.digests[name] = digest(self.trainer, name, self.folder)
            self.jobs[name] = going[name]
            self._leave(name, going)
        elif self.draw.random() < 0.04:
            self._leave(name, going)  # cancelled
        elif self.draw.random() < 0.08:
            path = self.folder / f"{name}-state"
            self.trainer.state(name).save(path)  # killed here, and resumed later
            self.killed[name] = (going[name], State.load(path))
            self._leave(name, going)

    def _leave(self, name, going):
        del going[name]
        self.trainer.leave(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_jobs_bytes_are_its_own(kind, dtype, tmp_path, one_thread):
    crowd = Trainer(tiny(kind, dtype), slots=8)
    alone = Trainer(tiny(kind, dtype), slots=1)
    assert not crowd.native
    compare(crowd, alone, kind, tmp_path)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma3"])
def test_on_native_kernels_too_whatever_the_threads(kind, kernels, tmp_path, one_thread):
    crowd, alone = (
        Trainer(tiny(kind, torch.bfloat16, whole=True), slots=slots, kernels=kernels)
        for slots in (8, 1)
    )
    assert crowd.native
    compare(crowd, alone, kind, tmp_path, threads=3)


def quantized(kind, dtype, method, **options):
    """A tiny model whose linear layers are in few bits."""
    model = tiny(kind, dtype, **options)
    quantize_layers(model, targets(model, AdapterSpec(r=1)), method_of(method))
    return model


@pytest.mark.parametrize(
    ("kind", "method", "dtype"),
    [
        ("llama", "nf4", torch.float32),
        ("qwen2", "nf4", torch.bfloat16),
        ("gpt2", "int8", torch.bfloat16),
        ("gemma3", "int4-g16", torch.float32),
    ],
    ids=str,
)
def test_on_a_base_in_few_bits_too(kind, method, dtype, tmp_path, one_thread):
    crowd = Trainer(quantized(kind, dtype, method), slots=8)
    alone = Trainer(quantized(kind, dtype, method), slots=1)
    compare(crowd, alone, kind, tmp_path, schedules=FEW)


def test_on_a_base_in_few_bits_with_native_kernels(kernels, tmp_path, one_thread):
    crowd, alone = (
        Trainer(quantized("qwen3", torch.bfloat16, "nf4", whole=True), slots=slots, kernels=kernels)
        for slots in (8, 1)
    )
    assert crowd.native
    compare(crowd, alone, "qwen3", tmp_path, threads=3, schedules=FEW)


def compare(crowd, alone, kind, folder, threads=1, schedules=SCHEDULES):
    """Play every schedule on `crowd`, and each job that came to its end once more on `alone`."""
    assert crowd.fused
    assert alone.fused
    finished = busy = steps = 0
    for seed in [*SEEDS, *range(schedules)]:
        budget = random.Random(seed).choice((2048, 256, 128, 16))
        crowd.budget.tokens, alone.budget.tokens = budget, 2048
        schedule = Schedule(crowd, kind, seed, folder)
        torch.set_num_threads(threads)
        schedule.play()
        torch.set_num_threads(1)
        busy, steps = busy + schedule.busy, steps + schedule.steps
        assert "wild" not in schedule.digests
        for name, mine in schedule.jobs.items():
            alone.join(mine)
            while not alone.step()[0].finished:
                pass
            assert digest(alone, name, folder) == schedule.digests[name], (seed, name)
            alone.leave(name)
            finished += 1
    assert finished > 4 * schedules
    assert busy / steps >= 4
