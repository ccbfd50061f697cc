"""What the trainer is asked to do, and what it tells after each step."""

from __future__ import annotations

from dataclasses import dataclass

from lora_core.errors import LoraError, SpecError
from lora_core.examples import Examples, total_steps
from lora_core.schedule import Schedule
from lora_core.spec import AdapterSpec


@dataclass(frozen=True)
class TrainingJob:
    """One adapter to train. Rates per optimizer step; `eval_every` in steps.

    Raises: SpecError.
    """

    job_id: str
    spec: AdapterSpec
    examples: Examples
    validation: Examples | None = None
    epochs: int = 1
    batch_size: int = 4
    learning_rate: float = 5e-4
    schedule: Schedule = "linear"
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    eval_every: int | None = None

    def __post_init__(self) -> None:
        if len(self.examples) == 0:
            raise SpecError("a job without examples")
        if self.epochs < 1 or self.batch_size < 1:
            raise SpecError("epochs and batch_size are at least 1")

    @property
    def total_steps(self) -> int:
        """Optimizer steps from start to end."""
        return total_steps(len(self.examples), self.batch_size, self.epochs)

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps of the warm-up."""
        return int(self.warmup_ratio * self.total_steps)


@dataclass(frozen=True)
class StepReport:
    """One optimizer step of one job. Losses per label token, `seconds` of the device."""

    job_id: str
    step: int
    total_steps: int
    epoch: int
    loss: float
    token_accuracy: float
    learning_rate: float
    grad_norm: float
    tokens: int
    input_tokens: int
    seconds: float
    finished: bool = False
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    error: LoraError | None = None
