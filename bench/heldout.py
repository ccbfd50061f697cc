"""How good the adapters are: the loss on texts neither way was trained on, after one epoch of the
same examples with this engine and with PEFT: `python -m bench.heldout`.

Both adapters are judged by transformers and PEFT, in one process, sequence by sequence; ours is
loaded from the files it was exported to. Rows go to build/bench/heldout.json; the figure is the
mean over the customers of our loss by PEFT's.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F

from bench import fused, measure, models, rows, workload
from bench.alone import padded
from bench.measure import OUT

#: whose texts nobody trains on
_STRANGER = 100
_CUSTOMERS = 4
Ids = list[list[int]]


def ours(folder: Path, out: Path) -> list[Path]:
    """Every customer's adapter, trained side by side."""
    order: measure.Row = {"base": "gemma", "folder": str(folder), "length": workload.LENGTH}
    order |= {"rank": workload.RANK, "batch": workload.BATCH, "jobs": _CUSTOMERS}
    trainer, _ = fused.started({**order, "calibrate": False})
    for job in fused.jobs(order):
        trainer.join(job)
    while trainer.step():
        pass
    found = [out / f"ours{number}" for number in range(_CUSTOMERS)]
    for number, path in enumerate(found):
        trainer.export(f"job{number}", path)
    return found


def theirs(model: Any, name: str, found: Ids) -> None:
    """One epoch of a customer's texts on PEFT, with the engine's optimizer, schedule and clip."""
    model.set_adapter(name)
    model.train()
    mine = [p for p in model.parameters() if p.requires_grad]
    parts = workload.batches(found, workload.BATCH)
    optimizer = torch.optim.AdamW(mine, lr=workload.RATE, weight_decay=0.0)
    for step, part in enumerate(parts):
        optimizer.param_groups[0]["lr"] = workload.RATE * (1 - step / len(parts))
        given = padded([{"input_ids": ids} for ids in part])
        model(**given).loss.backward()
        torch.nn.utils.clip_grad_norm_(mine, 1.0)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def loss(model: Any, held_out: Iterable[list[int]]) -> float:
    """Mean loss of a token of these texts, in float32."""
    model.eval()
    total, count = 0.0, 0
    for ids in held_out:
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
        total += float(F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))
        count += len(ids) - 1
    return total / count


def main() -> int:
    """Train, judge, and say."""
    folder = rows.base()
    kept = rows.Rows(OUT / "heldout.json", "python -m bench.heldout")
    held_out = workload.rows(folder, _STRANGER)
    spec = LoraConfig(
        r=workload.RANK,
        lora_alpha=workload.ALPHA,
        target_modules=list(workload.TARGETS),
        task_type="CAUSAL_LM",
    )
    with tempfile.TemporaryDirectory() as out:
        made = ours(folder, Path(out))
        model = get_peft_model(models.plain("gemma", folder, "cpu"), spec, adapter_name="theirs0")
        with model.disable_adapter():
            bare = loss(model, held_out)
        ratios = []
        for number, path in enumerate(made):
            if number:
                model.add_adapter(f"theirs{number}", spec)
            theirs(model, f"theirs{number}", workload.rows(folder, number))
            peer = loss(model, held_out)
            model.load_adapter(str(path), f"ours{number}")
            model.set_adapter(f"ours{number}")
            mine = loss(model, held_out)
            ratios.append(mine / peer)
            row = {"customer": number, "base": bare, "peft": peer, "ours": mine}
            kept.add({"what": "heldout", **row})
            sys.stdout.write(
                f"customer {number}: base {bare:.3f}, PEFT {peer:.4f}, ours {mine:.4f}, "
                f"ours by PEFT's {mine / peer:.4f}\n"
            )
    sys.stdout.write(f"in the mean {sum(ratios) / len(ratios):.4f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
