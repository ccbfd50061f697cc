"""The resumable state of a job: adapter, optimizer moments, step. Safetensors and JSON only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_core.errors import FormatError

_TENSORS = "state.safetensors"
_FACTS = "state.json"


@dataclass(frozen=True)
class State:
    """Where a job stands after `step`. Tensors are float32, named `<layer>.<A|B>.<w|m|v>`."""

    step: int
    tensors: dict[str, Tensor]

    def save(self, folder: Path | str) -> None:
        """Write both files into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, str(folder / _TENSORS))
        (folder / _FACTS).write_text(json.dumps({"step": self.step}) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str) -> State:
        """Read what `save` wrote. Raises: FormatError."""
        folder = Path(folder)
        try:
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            return cls(int(facts["step"]), load_file(str(folder / _TENSORS)))
        except (OSError, KeyError, ValueError) as error:
            raise FormatError(f"{folder} holds no usable state: {error}") from error
