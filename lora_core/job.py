"""What the trainer is asked to do, and what it tells after each step. Values only: how a job is
trained is in `trainer.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lora_core.arrays import ArrayExamples
from lora_core.errors import LoraError, SpecError
from lora_core.examples import Examples, total_steps
from lora_core.schedule import SCHEDULES, Schedule
from lora_core.spec import AdapterSpec

AnyExamples = Examples | ArrayExamples
#: more would leave float32 in a single update
_MOST_RATE = 1e30


@dataclass(frozen=True)
class TrainingJob:
    """One adapter to train. `batch_size` in examples, of which `accumulation` times as many make
    one optimizer step; `eval_every` in optimizer steps; `warmup_ratio` is a share of all steps;
    `seed` decides the order of the examples and the dropout, `spec.seed` where the adapter starts.
    `max_grad_norm` may be infinite. With `patience` a job ends after so many evaluations in a row
    that lower its best validation loss by no more than `min_delta`, and its adapter is then, as at
    its last step, the one that was evaluated best. With `shift_group` it trains on LongLoRA's
    shifted sparse attention, in groups of so many tokens (`segments.seen_together`); evaluations
    see whole sequences.

    Raises: SpecError.
    """

    job_id: str
    spec: AdapterSpec
    examples: AnyExamples
    validation: AnyExamples | None = None
    epochs: int = 1
    batch_size: int = 4
    accumulation: int = 1
    learning_rate: float = 5e-4
    schedule: Schedule = "linear"
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    eval_every: int | None = None
    patience: int | None = None
    min_delta: float = 0.0
    shift_group: int | None = None

    def __post_init__(self) -> None:
        if len(self.examples) == 0:
            raise SpecError("a job without examples")
        if self.epochs < 1 or self.batch_size < 1 or self.accumulation < 1:
            raise SpecError("epochs, batch_size and accumulation are at least 1")
        if not 0 < self.learning_rate <= _MOST_RATE:
            raise SpecError(f"learning_rate {self.learning_rate} is not in (0, {_MOST_RATE}]")
        if self.schedule not in SCHEDULES:
            raise SpecError(f"schedule {self.schedule!r} is none of {', '.join(SCHEDULES)}")
        if not 0 <= self.warmup_ratio <= 1:
            raise SpecError(f"warmup_ratio {self.warmup_ratio} is not in [0, 1]")
        if not 0 <= self.weight_decay < math.inf:
            raise SpecError(f"weight_decay {self.weight_decay} is not a number from 0 on")
        if not self.max_grad_norm > 0:
            raise SpecError(f"max_grad_norm {self.max_grad_norm} is not positive")
        if self.eval_every is not None and self.eval_every < 1:
            raise SpecError(f"eval_every {self.eval_every} is less than 1")
        if self.patience is not None and (self.patience < 1 or self.validation is None):
            raise SpecError("patience is at least 1 and needs validation examples")
        if not 0 <= self.min_delta < math.inf:
            raise SpecError(f"min_delta {self.min_delta} is not a number from 0 on")
        if self.shift_group is not None and (self.shift_group < 2 or self.shift_group % 2):
            raise SpecError(f"shift_group {self.shift_group} is no even number from 2 on")

    @property
    def optimizer_batch(self) -> int:
        """Examples of one optimizer step."""
        return self.batch_size * self.accumulation

    @property
    def total_steps(self) -> int:
        """Optimizer steps from start to end."""
        return total_steps(len(self.examples), self.optimizer_batch, self.epochs)

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps of the warm-up."""
        return int(self.warmup_ratio * self.total_steps)


@dataclass(frozen=True)
class StepReport:
    """One optimizer step of one job.

    `step` counts from 1, `epoch` from 0. Losses are per label token, `grad_norm` is from before
    the clipping, `token_accuracy` is measured at some steps only, `tokens` are label tokens,
    `input_tokens` all tokens without padding; of an array network both count examples, and the
    accuracy is None where nothing is right or wrong. `seconds` is the job's share of the device
    time: of a shared step by its tokens, and its own evaluation. `best_step` is where the
    validation loss was lowest so far. With an `error` the step changed nothing.
    """

    job_id: str
    step: int
    total_steps: int
    epoch: int
    loss: float
    token_accuracy: float | None
    learning_rate: float
    grad_norm: float
    tokens: int
    input_tokens: int
    seconds: float
    finished: bool = False
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    best_step: int | None = None
    stopped_early: bool = False
    error: LoraError | None = None
