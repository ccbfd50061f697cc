"""A model's weights as they lie on disk: safetensors files, mapped, one tensor at a time. Nothing
is held: a tensor's mapping goes with the tensor, so what was read is never a second copy in memory.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lora_core.errors import FormatError


class Mapped:
    """The tensors of every `*.safetensors` file in a folder, by name.

    Raises: FormatError for a folder without such files, or one that cannot be read.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._files: dict[str, Path] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    self._files |= dict.fromkeys(file.keys(), path)
            except (OSError, SafetensorError) as error:
                raise FormatError(f"{path} cannot be read: {error}") from error
        if not self._files:
            raise FormatError(f"{self.folder} holds no safetensors file")

    @property
    def names(self) -> list[str]:
        """The names of all tensors, in alphabetical order."""
        return sorted(self._files)

    def tensor(self, name: str) -> Tensor:
        """One tensor, its pages read when they are touched. Raises: FormatError."""
        if name not in self._files:
            raise FormatError(f"{self.folder} has no tensor {name}")
        with safe_open(self._files[name], framework="pt") as file:
            found: Tensor = file.get_tensor(name)
        return found
