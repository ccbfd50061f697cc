"""lora_core: the mathematics of LoRA, on torch and safetensors alone.

No environment, no database, no object store, no transformers: a library for any nn.Module, and
the engine under the service. `README.md` beside this file shows twenty lines of use.
"""

from lora_core.arrays import ArrayExamples, ArrayTask
from lora_core.combine import combine
from lora_core.digest import weights_digest
from lora_core.errors import (
    DivergedError,
    FormatError,
    LoraError,
    MemoryLimitError,
    SpecError,
    TargetError,
)
from lora_core.examples import Examples, batches, total_steps
from lora_core.extract import extract
from lora_core.inject import activate, eject, inject, targets
from lora_core.job import StepReport, TrainingJob
from lora_core.layer import LoraLinear
from lora_core.loss import row_loss, token_loss
from lora_core.memory import Costs
from lora_core.merge import fold, merge, unmerge
from lora_core.optim import AdamW, clip_
from lora_core.peft_format import from_peft_config, load_adapter, save_adapter, to_peft_config
from lora_core.resize import Kept, resize
from lora_core.rng import permutation, uniform
from lora_core.schedule import learning_rate
from lora_core.spec import AdapterSpec
from lora_core.state import State
from lora_core.trainer import Trainer

__all__ = [
    "AdamW",
    "AdapterSpec",
    "ArrayExamples",
    "ArrayTask",
    "Costs",
    "DivergedError",
    "Examples",
    "FormatError",
    "Kept",
    "LoraError",
    "LoraLinear",
    "MemoryLimitError",
    "SpecError",
    "State",
    "StepReport",
    "TargetError",
    "Trainer",
    "TrainingJob",
    "activate",
    "batches",
    "clip_",
    "combine",
    "eject",
    "extract",
    "fold",
    "from_peft_config",
    "inject",
    "learning_rate",
    "load_adapter",
    "merge",
    "permutation",
    "resize",
    "row_loss",
    "save_adapter",
    "targets",
    "to_peft_config",
    "token_loss",
    "total_steps",
    "uniform",
    "unmerge",
    "weights_digest",
]
