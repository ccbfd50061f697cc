"""Quantise a base as it is made, and load one: transformers builds the empty model, the linear
layers become quantised ones before any weight is read, and every tensor is then read by its name.

So no load ever holds the linear weights whole. The weights lie in `model.<kind>.safetensors`:
whoever looks for plain weights finds none, instead of a model with random ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from manylora.errors import UsageError
from worker.bases import card as cards

#: as transformers registers it
_METHOD = "manylora"


def kind_of(quantization: str) -> str:
    """The kind a quantisation's name begins with, which its files are named after."""
    return quantization.partition("-")[0]


def name_of(kind: str | None, group_size: int | None, dtype: str) -> str | None:
    """The whole name of what was asked for; None for a base that stays whole.

    Raises: UsageError for what cannot be, before anything is converted.
    """
    from lora_core import LoraError
    from lora_core import quantize as few

    if kind is None:
        if group_size is not None:
            raise UsageError("a group size needs a quantisation", hint="--quantize int4")
        return None
    try:
        name = few.name_of(kind, group_size)
    except LoraError as error:
        raise UsageError(str(error)) from error
    if dtype != "bfloat16":
        raise UsageError(
            f"a base in {kind} computes in bfloat16, not in {dtype}", hint="leave out --dtype"
        )
    return name


def refuse_quantized(source: Path) -> None:
    """Raises UsageError for a folder whose weights are in few bits already."""
    if (source / cards.CARD).is_file() and (held := cards.read(source).quantization):
        raise UsageError(f"{source} is quantised already ({held})", hint="take the whole base")


def refuse_config(source: str, config: Any) -> None:
    """Raises UsageError for a model whose own config says that it is quantised."""
    if getattr(config, "quantization_config", None) is not None:
        raise UsageError(f"{source} is quantised already", hint="take the whole model")


def quantize(model: Any, layers: Mapping[str, Sequence[int]], quantization: str) -> None:
    """Put a loaded model's layers (name to [in, out]) into few bits, in place.

    Raises: UsageError for a width that the group size does not divide.
    """
    from lora_core import LoraError
    from lora_core import quantize as few

    try:
        method = few.method_of(quantization)
        for into, out in layers.values():
            method.shapes(out, into)  # all widths, before any layer is changed
        few.quantize_layers(model, layers, method)
    except LoraError as error:
        raise UsageError(f"{quantization} does not suit this model: {error}") from error


def loading(card: cards.Card) -> dict[str, Any]:
    """What `from_pretrained` must be given beside the folder; nothing for a whole base."""
    if card.quantization is None:
        return {}
    _register()
    config = _config()(quantization=card.quantization, layers=list(card.layers))
    return {"variant": kind_of(card.quantization), "quantization_config": config}


def _swap(model: Any, names: Iterable[str], quantization: str) -> None:
    """Empty quantised layers in the place of an empty model's linear ones."""
    import torch

    from lora_core.quantize import QuantizedLinear, method_of

    method = method_of(quantization)
    for name in names:
        parent, _, leaf = name.rpartition(".")
        holder = model.get_submodule(parent) if parent else model
        layer = getattr(holder, leaf)
        turned = type(layer).__name__ == "Conv1D"
        rows, columns = layer.weight.T.shape if turned else layer.weight.shape
        with torch.device("meta"):
            made = QuantizedLinear(
                columns,
                rows,
                method,
                bias=layer.bias is not None,
                dtype=layer.weight.dtype,
                of_conv1d=turned,
            )
        setattr(holder, leaf, made)


def _config() -> Any:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    return AUTO_QUANTIZATION_CONFIG_MAPPING[_METHOD]


def _register() -> None:
    """Tell transformers, once a process, of what stands in a card."""
    from transformers.quantizers import HfQuantizer
    from transformers.quantizers.auto import (
        AUTO_QUANTIZER_MAPPING,
        register_quantization_config,
        register_quantizer,
    )
    from transformers.utils.quantization_config import QuantizationConfigMixin

    if _METHOD in AUTO_QUANTIZER_MAPPING:
        return

    class Config(QuantizationConfigMixin):  # type: ignore[misc]
        """A card's quantisation and the layers it is of."""

        def __init__(self, quantization: str, layers: list[str]) -> None:
            self.quant_method = _METHOD
            self.quantization = quantization
            self.layers = layers

    class Quantizer(HfQuantizer):  # type: ignore[misc]
        """Swaps the layers of an empty model; tensors then come by name, each in its own dtype."""

        def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
            asked = self.quantization_config
            _swap(model, asked.layers, asked.quantization)
            return model

        def is_serializable(self, *_: Any, **__: Any) -> bool:
            return False

        @property
        def is_trainable(self) -> bool:
            return True

    register_quantization_config(_METHOD)(Config)
    register_quantizer(_METHOD)(Quantizer)
