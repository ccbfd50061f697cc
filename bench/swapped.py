"""The other peer: one process, PEFT's `set_adapter`, job after job on a base that stays loaded.

Run by engine.py in a fresh process. A hand-written loop, no Trainer: the least that PEFT can cost.
`adapter_dtype` is float32 (PEFT's default over a bfloat16 base) or bfloat16, which is faster and
less exact. Every job's adapter is there; `trained` of them are trained, for the rate does not
depend on how many.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from bench import measure, models, workload
from bench.alone import padded


def train(order: measure.Row) -> measure.Row:
    """The order's jobs, one after another, as measure.rates."""
    kind, folder, device = order["base"], Path(order["folder"]), order.get("device", "cpu")
    model = models.plain(kind, folder, device, four_bits=order.get("four_bits", False))
    spec = LoraConfig(
        r=order["rank"],
        lora_alpha=workload.ALPHA,
        target_modules=list(workload.TARGETS),
        task_type="CAUSAL_LM",
    )
    wide = order.get("adapter_dtype", "float32") == "float32"
    model = get_peft_model(model, spec, adapter_name="job0", autocast_adapter_dtype=wide)
    for number in range(1, order["jobs"]):
        model.add_adapter(f"job{number}", spec, autocast_adapter_dtype=wide)
    model.train()
    points: list[tuple[int, float]] = []
    for number in range(min(order["jobs"], order.get("trained", order["jobs"]))):
        found = workload.rows(folder, number, order["length"], models.VOCABULARY[kind])
        model.set_adapter(f"job{number}")
        mine = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(mine, lr=workload.RATE, weight_decay=0.0)
        for part in workload.batches(found, order["batch"])[: order.get("steps")]:
            began = time.perf_counter()
            given = padded([{"input_ids": ids} for ids in part])
            loss = model(**{name: each.to(device) for name, each in given.items()}).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(mine, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()  # waits for the device
            points.append((sum(map(len, part)), time.perf_counter() - began))
    return {**measure.rates(points), **_device(device)}


def _device(device: str) -> measure.Row:
    return {"device_peak_bytes": torch.cuda.max_memory_allocated()} if device != "cpu" else {}


if __name__ == "__main__":
    measure.answer(train(measure.order()))
