"""Kernels in C for processors with AMX bf16: the products, attention, head and row-wise parts of a
decoder, each giving a row the same bits whatever lies beside it and however many threads there are.

`library.py` compiles and loads them, `kernels.py` calls them with tensors; the sources lie beside.
What a machine cannot run is done by the rest of `lora_core`, more slowly.
"""

from lora_core.native.kernels import Kernels
from lora_core.native.library import NativeError, load

__all__ = ["Kernels", "NativeError", "load"]
