"""One job in its slot: parameters, optimizer, and one optimizer step alone on the base.

Which jobs there are, and when each is stepped, is `trainer.py`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lora_core import rng
from lora_core.errors import DivergedError, SpecError
from lora_core.examples import batch
from lora_core.forward import Forward, micro_batches
from lora_core.inject import activate, focus_of, layers
from lora_core.job import StepReport, TrainingJob
from lora_core.optim import AdamW, clip_
from lora_core.schedule import learning_rate
from lora_core.state import State


@dataclass
class Active:
    """A job in slot `number`; `parameters` by `<layer>.<A|B>`, `step` optimizer steps done."""

    job: TrainingJob
    number: int
    slot: str
    parameters: dict[str, nn.Parameter]
    step: int = 0
    failed: bool = False
    counters: dict[str, int] = field(default_factory=lambda: {"tokens": 0, "input_tokens": 0})

    def __post_init__(self) -> None:
        self.optimizer = AdamW(list(self.parameters.values()), weight_decay=self.job.weight_decay)


def parameters_of(model: nn.Module, slot: str) -> dict[str, nn.Parameter]:
    """A [R, in] and B [out, R] of every layer of a slot, in the order of the model."""
    found: dict[str, nn.Parameter] = {}
    for name, layer in layers(model).items():
        if slot in layer.specs:
            found[f"{name}.A"] = layer.lora_A[slot]
            found[f"{name}.B"] = layer.lora_B[slot]
    return found


def snapshot(active: Active) -> State:
    """A copy, on the CPU, of everything a resume needs."""
    tensors: dict[str, Tensor] = {}
    for index, (name, parameter) in enumerate(active.parameters.items()):
        mean, square = active.optimizer.moments(index)
        for short, tensor in (("w", parameter), ("m", mean), ("v", square)):
            tensors[f"{name}.{short}"] = tensor.detach().cpu().clone()
    return State(active.step, tensors, dict(active.counters))


def restore(active: Active, state: State) -> None:
    """Put a state back. Raises: SpecError for one that does not fit; then nothing has changed."""
    wanted = {
        f"{name}.{short}": parameter.shape
        for name, parameter in active.parameters.items()
        for short in "wmv"
    }
    for name in sorted(wanted.keys() | state.tensors.keys()):
        found = state.tensors.get(name)
        if found is None or found.shape != wanted.get(name) or found.dtype != torch.float32:
            raise SpecError(f"the state does not fit the job: {name}")
    if not 0 <= state.step <= active.job.total_steps:
        raise SpecError(f"the state does not fit the job: step {state.step}")
    with torch.no_grad():
        for index, (name, parameter) in enumerate(active.parameters.items()):
            mean, square = active.optimizer.moments(index)
            parameter.copy_(state.tensors[f"{name}.w"])
            mean.copy_(state.tensors[f"{name}.m"])
            square.copy_(state.tensors[f"{name}.v"])
    active.optimizer.steps = active.step = state.step
    active.counters.update(state.counters)


def train_step(model: nn.Module, active: Active, forward: Forward, token_budget: int) -> StepReport:
    """One optimizer step of one job: loss summed over label tokens, divided by their number in
    the whole optimizer batch; float32 gradients added up micro-batch by micro-batch, in order.

    When loss or gradient is no finite number the adapter stays as it was, the job is `failed` and
    the report carries a DivergedError. A batch without label tokens has zero gradient.
    """
    job, step = active.job, active.step + 1
    rows = [job.examples[i] for i in batch(len(job.examples), job.batch_size, job.seed, step)]
    labels = sum(int(mask[1:].sum()) for _, mask in rows)
    inputs = sum(len(ids) for ids, _ in rows)
    rate = learning_rate(job.learning_rate, job.schedule, step, job.total_steps, job.warmup_steps)
    parameters = list(active.parameters.values())
    for parameter in parameters:
        parameter.grad = None
    activate(model, active.slot)
    loss, correct, first = 0.0, 0, 0
    for part in micro_batches(rows, token_budget):
        _key_rows(model, job, step, first, len(part))
        first += len(part)
        total, right, count = forward(part)
        if count and total.requires_grad:
            (total / labels).backward()  # type: ignore[no-untyped-call]
        loss, correct = loss + total.item(), correct + int(right)
    activate(model, active.slot)
    gradients = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for parameter in parameters
    ]
    norm = clip_(gradients, job.max_grad_norm)
    error = None
    if not math.isfinite(loss):
        error = DivergedError(step, "loss")
    elif not math.isfinite(norm):
        error = DivergedError(step, "gradient")
    else:
        active.optimizer.step(gradients, rate)
        active.step = step
        active.counters["tokens"] += labels
        active.counters["input_tokens"] += inputs
    active.failed = error is not None
    for parameter in parameters:
        parameter.grad = None
    return StepReport(
        job_id=job.job_id,
        step=step,
        total_steps=job.total_steps,
        epoch=(step - 1) * job.epochs // job.total_steps,
        loss=loss / max(1, labels),
        token_accuracy=correct / max(1, labels),
        learning_rate=rate,
        grad_norm=norm,
        tokens=labels,
        input_tokens=inputs,
        seconds=0.0,
        finished=active.step >= job.total_steps,
        error=error,
    )


def _key_rows(model: nn.Module, job: TrainingJob, step: int, first: int, count: int) -> None:
    """Give each row of a micro-batch its dropout key: (job seed, step, its index in the step)."""
    focus = focus_of(model)
    if focus is not None and job.spec.dropout > 0:
        seeds = [rng.seed_of(("row", job.seed, step, first + i)) for i in range(count)]
        focus.row_keys = torch.tensor(seeds, dtype=torch.int64)
