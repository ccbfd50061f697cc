"""The trainer: one frozen base, S slots. Jobs join and leave at step boundaries; `step()` trains
every active slot once.

Not here yet: the fused pass. Slots are stepped one after another, each with its own forward and
backward on the shared base, so a job's numbers depend on nothing but the job. The update of one
slot is in `active.py`, the forward in `forward.py`.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from threading import RLock

import torch
from torch import nn

from lora_core.active import Active, parameters_of, restore, snapshot, train_step
from lora_core.errors import LoraError, SpecError
from lora_core.examples import Examples
from lora_core.forward import Forward, micro_batches
from lora_core.inject import activate, eject, inject
from lora_core.job import StepReport, TrainingJob
from lora_core.peft_format import save_adapter
from lora_core.state import State


class Trainer:
    """Owns `model` (a causal LM as transformers builds them) and its slots.

    `head` is the output layer (weight [V, D], optional bias [V]) of a model whose
    `get_output_embeddings` does not tell; `token_budget` bounds the padded tokens of one forward.
    Thread-safe: every other method waits for the end of a running `step`, so what it does takes
    effect at the next step boundary.
    """

    def __init__(
        self,
        model: nn.Module,
        slots: int,
        *,
        head: nn.Module | None = None,
        token_budget: int = 4096,
    ) -> None:
        if slots < 1:
            raise SpecError("a trainer needs at least one slot")
        if token_budget < 1:
            raise SpecError("token_budget is less than 1")
        self.model = model
        self.slots = slots
        self.token_budget = token_budget
        self._active: dict[str, Active] = {}
        self._lock = RLock()
        model.requires_grad_(False)
        model.eval()
        self._forward = Forward(model, head)

    def join(self, job: TrainingJob, state: State | None = None) -> int:
        """Take a job in at the next step boundary, resuming from `state` if given.

        Returns its slot. Raises: SpecError (no free slot, bad rank, a state that does not fit),
        TargetError; then nothing has changed.
        """
        with self._lock:
            if job.job_id in self._active:
                raise SpecError(f"{job.job_id} is in a slot already")
            taken = {active.number for active in self._active.values()}
            free = next((i for i in range(self.slots) if i not in taken), None)
            if free is None:
                raise SpecError(f"all {self.slots} slots are taken")
            inject(self.model, job.spec, _name(free))
            active = Active(job, free, _name(free), parameters_of(self.model, _name(free)))
            if state is not None:
                try:
                    restore(active, state)
                except LoraError:
                    eject(self.model, _name(free))
                    raise
            self._active[job.job_id] = active
            return free

    def leave(self, job_id: str) -> None:
        """Free a job's slot at the next step boundary. Raises: SpecError for an unknown job."""
        with self._lock:
            active = self._get(job_id)
            del self._active[job_id]
            eject(self.model, active.slot)

    def step(self) -> list[StepReport]:
        """One optimizer step of every job that has steps left, in the order of joining.

        A job whose loss or gradient is no finite number says so in the `error` of its report,
        changes nobody else and is not stepped again. No reports: nothing is left to do.
        """
        with self._lock:
            return [
                self._step(active)
                for active in list(self._active.values())
                if active.step < active.job.total_steps and not active.failed
            ]

    def state(self, job_id: str) -> State:
        """A copy of a job's resumable state. Raises: SpecError for an unknown job."""
        with self._lock:
            return snapshot(self._get(job_id))

    def export(
        self, job_id: str, folder: Path | str, *, base_model_name: str | None = None
    ) -> None:
        """Write a job's adapter in the PEFT format. Raises: SpecError, OSError."""
        with self._lock:
            slot = self._get(job_id).slot
            save_adapter(self.model, folder, slot=slot, base_model_name=base_model_name)

    def evaluate(self, job_id: str | None, examples: Examples | None = None) -> tuple[float, float]:
        """Mean loss per label token and token accuracy of a job's adapter (None: of the bare
        base) on `examples`, by default the job's validation examples.

        NaN where there is no label token. Raises: SpecError for an unknown job or no examples.
        """
        with self._lock:
            active = self._get(job_id) if job_id is not None else None
            if examples is None:
                examples = active.job.validation if active is not None else None
            if examples is None:
                raise SpecError("there are no examples to evaluate on")
            return self.evaluate_examples(active.number if active else None, examples)

    def evaluate_examples(self, slot: int | None, examples: Examples) -> tuple[float, float]:
        """`evaluate` by slot number; None is the bare base. Raises: SpecError for an empty slot."""
        return self.evaluate_slot(None if slot is None else _name(slot), examples)

    def evaluate_slot(self, slot: str | None, examples: Examples) -> tuple[float, float]:
        """`evaluate` by the slot's name, for adapters that `load_adapter` put into the model."""
        with self._lock, torch.no_grad():
            activate(self.model, slot)
            loss, correct, tokens = 0.0, 0, 0
            rows = [examples[i] for i in range(len(examples))]
            for part in micro_batches(rows, self.token_budget):
                total, right, count = self._forward(part)
                loss, correct, tokens = loss + total.item(), correct + int(right), tokens + count
            return (loss / tokens, correct / tokens) if tokens else (math.nan, math.nan)

    def _get(self, job_id: str) -> Active:
        if job_id not in self._active:
            raise SpecError(f"{job_id} is in no slot")
        return self._active[job_id]

    def _step(self, active: Active) -> StepReport:
        began = time.perf_counter()
        report = train_step(self.model, active, self._forward, self.token_budget)
        every = active.job.eval_every
        due = report.finished or (every is not None and report.step % every == 0)
        if active.job.validation is not None and report.error is None and due:
            loss, accuracy = self.evaluate_examples(active.number, active.job.validation)
            report = replace(report, validation_loss=loss, validation_accuracy=accuracy)
        return replace(report, seconds=time.perf_counter() - began)


def _name(slot: int) -> str:
    return f"slot{slot}"
