"""Bases held in few bits: the linear layers' weights as codes, each made whole for the one product
that reads it. Embeddings, norms and the output head stay as they are, as in QLoRA.

One file for each quantisation and its paper (`nf4`, `int8`, `int4`), the layer that stands where a
linear layer stood (`layer`), the room whole weights are made in (`scratch`), and what it saves
(`sizes`).
"""

from lora_core.quantize.layer import QuantizedLinear, quantize_layers
from lora_core.quantize.method import METHODS, Method, method_of, name_of
from lora_core.quantize.sizes import bits_per_weight, weight_bytes

__all__ = [
    "METHODS",
    "Method",
    "QuantizedLinear",
    "bits_per_weight",
    "method_of",
    "name_of",
    "quantize_layers",
    "weight_bytes",
]
