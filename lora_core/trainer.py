"""The trainer: one frozen base, S slots. Jobs join and leave at step boundaries; `step()` trains
every active slot once, all of them in the same forward and backward of the base.

A job's numbers depend on nothing but the job: see `segments.py` for why. The update of one slot is
in `active.py`, the forward in `forward.py`.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import RLock

import torch
from torch import nn

from lora_core import memory
from lora_core.active import (
    Active,
    Tally,
    evaluation,
    judge,
    refuse,
    restore,
    snapshot,
    update,
)
from lora_core.errors import LoraError, MemoryLimitError, SpecError
from lora_core.examples import Examples
from lora_core.forward import Forward
from lora_core.inject import eject, inject, layers, targets
from lora_core.job import StepReport, TrainingJob
from lora_core.peft_format import save_adapter
from lora_core.segments import Segment, Sequence, cut, micro_batches
from lora_core.state import State
from lora_core.weights import SlotWeights

#: sequences and their length of the steps that memory is measured on
_PROBES = ((8, 32), (48, 32), (3, 512))


class Trainer:
    """Owns `model` (a causal LM as transformers builds them) and its slots.

    `head` is the output layer (weight [V, D], optional bias [V]) of a model whose
    `get_output_embeddings` does not tell. `token_budget` bounds the rows of one forward and
    `memory_limit` (bytes; by default nine tenths of what the device has) the memory of all, once
    `calibrate` has measured what a step takes; neither changes a job's result. Thread-safe: every
    other method waits for the end of a running `step`, so what it does takes effect at the next
    step boundary.
    """

    def __init__(
        self,
        model: nn.Module,
        slots: int,
        *,
        head: nn.Module | None = None,
        token_budget: int = 2048,
        memory_limit: int | None = None,
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
        self.memory_limit = memory_limit or int(0.9 * memory.available(self._forward.device))
        self.costs: memory.Costs | None = None
        self._idle = 0
        #: how often the budget was halved because memory ran out
        self.halvings = 0

    @property
    def fused(self) -> bool:
        """Whether all slots share the base's forwards (see `forward.py`)."""
        return self._forward.fused

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
            self._admit(job)
            inject(self.model, job.spec, _name(free))
            active = Active(job, free, SlotWeights(self.model, _name(free)))
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
            going = [active for active in self._active.values() if active.going]
            if not going:
                return []
            began = time.perf_counter()
            tallies, refused = self._gradients_in_memory(going)
            reports = [update(a, tallies[a.slot]) for a in going if a not in refused]
            shared = time.perf_counter() - began
            tokens = sum(report.input_tokens for report in reports)
            made = {
                report.job_id: self._validated(report, shared * report.input_tokens / tokens)
                for report in reports
            }
            made |= {report.job_id: report for report in refused.values()}
            return [made[active.job.job_id] for active in going]

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
            return self.evaluate_slot(active.slot if active else None, examples)

    def evaluate_slot(self, slot: str | None, examples: Examples) -> tuple[float, float]:
        """`evaluate` by the slot's name, for adapters that `load_adapter` put into the model.

        Raises: SpecError when no layer has the slot.
        """
        with self._lock, torch.no_grad():
            held = self._slots([slot] if slot is not None else [])
            tally = Tally()
            for part in self._parts(evaluation(slot, examples)):
                layout, hidden, losses = self._forward(part, held, training=False)
                hits = int(self._forward.hits(hidden, layout.labels).sum())
                tally.correct = (tally.correct or 0) + hits
                for span in layout.spans:
                    tally.loss += float(losses[span.label_start : span.label_stop].sum())
                tally.labels += len(layout.labels)
            if not tally.labels:
                return math.nan, math.nan
            return tally.loss / tally.labels, (tally.correct or 0) / tally.labels

    def calibrate(self) -> memory.Costs | None:
        """Run three probe steps on the bare base: learn what memory steps take, and have every
        kernel ready before the first job. None where the system does not tell."""
        with self._lock:
            device = self._forward.device
            probes = [self._forward.probe_segments(*each) for each in _PROBES]
            self._forward.rehearse(probes[0])  # what is made once is not a step's
            points = []
            for part in probes:
                before = memory.held(device)
                peak = memory.peak_of(device, partial(self._forward.rehearse, part))
                if peak is None:
                    return None
                points.append((*memory.amounts(part), max(0, peak - before)))
            self._idle = memory.held(device) - self._slot_bytes()
            self.costs = memory.fit(points)
            return self.costs

    def costs_are(self, costs: memory.Costs) -> None:
        """Take what `calibrate` measured another time, and have every kernel ready all the same."""
        with self._lock:
            self._forward.rehearse(self._forward.probe_segments(*_PROBES[0]))
            self._idle = memory.held(self._forward.device) - self._slot_bytes()
            self.costs = costs

    def predicted_peak(self) -> int | None:
        """Bytes the next step will take at most, all that is held counted in; None before
        `calibrate`. Predicted to be not below, and at most a quarter above, what is measured."""
        with self._lock:
            if self.costs is None:
                return None
            going = [active for active in self._active.values() if active.going]
            parts = self._parts([s for active in going for s in active.segments()])
            most = max((self.costs.of(part) for part in parts), default=0)
            return self._held() + most

    def _held(self) -> int:
        """What is held between steps: what was before any job, and the slots. Counted and not
        asked of the system, for an allocator keeps what was freed and uses it again."""
        return self._idle + self._slot_bytes()

    def _slot_bytes(self) -> int:
        return sum(memory.slot_bytes(a.weights.master.numel()) for a in self._active.values())

    def _admit(self, job: TrainingJob) -> None:
        """Raises MemoryLimitError for a job that could never take a step."""
        if self.costs is None:
            return
        names = targets(self.model, job.spec)
        slot = memory.slot_bytes(memory.numbers_of(self.model, job.spec.r, names))
        longest = max(range(len(job.examples)), key=lambda i: len(job.examples[i][0]))
        segment = cut(None, [Sequence(*job.examples[longest])])
        need = self._held() + slot + self.costs.of(segment)
        if need > self.memory_limit:
            raise MemoryLimitError(
                f"the longest example ({segment[0].tokens} tokens) needs "
                f"{need / 2**30:.2f} GiB of memory and {self.memory_limit / 2**30:.2f} GiB are "
                "there: shorten the examples (context_length) or lower the rank"
            )

    def _parts(self, segments: list[Segment]) -> list[list[Segment]]:
        """Micro-batches within the token budget and, once it is known, within the memory."""
        costs = self.costs
        if costs is None:
            return micro_batches(segments, self.token_budget)
        room = self.memory_limit - self._held()
        return micro_batches(segments, self.token_budget, lambda part: costs.of(part) <= room)

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
                if not memory.out_of_memory(error):
                    raise
                sizes = {active: max(s.rows for s in active.segments()) for active in left}
                culprit = max(left, key=lambda active: sizes[active])
                if self.token_budget > sizes[culprit]:
                    self.token_budget = max(sizes[culprit], self.token_budget // 2)
                    self.halvings += 1
                else:
                    refused[culprit] = refuse(culprit, sizes[culprit])

    def _gradients(self, going: list[Active]) -> dict[str, Tally]:
        """Every job's summed loss, its gradient left in its slot."""
        segments = {active.slot: active.segments() for active in going}
        tallies = {slot: _tally(own) for slot, own in segments.items()}
        held = {active.slot: active.weights for active in going}
        due = {active.slot for active in going if _accuracy_due(active)}
        for active in going:
            active.weights.grad.zero_()
        for part in self._parts([s for own in segments.values() for s in own]):
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
        layout, hidden, losses = self._forward(part, held)
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
            if span.slot in due:
                mine = slice(span.label_start, span.label_stop)
                hits = int(self._forward.hits(hidden[mine], layout.labels[mine]).sum())
                tally.correct = (tally.correct or 0) + hits

    def _validated(self, report: StepReport, seconds: float) -> StepReport:
        """The report with its evaluation, if one is due, and the device time both took."""
        began = time.perf_counter()
        active = self._active[report.job_id]
        every = active.job.eval_every
        due = report.finished or (every is not None and report.step % every == 0)
        if report.error is not None:
            return replace(report, seconds=seconds)
        if active.job.validation is not None and due:
            loss, accuracy = self.evaluate_slot(active.slot, active.job.validation)
            report = replace(report, validation_loss=loss, validation_accuracy=accuracy)
        return replace(judge(active, report), seconds=seconds + time.perf_counter() - began)

    def _slots(self, names: list[str]) -> dict[str, SlotWeights]:
        """The weights of slots, whether a job holds them or `load_adapter` filled them."""
        held = {active.slot: active.weights for active in self._active.values()}
        for name in names:
            if name in held:
                continue
            if not any(name in layer.specs for layer in layers(self.model).values()):
                raise SpecError(f"no layer has a slot {name!r}")
            held[name] = SlotWeights(self.model, name)
        return {name: held[name] for name in names}

    def _get(self, job_id: str) -> Active:
        if job_id not in self._active:
            raise SpecError(f"{job_id} is in no slot")
        return self._active[job_id]


def _tally(segments: list[Segment]) -> Tally:
    sequences = [sequence for segment in segments for sequence in segment.sequences]
    return Tally(
        labels=sum(sequence.labels for sequence in sequences),
        tokens=sum(len(sequence.ids) for sequence in sequences),
    )


def _accuracy_due(active: Active) -> bool:
    """Whether the coming step's token accuracy is measured: at the first, the last and each tenth
    step of a job, fewer in a long one, for it costs the half of the head once more."""
    step, total = active.step + 1, active.job.total_steps
    return step in (1, total) or step % max(10, total // 10) == 0


def _name(slot: int) -> str:
    return f"slot{slot}"
