"""One job in its slot: its parameters, its optimizer, the sequences of its next step, and the
update once their gradients are there.

Which jobs there are, and how their rows share a forward, is `trainer.py`'s.
"""

from __future__ import annotations

import math
from dataclasses import InitVar, dataclass, field, replace

import torch
from torch import Tensor

from lora_core import rng
from lora_core.errors import DivergedError, MemoryLimitError, SpecError
from lora_core.examples import batch
from lora_core.job import StepReport, TrainingJob
from lora_core.native import Kernels
from lora_core.optim import AdamW
from lora_core.schedule import learning_rate
from lora_core.segments import Segment, cut
from lora_core.state import Best, State
from lora_core.variants.loraplus import paces
from lora_core.weights import SlotWeights


@dataclass
class Tally:
    """What the forwards of one step found for one job."""

    loss: float = 0.0
    correct: int | None = None
    labels: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, segments: list[Segment]) -> Tally:
        """What is known before any forward."""
        sequences = [sequence for segment in segments for sequence in segment.sequences]
        return cls(
            labels=sum(sequence.labels for sequence in sequences),
            tokens=sum(sequence.tokens for sequence in sequences),
        )


@dataclass(eq=False)
class Active:
    """A job in slot `number`; `step` optimizer steps done."""

    job: TrainingJob
    number: int
    weights: SlotWeights
    step: int = 0
    failed: bool = False
    stopped: bool = False
    best: Best | None = None
    best_weights: Tensor | None = None
    counters: dict[str, int] = field(default_factory=lambda: {"tokens": 0, "input_tokens": 0})

    kernels: InitVar[Kernels | None] = None

    def __post_init__(self, kernels: Kernels | None) -> None:
        self.optimizer = AdamW(
            self.weights.master,
            weight_decay=self.job.weight_decay,
            low=self.weights.low,
            paces=paces(self.weights.places, self.job.spec.loraplus_lr_ratio),
            kernels=kernels,
        )

    @property
    def slot(self) -> str:
        """The slot's name in the layers."""
        return self.weights.slot

    @property
    def going(self) -> bool:
        """Whether the job has steps left."""
        return self.step < self.job.total_steps and not (self.failed or self.stopped)

    def segments(self) -> list[Segment]:
        """The next step's examples; the dropout of each is keyed by (job seed, step, its place)."""
        job, step = self.job, self.step + 1
        rows = batch(len(job.examples), job.optimizer_batch, job.seed, step)
        return cut(
            self.slot,
            [
                job.examples.sequence(index, key=rng.seed_of(("row", job.seed, step, place)))
                for place, index in enumerate(rows)
            ],
            job.shift_group,
        )


def evaluation_due(active: Active, report: StepReport) -> bool:
    """Whether the job's validation examples are to be evaluated after this step."""
    every = active.job.eval_every
    due = report.finished or (every is not None and report.step % every == 0)
    return due and active.job.validation is not None


def accuracy_due(active: Active) -> bool:
    """Whether the coming step's token accuracy is measured where it is not known anyway: at the
    first, the last and each tenth step of a job, fewer in a long one, for it costs the half of the
    head once more."""
    step, total = active.step + 1, active.job.total_steps
    return step in (1, total) or step % max(10, total // 10) == 0


def refuse(active: Active, rows: int) -> StepReport:
    """The report of a job whose largest segment alone takes more memory than there is."""
    step = active.step + 1
    active.failed = True
    return StepReport(
        job_id=active.job.job_id,
        step=step,
        total_steps=active.job.total_steps,
        epoch=(step - 1) * active.job.epochs // active.job.total_steps,
        loss=math.nan,
        token_accuracy=None,
        learning_rate=0.0,
        grad_norm=math.nan,
        tokens=0,
        input_tokens=0,
        seconds=0.0,
        error=MemoryLimitError(
            f"memory ran out at step {step} with {rows} rows of this job alone: shorten its "
            "examples (context_length) or lower its rank"
        ),
    )


def judge(active: Active, report: StepReport) -> StepReport:
    """Take an evaluation's loss into account: the best so far, and whether patience is at its end.

    A job with patience ends with the adapter that was evaluated best.
    """
    loss, job = report.validation_loss, active.job
    if loss is not None:
        before = active.best or Best(report.step, math.inf, math.inf)
        better = loss < before.mark - job.min_delta
        lowest = loss < before.loss
        active.best = Best(
            step=report.step if lowest else before.step,
            loss=min(loss, before.loss),
            mark=loss if better else before.mark,
            waited=0 if better else before.waited + 1,
        )
        if lowest and job.patience is not None:
            active.best_weights = active.weights.master.clone()
        active.stopped = job.patience is not None and active.best.waited >= job.patience
    finished = report.finished or active.stopped
    if finished and active.best_weights is not None:
        active.weights.master.copy_(active.best_weights)
        active.weights.refresh()
    return replace(
        report,
        finished=finished,
        best_step=active.best.step if active.best else None,
        stopped_early=active.stopped and not report.finished,
    )


def snapshot(active: Active) -> State:
    """A copy, on the CPU, of everything a resume needs."""
    tensors: dict[str, Tensor] = {}
    for name, place, shape in _places(active):
        for short, flat in _flats(active):
            tensors[f"{name}.{short}"] = flat[place].view(shape).cpu().clone()
    return State(active.step, tensors, dict(active.counters), active.best)


def restore(active: Active, state: State) -> None:
    """Put a state back. Raises: SpecError for one that does not fit; then nothing has changed."""
    best = active.job.patience is not None and state.best is not None
    if best:
        active.best_weights = torch.empty_like(active.weights.master)
    parts = [short for short, _ in _flats(active)]
    wanted = {f"{name}.{short}": shape for name, _, shape in _places(active) for short in parts}
    for name in sorted(wanted.keys() | state.tensors.keys()):
        found = state.tensors.get(name)
        if found is None or found.shape != wanted.get(name) or found.dtype != torch.float32:
            raise SpecError(f"the state does not fit the job: {name}")
    if not 0 <= state.step <= active.job.total_steps:
        raise SpecError(f"the state does not fit the job: step {state.step}")
    for name, place, shape in _places(active):
        for short, flat in _flats(active):
            flat[place].view(shape).copy_(state.tensors[f"{name}.{short}"])
    active.optimizer.steps = active.step = state.step
    active.counters.update(state.counters)
    active.best = state.best
    active.weights.refresh()


def update(active: Active, tally: Tally) -> StepReport:
    """Clip, move the parameters, and report. The gradient is that of the loss summed over label
    tokens and divided by their number.

    When loss or gradient is no finite number the adapter stays as it was, the job is `failed` and
    the report carries a DivergedError. A batch without label tokens has zero gradient.
    """
    job, step = active.job, active.step + 1
    rate = learning_rate(job.learning_rate, job.schedule, step, job.total_steps, job.warmup_steps)
    last = active.weights.master.clone() if step == job.total_steps else None
    error = None
    norm = math.nan
    active.weights.gather()
    if not math.isfinite(tally.loss):
        error = DivergedError(step, "loss")
    else:
        norm = active.optimizer.step(active.weights.grad, rate, job.max_grad_norm)
    if error is None and not math.isfinite(norm):
        error = DivergedError(step, "gradient")
    if error is None:
        if last is not None and not bool(active.weights.master.isfinite().all()):
            # No further step would notice.
            active.weights.master.copy_(last)
            active.weights.refresh()
            error = DivergedError(step, "adapter")
        active.weights.spread()
    if error is None:
        active.step = step
        active.counters["tokens"] += tally.labels
        active.counters["input_tokens"] += tally.tokens
    active.failed = error is not None
    labels = max(1, tally.labels)
    return StepReport(
        job_id=job.job_id,
        step=step,
        total_steps=job.total_steps,
        epoch=(step - 1) * job.epochs // job.total_steps,
        loss=tally.loss / labels,
        token_accuracy=None if tally.correct is None else tally.correct / labels,
        learning_rate=rate,
        grad_norm=norm,
        tokens=tally.labels,
        input_tokens=tally.tokens,
        seconds=0.0,
        finished=active.step >= job.total_steps,
        error=error,
    )


def _places(active: Active) -> list[tuple[str, slice, torch.Size]]:
    weights = active.weights
    return [(name, weights.places[name], p.shape) for name, p in weights.parameters.items()]


def _flats(active: Active) -> list[tuple[str, Tensor]]:
    flats = [
        ("w", active.weights.master),
        ("m", active.optimizer.mean),
        ("v", active.optimizer.square),
    ]
    return flats if active.best_weights is None else [*flats, ("b", active.best_weights)]
