"""A decoder's forward and backward written out by hand, for models of the Llama pattern on the
native kernels: no autograd, nothing kept that can be made again.

`plan.py` recognises such a model, `linear.py` is a linear group with its adapters, `block.py` one
layer, `decoder.py` all of them with embedding and head. Other models and machines go through
`forward.py`'s general way; both are held to the same reference.
"""

from lora_core.decoder.decoder import Decoder
from lora_core.decoder.plan import recognise

__all__ = ["Decoder", "recognise"]
