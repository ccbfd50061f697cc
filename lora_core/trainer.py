"""The trainer: one frozen base, S slots. Jobs join and leave at step boundaries; `step()` trains
every active slot once.

Not here yet: the fused pass. Slots are stepped one after another, each with its own forward and
backward on the shared base, so a job's numbers depend on nothing but the job.

B rows (examples of one optimizer batch), T tokens, D width, N label rows.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from lora_core import rng
from lora_core.errors import DivergedError, LoraError, SpecError
from lora_core.examples import Examples, batch
from lora_core.inject import activate, eject, focus_of, inject, layers
from lora_core.job import StepReport, TrainingJob
from lora_core.loss import token_loss
from lora_core.peft_format import save_adapter
from lora_core.schedule import learning_rate
from lora_core.state import State


@dataclass
class _Active:
    job: TrainingJob
    slot: str
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.AdamW
    step: int = 0


class Trainer:
    """Owns `model` (a causal LM as transformers builds them) and its slots. Thread-safe: `join`,
    `leave` and `state` wait for the step boundary."""

    def __init__(self, model: nn.Module, slots: int, *, token_budget: int = 4096) -> None:
        if slots < 1:
            raise SpecError("a trainer needs at least one slot")
        self.model = model
        self.slots = slots
        self.token_budget = token_budget
        self._active: dict[str, _Active] = {}
        self._lock = RLock()
        model.requires_grad_(False)
        model.eval()

    def join(self, job: TrainingJob, state: State | None = None) -> int:
        """Take a job in at the next step boundary, resuming from `state` if given.

        Returns its slot. Raises: SpecError (no free slot, bad rank), TargetError.
        """
        with self._lock:
            if job.job_id in self._active:
                raise SpecError(f"{job.job_id} is in a slot already")
            taken = {active.slot for active in self._active.values()}
            free = next((i for i in range(self.slots) if f"slot{i}" not in taken), None)
            if free is None:
                raise SpecError(f"all {self.slots} slots are taken")
            slot = f"slot{free}"
            inject(self.model, job.spec, slot)
            active = _Active(job, slot, *self._parameters(slot, job))
            if state is not None:
                try:
                    _restore(active, state)
                except LoraError:
                    eject(self.model, slot)
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
        """One optimizer step of every job that is not finished; a job that diverges says so in
        its own report and changes nobody else."""
        with self._lock:
            return [
                self._step(active)
                for active in list(self._active.values())
                if active.step < active.job.total_steps
            ]

    def state(self, job_id: str) -> State:
        """A job's resumable state. Raises: SpecError for an unknown job."""
        with self._lock:
            active = self._get(job_id)
            tensors: dict[str, Tensor] = {}
            for name, parameter in active.parameters.items():
                held = active.optimizer.state.get(parameter, {})
                tensors[f"{name}.w"] = parameter.detach().cpu().clone()
                for short, key in (("m", "exp_avg"), ("v", "exp_avg_sq")):
                    moment = held.get(key)
                    tensors[f"{name}.{short}"] = (
                        torch.zeros_like(tensors[f"{name}.w"])
                        if moment is None
                        else moment.detach().cpu().clone()
                    )
            return State(active.step, tensors)

    def export(
        self, job_id: str, folder: Path | str, *, base_model_name: str | None = None
    ) -> None:
        """Write a job's adapter in the PEFT format. Raises: SpecError, OSError."""
        with self._lock:
            slot = self._get(job_id).slot
            save_adapter(self.model, folder, slot=slot, base_model_name=base_model_name)

    def evaluate(self, job_id: str | None, examples: Examples) -> tuple[float, float]:
        """Mean loss per label token and token accuracy of a job's adapter, or of the bare base
        when `job_id` is None."""
        with self._lock:
            slot = self._get(job_id).slot if job_id is not None else None
            return self.evaluate_slot(slot, examples)

    def evaluate_slot(self, slot: str | None, examples: Examples) -> tuple[float, float]:
        """The same for a slot by its name, for adapters loaded with `load_adapter`."""
        with self._lock, torch.no_grad():
            activate(self.model, slot)
            loss, correct, tokens = 0.0, 0, 0
            for rows in self._micro_batches([examples[i] for i in range(len(examples))]):
                part, right, count = self._forward(rows)
                loss, correct, tokens = loss + part.item(), correct + int(right), tokens + count
            return (loss / tokens, correct / tokens) if tokens else (math.nan, math.nan)

    def _get(self, job_id: str) -> _Active:
        if job_id not in self._active:
            raise SpecError(f"{job_id} is in no slot")
        return self._active[job_id]

    def _parameters(
        self, slot: str, job: TrainingJob
    ) -> tuple[dict[str, nn.Parameter], torch.optim.AdamW]:
        parameters: dict[str, nn.Parameter] = {}
        for name, layer in layers(self.model).items():
            if slot in layer.specs:
                parameters[f"{name}.A"] = layer.lora_A[slot]
                parameters[f"{name}.B"] = layer.lora_B[slot]
        optimizer = torch.optim.AdamW(
            list(parameters.values()),
            lr=job.learning_rate,
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=job.weight_decay,
            foreach=False,
        )
        return parameters, optimizer

    def _step(self, active: _Active) -> StepReport:
        began = time.perf_counter()
        job, step = active.job, active.step + 1
        indices = batch(len(job.examples), job.batch_size, job.seed, step)
        rows = [job.examples[i] for i in indices]
        labels = sum(int(mask[1:].sum()) for _, mask in rows)
        rate = learning_rate(
            job.learning_rate, job.schedule, step, job.total_steps, job.warmup_steps
        )
        activate(self.model, active.slot)
        active.optimizer.zero_grad(set_to_none=True)
        loss, correct, first = 0.0, 0, 0
        for part in self._micro_batches(rows):
            self._key_rows(job, step, first, len(part))
            first += len(part)
            total, right, _ = self._forward(part)
            if labels and total.requires_grad:
                (total / labels).backward()  # type: ignore[no-untyped-call]
            loss, correct = loss + total.item(), correct + int(right)
        norm = float(
            torch.nn.utils.clip_grad_norm_(
                list(active.parameters.values()), job.max_grad_norm, foreach=False
            )
        )
        error = None
        if not math.isfinite(loss):
            error = DivergedError(step, "loss")
        elif not math.isfinite(norm):
            error = DivergedError(step, "gradient")
        else:
            for group in active.optimizer.param_groups:
                group["lr"] = rate
            active.optimizer.step()
            active.step = step
        active.optimizer.zero_grad(set_to_none=True)
        finished = active.step >= job.total_steps
        checked: tuple[float | None, float | None] = (None, None)
        due = finished or (job.eval_every is not None and step % job.eval_every == 0)
        if job.validation is not None and error is None and due:
            checked = self.evaluate(job.job_id, job.validation)
        return StepReport(
            job_id=job.job_id,
            step=step,
            total_steps=job.total_steps,
            epoch=(step - 1) // max(1, job.total_steps // job.epochs),
            loss=loss / max(1, labels),
            token_accuracy=correct / max(1, labels),
            learning_rate=rate,
            grad_norm=norm,
            tokens=labels,
            input_tokens=sum(len(ids) for ids, _ in rows),
            seconds=time.perf_counter() - began,
            finished=finished,
            validation_loss=checked[0],
            validation_accuracy=checked[1],
            error=error,
        )

    def _key_rows(self, job: TrainingJob, step: int, first: int, count: int) -> None:
        focus = focus_of(self.model)
        if focus is not None and job.spec.dropout > 0:
            seeds = [rng.seed_of(("row", job.seed, step, first + i)) for i in range(count)]
            focus.row_keys = torch.tensor(seeds, dtype=torch.int64)

    def _micro_batches(
        self, rows: list[tuple[Tensor, Tensor]]
    ) -> list[list[tuple[Tensor, Tensor]]]:
        """Split rows, in order, so that padded tokens stay within the budget; a single longer
        row goes alone."""
        parts: list[list[tuple[Tensor, Tensor]]] = []
        longest = 0
        for row in rows:
            grown = max(longest, len(row[0]))
            if parts and grown * (len(parts[-1]) + 1) <= self.token_budget:
                parts[-1].append(row)
                longest = grown
            else:
                parts.append([row])
                longest = len(row[0])
        return parts

    def _forward(self, rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, int]:
        """Summed loss, tokens predicted right, and label tokens of one micro-batch."""
        device = next(self.model.parameters()).device
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        attention = torch.zeros_like(ids)
        wanted = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, (tokens, mask) in enumerate(rows):
            ids[i, : len(tokens)] = tokens
            attention[i, : len(tokens)] = 1
            wanted[i, : len(mask)] = mask
        ids, attention, wanted = ids.to(device), attention.to(device), wanted.to(device)
        hidden = self._hidden(ids, attention)
        # the state at t predicts the token at t + 1
        learn = wanted[:, 1:]
        labels = ids[:, 1:][learn]
        model: Any = self.model
        head = model.get_output_embeddings()
        total, correct = token_loss(
            hidden[:, :-1][learn],
            head.weight,
            labels,
            bias=getattr(head, "bias", None),
            softcap=getattr(model.config, "final_logit_softcapping", None),
        )
        return total, correct, int(learn.sum())

    def _hidden(self, ids: Tensor, attention: Tensor) -> Tensor:
        model: Any = self.model
        decoder = getattr(model, model.base_model_prefix)
        hidden: Tensor = decoder(
            input_ids=ids, attention_mask=attention, use_cache=False
        ).last_hidden_state
        return hidden


def _restore(active: _Active, state: State) -> None:
    for name, parameter in active.parameters.items():
        parts = [state.tensors.get(f"{name}.{short}") for short in "wmv"]
        if any(part is None or part.shape != parameter.shape for part in parts):
            raise SpecError(f"the state does not fit the job: {name}")
        weight, mean, square = (part.to(parameter.device) for part in parts if part is not None)
        with torch.no_grad():
            parameter.copy_(weight)
        active.optimizer.state[parameter] = {
            "step": torch.tensor(float(state.step)),
            "exp_avg": mean.clone(),
            "exp_avg_sq": square.clone(),
        }
    active.step = state.step
