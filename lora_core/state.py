"""The resumable state of a job: adapter, optimizer moments, step, counters.

Safetensors and JSON only. Whether a state fits a job is for `trainer.py` to say.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_core.errors import FormatError

_TENSORS = "state.safetensors"
_FACTS = "state.json"


@dataclass(frozen=True)
class Best:
    """The lowest validation loss of a job and the step it was found at. `mark` is the loss that
    patience counts from, `waited` how many evaluations since then were not better than it by
    `min_delta`."""

    step: int
    loss: float
    mark: float
    waited: int = 0


@dataclass(frozen=True)
class State:
    """Where a job stands after `step`.

    Tensors are float32, named `<layer>.<part>.<w|m|v>` (weight, and the optimizer's mean and mean
    square of the gradient). Parts are A [R, D in] (QA-LoRA [R, D in / group]), B [D out, R], and of
    variants `gain` [1] and `magnitude` [D out]. Counters are sums since step 1:
    `tokens` (label tokens) and `input_tokens`. `best` is the evaluation with the lowest loss so
    far; a job that may stop early keeps the adapter of then as `<layer>.<part>.b`.
    """

    step: int
    tensors: dict[str, Tensor]
    counters: dict[str, int] = field(default_factory=dict)
    best: Best | None = None

    def gains(self) -> dict[str, float]:
        """The learnt factor beside the scaling of each layer that has one."""
        ending = ".gain.w"
        found = ((name, tensor) for name, tensor in self.tensors.items() if name.endswith(ending))
        return {name.removesuffix(ending): float(tensor) for name, tensor in found}

    def save(self, folder: Path | str) -> None:
        """Write `state.safetensors`, then `state.json`, into `folder`. Raises: OSError."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            save_file(self.tensors, str(folder / _TENSORS))
        except SafetensorError as error:
            raise OSError(f"{folder} cannot be written: {error}") from error
        best = asdict(self.best) if self.best is not None else None
        facts = {"step": self.step, "counters": self.counters, "best": best}
        (folder / _FACTS).write_text(json.dumps(facts, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str) -> State:
        """Read what `save` wrote. Raises: FormatError."""
        folder = Path(folder)
        try:
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            step = int(facts["step"])
            counters = {str(k): int(v) for k, v in facts.get("counters", {}).items()}
            held = facts.get("best")
            best = (
                Best(
                    int(held["step"]),
                    float(held["loss"]),
                    float(held["mark"]),
                    int(held["waited"]),
                )
                if held
                else None
            )
            return cls(step, load_file(str(folder / _TENSORS)), counters, best)
        except (OSError, KeyError, ValueError, TypeError, AttributeError, SafetensorError) as error:
            raise FormatError(f"{folder} holds no usable state: {error}") from error
