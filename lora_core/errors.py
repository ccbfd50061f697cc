"""What can be wrong with an adapter or its training.

LoraError
├── SpecError       rank, alpha, dropout or a hyperparameter out of range
├── TargetError     target modules that match no layer
├── FormatError     an adapter folder that cannot be read
├── DivergedError   a loss or gradient that is no number any more
└── MemoryLimitError  a job whose longest example does not fit into memory
"""

from __future__ import annotations

from typing import ClassVar


class LoraError(ValueError):
    """The root of this package's errors."""

    code: ClassVar[str] = "lora"


class SpecError(LoraError):
    """A value of a spec or a job that cannot be."""

    code = "invalid_hyperparameters"


class TargetError(LoraError):
    """Target modules that match no layer; the message lists those there are."""

    code = "invalid_hyperparameters"


class FormatError(LoraError):
    """A folder that is no adapter this package can load."""

    code = "invalid_adapter"


class MemoryLimitError(LoraError):
    """What a job's largest segment needs is more than there is; the message has both numbers."""

    code = "out_of_memory"


class DivergedError(LoraError):
    """The loss or the gradient of a job stopped being a number at `step`."""

    code = "diverged"

    def __init__(self, step: int, what: str) -> None:
        super().__init__(
            f"the {what} is not a finite number at step {step}: lower the learning rate "
            "or look at the data of that step"
        )
        self.step = step
