"""manylora: a fine-tuning job service. One frozen base, many LoRA adapters.

Floor 1 and the faces live here; nothing in this package imports torch. The mathematics are in
`lora_core`, the two leaves of the service in `scheduler` and `worker`.
"""

__version__ = "0.1.0"
