"""A variant of LoRA in this engine and in PEFT, in one process, turn by turn.

Run by variants.py in a fresh process. The order's `clock` is "wall", or "cpu": the processor's
seconds, which a busy machine stretches less. Both train the same base on the same rows; a round is
one step of PEFT's loop (swapped.py's, with the variant's own module or optimizer), one of this
engine with one job and one with several, so that whatever the machine does besides hits all alike.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora.variants import QALoraLinearVariant
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from bench import measure, models, workload
from bench.alone import padded
from lora_core import AdapterSpec, Examples, Trainer, TrainingJob, attention
from worker.trainer.load import kernels_in

GROUP = 32
RATIO = 16.0
#: what a variant is called, here and in PEFT's configuration
OURS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoRA+": {"loraplus_lr_ratio": RATIO},
    "learnable scaling": {"learnable_scaling": True},
    "QA-LoRA": {"qalora_group_size": GROUP},
    "DoRA": {"dora": True},
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_MIDDLE = dict(
    vocab_size=32000,
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=4,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
)


def _middle(packed: bool) -> Any:
    """A Llama of 100 million random numbers."""
    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**_MIDDLE)).to(torch.bfloat16).eval()
    if packed:
        AttentionInterface.register(attention.NAME, attention.packed)
        model.set_attn_implementation(attention.NAME)
    return model


def _rows(order: measure.Row, customer: int) -> list[list[int]]:
    if order["base"] != "middle":
        return workload.rows(Path(order["folder"]), customer)
    draw = random.Random(customer)
    spread = (workload.LENGTH // 2, workload.LENGTH * 3 // 2)
    return [
        [draw.randrange(3, _MIDDLE["vocab_size"]) for _ in range(draw.randint(*spread))]
        for _ in range(workload.EXAMPLES)
    ]


def _base(order: measure.Row, packed: bool) -> Any:
    if order["base"] == "middle":
        return _middle(packed)
    build = models.packed if packed else models.plain
    return build(order["base"], Path(order["folder"]), "cpu")


def _ours(order: measure.Row, jobs: int) -> Iterator[float]:
    """Seconds of each step of this engine with so many jobs."""
    trainer = Trainer(
        _base(order, packed=True),
        slots=jobs,
        kernels=kernels_in(measure.OUT / "kernels", "cpu"),
    )
    order["ran_native"] = trainer.native
    for number in range(jobs):
        spec = AdapterSpec(
            r=workload.RANK,
            alpha=float(workload.ALPHA),
            target_modules=workload.TARGETS,
            seed=number,
            **OURS[order["variant"]],
        )
        examples = Examples.of([(ids, [True] * len(ids)) for ids in _rows(order, number)])
        trainer.join(
            TrainingJob(
                f"job{number}",
                spec,
                examples,
                epochs=50,
                batch_size=workload.BATCH,
                learning_rate=workload.RATE,
                seed=number,
            )
        )
    clock = CLOCKS[order["clock"]]
    while True:
        began = clock()
        reports = trainer.step()
        took = clock() - began
        if len(reports) != jobs or any(report.error for report in reports):
            raise RuntimeError(f"{order['variant']}: a job failed")
        yield took


def _pefts(order: measure.Row) -> Iterator[float]:
    """Seconds of each step of PEFT's."""
    transformers.utils.logging.set_verbosity_error()
    variant = order["variant"]
    spec = LoraConfig(
        r=workload.RANK,
        lora_alpha=workload.ALPHA,
        target_modules=list(workload.TARGETS),
        task_type="CAUSAL_LM",
        use_dora=variant == "DoRA",
        use_qalora=variant == "QA-LoRA",
        qalora_group_size=GROUP,
    )
    model = get_peft_model(_base(order, packed=False), spec)
    scale = _changed(model, variant, spec)
    model.train()
    if variant == "LoRA+":
        optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=workload.RATE, loraplus_lr_ratio=RATIO
        )
    else:
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=workload.RATE, weight_decay=0.0)
    mine = [p for group in optimizer.param_groups for p in group["params"]]
    clock = CLOCKS[order["clock"]]
    for part in cycle(workload.batches(_rows(order, 0), workload.BATCH)):
        began = clock()
        scale()
        loss = model(**padded([{"input_ids": ids} for ids in part])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(mine, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        yield clock() - began


def _changed(model: Any, variant: str, spec: LoraConfig) -> Callable[[], None]:
    """What PEFT has only for GPTQ layers (QA-LoRA), or not at all (a learnable scaling: a parameter
    in the place of its constant); returns what is to be done before each step."""
    carriers = [m for m in model.modules() if getattr(m, "lora_variant", None) is not None]
    if variant == "QA-LoRA":
        for carrier in carriers:
            QALoraLinearVariant.init(carrier, "default", spec)
            carrier.lora_variant["default"] = QALoraLinearVariant()
    if variant != "learnable scaling":
        return lambda: None
    for carrier in carriers:
        carrier.gain = torch.nn.Parameter(torch.ones(1))

    def scale() -> None:
        for carrier in carriers:
            carrier.scaling["default"] = carrier.gain * (spec.lora_alpha / spec.r)

    return scale


def compared(order: measure.Row) -> measure.Row:
    """Medians of the seconds a step takes, without the first two rounds."""
    torch.set_num_threads(order["threads"] or torch.get_num_threads())
    takers = {
        "peft": _pefts(order),
        "one": _ours(order, 1),
        "many": _ours(order, order["jobs"]),
    }
    found: dict[str, list[float]] = {name: [] for name in takers}
    for _ in range(order["rounds"] + 2):
        for name, taker in takers.items():
            found[name].append(next(taker))
    median = {name: statistics.median(times[2:]) for name, times in found.items()}
    return {
        "variant": order["variant"],
        "ran_native": order["ran_native"],
        "threads": torch.get_num_threads(),
        "peft_seconds": median["peft"],
        "one_seconds": median["one"],
        "many_seconds": median["many"],
        "one_ratio": median["one"] / median["peft"],
        "many_ratio": median["many"] / order["jobs"] / median["peft"],
    }


if __name__ == "__main__":
    measure.answer(compared(measure.order()))
