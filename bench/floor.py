"""The floor: the base's matrix products and nothing else, for the real tokens of a step.

Run by engine.py in a fresh process. Forward and dX of every group of linear layers over all rows
at once (no padding, no tiles), and the head's two products over the label rows; no adapters, no
attention, no norms, no optimizer. No exact or inexact training of these rows on this base by
torch's products can be faster. Each `jobs` of the order gives a rate.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bench import measure, models, workload
from lora_core.forward import Forward

#: vocabulary entries of the head's product at once: the faster one counts
_CHUNKS = (8192, 65536)


def products(weights: list[Tensor], rows: int) -> Callable[[], None]:
    """Forward and dX of weights [O, D] for that many rows, into buffers that are there."""
    held = {
        width: torch.randn(rows, width, dtype=weights[0].dtype, device=weights[0].device)
        for weight in weights
        for width in weight.shape
    }
    outs = {width: torch.empty_like(each) for width, each in held.items()}

    def work() -> None:
        for weight in weights:
            wide, narrow = weight.shape
            torch.mm(held[narrow], weight.t(), out=outs[wide])
            torch.mm(held[wide], weight, out=outs[narrow])

    return work


def head(weight: Tensor, rows: int, chunk: int) -> Callable[[], None]:
    """Logits and dX of the head [V, D], chunk by chunk of its vocabulary."""
    hidden = torch.randn(rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
    parts = torch.split(weight, chunk)
    logits = torch.empty(rows, chunk, dtype=weight.dtype, device=weight.device)
    last = torch.empty(rows, len(parts[-1]), dtype=weight.dtype, device=weight.device)
    out = torch.empty_like(hidden)

    def work() -> None:
        for part in parts:
            made = logits if len(part) == chunk else last
            torch.mm(hidden, part.t(), out=made)
            torch.mm(made, part, out=out)

    return work


def timed(work: Callable[[], None], times: int, device: str) -> float:
    """Median seconds, after two for warming up."""
    found = []
    for _ in range(times + 2):
        began = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found[2:])


@torch.no_grad()
def floor(order: measure.Row) -> measure.Row:
    """`floors`: by number of jobs (as text), the seconds of a step's products and tokens/s."""
    kind, folder, device = order["base"], Path(order["folder"]), order.get("device", "cpu")
    made = Forward(models.packed(kind, folder, device))
    groups = {id(c.group): c.group for c in made.carriers if c.group is not None}
    weights = [group.weight for group in groups.values()]
    found = {}
    for jobs in order["jobs"]:
        total = sum(
            len(ids) for job in range(jobs) for ids in workload.rows(folder, job, order["length"])
        )
        rows = round(total * order["batch"] / workload.EXAMPLES)
        labels = rows - jobs * order["batch"]
        body = timed(products(weights, rows), order["times"], device)
        top = min(timed(head(made.head.weight, labels, c), order["times"], device) for c in _CHUNKS)
        found[str(jobs)] = {
            "rows": rows,
            "base_seconds": body,
            "head_seconds": top,
            "tokens_per_second": rows / (body + top),
        }
    return {"floors": found}


if __name__ == "__main__":
    measure.answer(floor(measure.order()))
