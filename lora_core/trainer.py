"""The trainer: one frozen base, S slots. Jobs join and leave at step boundaries; `step()` trains
every active slot once, all of them in the same forward and backward of the base.

A job's numbers depend on nothing but the job: see `segments.py` for why. The update of one slot is
in `active.py`, the forward in `forward.py`.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from threading import RLock

import torch
from torch import nn

from lora_core import memory
from lora_core.active import (
    Active,
    Tally,
    accuracy_due,
    evaluation_due,
    judge,
    refuse,
    restore,
    snapshot,
    update,
)
from lora_core.array_forward import ArrayForward
from lora_core.arrays import ArrayTask
from lora_core.budget import AnyForward, Budget
from lora_core.errors import DivergedError, LoraError, MemoryLimitError, SpecError
from lora_core.evaluation import Evaluation
from lora_core.forward import Forward
from lora_core.inject import eject, focus_of, inject, layers
from lora_core.job import AnyExamples, StepReport, TrainingJob
from lora_core.native import Kernels
from lora_core.peft_format import save_adapter
from lora_core.segments import Segment
from lora_core.state import State
from lora_core.weights import SlotWeights


class Trainer:
    """Owns `model` and its slots: a causal LM as transformers builds them, or with `arrays` any
    network from an array to an array, whose jobs have `ArrayExamples`.

    `head` is the output layer (weight [V, D], optional bias [V]) of a model whose
    `get_output_embeddings` does not tell. `kernels` are what `native.load` found for this machine:
    a model they suit takes its steps on them, several times as fast. `token_budget` bounds the rows
    of one forward and `memory_limit` (bytes; by default nine tenths of what the device has) the
    memory of all, once `calibrate` has measured what a step takes; neither changes a job's result.
    Thread-safe: every
    other method waits for the end of a running `step`, so what it does takes effect at the next
    step boundary.
    """

    def __init__(
        self,
        model: nn.Module,
        slots: int,
        *,
        head: nn.Module | None = None,
        kernels: Kernels | None = None,
        token_budget: int = 2048,
        memory_limit: int | None = None,
        arrays: ArrayTask | None = None,
    ) -> None:
        if slots < 1:
            raise SpecError("a trainer needs at least one slot")
        self.model = model
        self.slots = slots
        self._active: dict[str, Active] = {}
        self._evaluations: dict[str, Evaluation] = {}
        self._settled: dict[str, StepReport] = {}
        self._lock = RLock()
        model.requires_grad_(False)
        model.eval()
        self._forward: AnyForward = (
            Forward(model, head, kernels) if arrays is None else ArrayForward(model, arrays)
        )
        self.budget = Budget(self._forward, token_budget, memory_limit)

    @property
    def fused(self) -> bool:
        """Whether all slots share the base's forwards (see `forward.py`)."""
        return self._forward.fused

    @property
    def native(self) -> bool:
        """Whether the model runs on the native kernels."""
        return self._forward.native is not None

    @property
    def evaluating(self) -> list[str]:
        """The jobs whose evaluation is under way."""
        return list(self._evaluations)

    @property
    def passes(self) -> int:
        """Forwards of the base so far."""
        return self._forward.passes

    def join(self, job: TrainingJob, state: State | None = None) -> int:
        """Take a job in at the next step boundary, resuming from `state` if given.

        Returns its slot. Raises: SpecError (no free slot, bad rank, a state that does not fit),
        TargetError, MemoryLimitError; then nothing has changed.
        """
        with self._lock:
            if job.job_id in self._active:
                raise SpecError(f"{job.job_id} is in a slot already")
            taken = {active.number for active in self._active.values()}
            free = next((i for i in range(self.slots) if i not in taken), None)
            if free is None:
                raise SpecError(f"all {self.slots} slots are taken")
            if any(_name(free) in layer.specs for layer in layers(self.model).values()):
                raise SpecError(f"slot {_name(free)!r} holds an adapter that is no job's")
            self.budget.admit(job)
            try:
                inject(self.model, job.spec, _name(free))
                weights = SlotWeights(self.model, _name(free), self._forward.kernels)
                active = Active(job, free, weights, kernels=self._forward.kernels)
                if state is not None:
                    restore(active, state)
            except BaseException as error:
                eject(self.model, _name(free))
                if memory.out_of_memory(error):
                    raise MemoryLimitError(f"memory ran out as {job.job_id} joined") from error
                raise
            self._active[job.job_id] = active
            self.budget.keeps[active.slot] = weights.size.keeps
            return free

    def leave(self, job_id: str) -> None:
        """Free a job's slot at the next step boundary. Raises: SpecError for an unknown job."""
        with self._lock:
            active = self._get(job_id)
            del self._active[job_id]
            self._evaluations.pop(job_id, None)
            self._settled.pop(job_id, None)
            eject(self.model, active.slot)
            self.budget.restore()  # it may have been this job that memory was too little for

    def step(self) -> list[StepReport]:
        """One optimizer step of every job that has steps left, in the order of joining; or, while
        a job's evaluation is under way, a part of that, as many rows as a step may have. Its
        report follows when it is done.

        A job whose loss or gradient is no finite number says so in the `error` of its report,
        changes nobody else and is not stepped again. No reports: nothing is left to do.
        """
        with self._lock:
            going = [
                active
                for job_id, active in self._active.items()
                if active.going or job_id in self._evaluations or job_id in self._settled
            ]
            if not going:
                return []
            focus = focus_of(self.model)
            if focus is not None and focus.merged is not None:
                raise LoraError(
                    f"slot {focus.merged!r} is merged into the weights; unmerge it first"
                )
            waiting = self._evaluations.keys() | self._settled.keys()
            training = [active for active in going if active.job.job_id not in waiting]
            made = self._trained(training) if training else {}
            while True:
                for job_id in list(self._evaluations):
                    self._evaluate_on(self._active[job_id])
                made |= self._settled
                self._settled.clear()
                if made:
                    return [made[a.job.job_id] for a in going if a.job.job_id in made]

    def _trained(self, training: list[Active]) -> dict[str, StepReport]:
        """A step of these jobs; the reports of those whose evaluation is due wait for it."""
        began = time.perf_counter()
        tallies, refused = self._gradients_in_memory(training)
        reports = [update(a, tallies[a.slot]) for a in training if a not in refused]
        shared = time.perf_counter() - began
        tokens = sum(report.input_tokens for report in reports)
        made = {report.job_id: report for report in refused.values()}
        for report in reports:
            active = self._active[report.job_id]
            report = replace(report, seconds=shared * report.input_tokens / tokens)
            if report.error is None and evaluation_due(active, report):
                examples = active.job.validation
                assert examples is not None
                self._evaluations[report.job_id] = Evaluation.of(active.slot, examples, report)
            else:
                made[report.job_id] = report if report.error else judge(active, report)
        return made

    def state(self, job_id: str) -> State:
        """A copy of a job's resumable state. Raises: SpecError for an unknown job."""
        with self._lock:
            active = self._get(job_id)
            # What an evaluation finds is part of the state.
            while job_id in self._evaluations:
                self._evaluate_on(active)
            return snapshot(active)

    def export(
        self, job_id: str, folder: Path | str, *, base_model_name: str | None = None
    ) -> None:
        """Write a job's adapter in the PEFT format. Raises: SpecError, OSError."""
        with self._lock:
            slot = self._get(job_id).slot
            save_adapter(self.model, folder, slot=slot, base_model_name=base_model_name)

    def evaluate(
        self, job_id: str | None, examples: AnyExamples | None = None
    ) -> tuple[float, float]:
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
            return self.evaluate_slot(active.slot if active else None, examples)

    def evaluate_slot(self, slot: str | None, examples: AnyExamples) -> tuple[float, float]:
        """`evaluate` by the slot's name, for adapters that `load_adapter` put into the model.

        Raises: SpecError when no layer has the slot.
        """
        with self._lock:
            held = self._slots([slot] if slot is not None else [])
            evaluation = Evaluation.of(slot, examples)
            while evaluation.left:
                self._advance(evaluation, held)
            return evaluation.loss, evaluation.accuracy

    @torch.no_grad()
    def _advance(self, evaluation: Evaluation, held: dict[str, SlotWeights]) -> None:
        """Take the next part of an evaluation. Raises: MemoryLimitError."""
        while True:
            part = self.budget.part = self._parts(evaluation.left)[0]
            try:
                evaluation.add(part, self._forward(part, held, training=False))
                return
            except (MemoryError, RuntimeError) as error:
                if not self.budget.relieved(error):
                    raise MemoryLimitError(
                        f"memory ran out evaluating {part[0].rows} rows alone"
                    ) from error

    def calibrate(self) -> memory.Costs | None:
        """Measure what steps take in memory, and have every kernel ready before the first job."""
        with self._lock:
            return self.budget.calibrate(self._slot_bytes())

    def costs_are(self, costs: memory.Costs) -> None:
        """Take what `calibrate` measured another time."""
        with self._lock:
            self.budget.costs_are(costs, self._slot_bytes())

    def predicted_peak(self) -> int | None:
        """Bytes the next step will take at most, all that is held counted in; None before
        `calibrate`. Meant to be not below, and at most a quarter above, what is measured."""
        with self._lock:
            going = [active for active in self._active.values() if active.going]
            segments = [segment for active in going for segment in active.segments()]
            return self.budget.most(segments, self._slot_bytes())

    def _slot_bytes(self) -> int:
        """What the slots hold. Counted and not asked of the system, for an allocator keeps what
        was freed and uses it again."""
        return sum(
            memory.slot_bytes(a.weights.size, a.job.patience is not None)
            for a in self._active.values()
        )

    def _parts(self, segments: list[Segment]) -> list[list[Segment]]:
        return self.budget.parts(segments, self._slot_bytes())

    def _gradients_in_memory(
        self, going: list[Active]
    ) -> tuple[dict[str, Tally], dict[Active, StepReport]]:
        """`_gradients`, again with half the budget whenever memory runs out: gradients start from
        zero each time and no parameter has moved, so the repeat is the same step. Where even one
        segment by itself is too much, the job it belongs to fails, and only that job."""
        refused: dict[Active, StepReport] = {}
        while True:
            left = [active for active in going if active not in refused]
            try:
                return self._gradients(left), refused
            except (MemoryError, RuntimeError) as error:
                if not self.budget.relieved(error):
                    segment = self.budget.part[0]
                    culprit = next(active for active in left if active.slot == segment.slot)
                    refused[culprit] = refuse(culprit, segment.rows)

    def _gradients(self, going: list[Active]) -> dict[str, Tally]:
        """Every job's summed loss, its gradient left in its slot."""
        segments = {active.slot: active.segments() for active in going}
        tallies = {slot: Tally.of(own) for slot, own in segments.items()}
        held = {active.slot: active.weights for active in going}
        due = {active.slot for active in going if accuracy_due(active)}
        for active in going:
            active.weights.zero()
        for part in self._parts([s for own in segments.values() for s in own]):
            self.budget.part = part
            self._take(part, held, tallies, due)
        return tallies

    def _take(
        self,
        part: list[Segment],
        held: dict[str, SlotWeights],
        tallies: dict[str, Tally],
        due: set[str],
    ) -> None:
        """One micro-batch forward and backward."""
        found = self._forward(part, held)
        layout, losses = found.layout, found.losses
        weights = torch.zeros_like(losses)
        for span in layout.spans:
            mine = slice(span.label_start, span.label_stop)
            weights[mine] = 1.0 / max(1, tallies[span.slot or ""].labels)
        if losses.requires_grad and len(losses):
            torch.autograd.backward(losses, weights)
        sums = torch.stack(
            [losses.detach()[s.label_start : s.label_stop].sum() for s in layout.spans]
        ).tolist()
        for span, total in zip(layout.spans, sums, strict=True):
            tally = tallies[span.slot or ""]
            tally.loss += total
            if found.hits is not None and (found.cheap or span.slot in due):
                mine = slice(span.label_start, span.label_stop)
                tally.correct = (tally.correct or 0) + int(found.hits(mine).sum())

    def _evaluate_on(self, active: Active) -> None:
        """The next part of a job's evaluation; once that was the last, its report is settled: with
        the result, or with what went wrong, or with nothing where nothing is to be learnt."""
        began = time.perf_counter()
        job_id = active.job.job_id
        evaluation = self._evaluations[job_id]
        report = evaluation.report
        assert report is not None
        error: LoraError | None = None
        try:
            if evaluation.left:
                self._advance(evaluation, {active.slot: active.weights})
        except MemoryLimitError as found:
            error = found
        spent = report.seconds + time.perf_counter() - began
        report = evaluation.report = replace(report, seconds=spent)
        if evaluation.left and error is None:
            return
        del self._evaluations[job_id]
        if error is None and evaluation.tally.labels and not math.isfinite(evaluation.loss):
            error = DivergedError(report.step, "validation loss")
        if error is not None:
            active.failed = True
            self._settled[job_id] = replace(report, error=error, finished=False)
            return
        if evaluation.tally.labels:
            report = replace(
                report,
                validation_loss=evaluation.loss,
                validation_accuracy=evaluation.accuracy if evaluation.counts else None,
            )
        self._settled[job_id] = judge(active, report)

    def _slots(self, names: list[str]) -> dict[str, SlotWeights]:
        """The weights of slots, whether a job holds them or `load_adapter` filled them."""
        held = {active.slot: active.weights for active in self._active.values()}
        for name in names:
            if name in held:
                continue
            if not any(name in layer.specs for layer in layers(self.model).values()):
                raise SpecError(f"no layer has a slot {name!r}")
            held[name] = SlotWeights(self.model, name, self._forward.kernels)
        return {name: held[name] for name in names}

    def _get(self, job_id: str) -> Active:
        if job_id not in self._active:
            raise SpecError(f"{job_id} is in no slot")
        return self._active[job_id]


def _name(slot: int) -> str:
    return f"slot{slot}"
