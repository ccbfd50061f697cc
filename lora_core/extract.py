"""An adapter out of two checkpoints of one architecture: the difference of each linear layer, at
the nearest low rank.

W [O, D] of a layer (Conv1D [D, O]); the difference is taken in float32, B A is its truncated SVD.
The idea is that of `LoRA extraction` as model mergers do it; the best rank-K form of a matrix is
Eckart and Young's (1936).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lora_core.errors import LoraError, SpecError
from lora_core.inject import candidates
from lora_core.mapped import Mapped
from lora_core.peft_format import to_peft_config
from lora_core.resize import Kept, kept, write
from lora_core.spec import AdapterSpec
from lora_core.spectrum import halves, rank_for


def extract(
    model: nn.Module,
    base: Path | str,
    tuned: Path | str,
    out: Path | str,
    *,
    rank: int | None = None,
    energy: float | None = None,
    base_model_name: str | None = None,
) -> tuple[Kept, list[str]]:
    """Write the adapter that brings the weights in folder `base` nearest to those in `tuned`.

    `model` says what the layers are; its weights are not looked at (it may be on "meta"). `rank`,
    or the smallest that keeps the share `energy` (0 to 1) of all layers' difference together; then
    each SVD is made twice. Written in bf16 for a bf16 base, else float32. Returns what was kept,
    and the names of other tensors that differ (embeddings, norms, biases, the output head): no
    LoRA holds these. Raises: FormatError, LoraError for checkpoints that are not alike or do not
    differ, SpecError, OSError.
    """
    if (rank is None) == (energy is None):
        raise SpecError("either a rank or a share of the energy")
    before, after = Mapped(base), Mapped(tuned)
    if before.names != after.names:
        odd = min(set(before.names) ^ set(after.names))
        raise LoraError(f"the two checkpoints are of different models: only one has {odd}")
    sought = {name: m for name, m in candidates(model).items() if _is_linear(m)}
    layers = {f"{name}.weight": _transposed(m) for name, m in sought.items()}
    changed: list[str] = []
    others: list[str] = []
    for name in before.names:
        one, two = before.tensor(name), after.tensor(name)
        if one.shape != two.shape:
            raise LoraError(f"the two checkpoints are of different models: {name} differs in shape")
        if not torch.equal(one.float(), two.float()):
            (changed if name in layers else others).append(name)
    if not changed:
        raise LoraError("no linear layer differs between the two checkpoints")
    endings = {_ending(name) for name in changed}
    hit = [name for name in layers if _ending(name) in endings and name in before.names]

    def difference(name: str) -> Tensor:
        delta = after.tensor(name).float() - before.tensor(name).float()
        return delta.T if layers[name] else delta

    smallest = min(min(before.tensor(name).shape) for name in hit)
    chosen = rank or rank_for((torch.linalg.svdvals(difference(n)) for n in hit), energy or 1.0)
    if chosen > smallest:
        raise SpecError(f"rank {chosen} is larger than the smallest layer ({smallest})")
    dtype = before.tensor(hit[0]).dtype
    stored = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    spectra, tensors = {}, {}
    for name in hit:
        u, s, v = torch.linalg.svd(difference(name), full_matrices=False)
        layer = name.removesuffix(".weight")
        spectra[layer] = s
        for part, value in zip(("lora_A", "lora_B"), halves(u, s, v, chosen), strict=True):
            tensors[f"base_model.model.{layer}.{part}.weight"] = value.to(stored).contiguous()
    config = to_peft_config(
        AdapterSpec(r=chosen, alpha=float(chosen)),
        target_modules=sorted(endings),
        base_model_name=base_model_name,
        fan_in_fan_out=any(layers[name] for name in hit),
    )
    write(Path(out), config, tensors)
    return kept(spectra, chosen), others


def _ending(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


def _is_linear(module: nn.Module) -> bool:
    """Whether it is a layer this file takes: no convolution, no embedding."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"
