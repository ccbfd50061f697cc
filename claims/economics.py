"""Implementing LoRA From Scratch for Fine-tuning LLMs. What a thousand customers of a 175B model
cost, by the project's formulas: GPT-3's 96 layers of width 12288 as layers without memory.
"""

from __future__ import annotations

from torch import nn

from claims.row import Claim, Found, Place, near
from lora_core.inject import candidates
from lora_core.memory import size_of
from lora_core.quantize import bits_per_weight, weight_bytes
from lora_core.spec import AdapterSpec

DOCUMENT = "Implementing LoRA From Scratch for Fine-tuning LLMs"
CUSTOMERS = 1_000
#: weights are kept in 16 bits
HALF = 2
WIDTH, LAYERS, VOCABULARY, POSITIONS = 12_288, 96, 50_257, 2_048


class _Block(nn.Module):
    """One layer's matrices."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("q", "k", "v", "o"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH, device="meta"))
        self.up = nn.Linear(WIDTH, 4 * WIDTH, device="meta")
        self.down = nn.Linear(4 * WIDTH, WIDTH, device="meta")


def _model() -> nn.Module:
    return nn.ModuleList(_Block() for _ in range(LAYERS))


def _adapter_bytes(model: nn.Module, names: tuple[str, ...], r: int) -> int:
    hit = [name for name in candidates(model) if name.rpartition(".")[2] in names]
    return HALF * size_of(model, AdapterSpec(r=r), hit).numbers


def _checkpoint(_: Place) -> Found:
    embedded = (VOCABULARY + POSITIONS) * WIDTH
    total = sum(p.numel() for p in _model().parameters()) + embedded
    size = total * HALF / 1e9
    said = f"{total / 1e9:.1f}B parameters, {size:.0f} GB in 16 bits"
    return said, near(total, 175e9, 0.01) and near(size, 350, 0.01)


def _customers(_: Place) -> Found:
    model = _model()
    embedded = (VOCABULARY + POSITIONS) * WIDTH
    whole = HALF * (sum(p.numel() for p in model.parameters()) + embedded)
    small = _adapter_bytes(model, ("q", "v"), 4)
    large = _adapter_bytes(model, ("q", "k", "v", "o", "up", "down"), 16)
    full = CUSTOMERS * whole
    shared = whole + CUSTOMERS * small
    said = (
        f"an adapter is {small / 1e6:.1f} MB (q and v, r = 4) or {large / 1e6:.0f} MB (every "
        f"layer, r = 16); {CUSTOMERS:,} customers: {full / 1e12:.0f} TB of copies, or "
        f"{shared / 1e9:.0f} GB with one base and small adapters"
    )
    return said, whole / small > 9_000 and full / shared > 900


def _quantised(_: Place) -> Found:
    bits = bits_per_weight("nf4")
    size = weight_bytes("nf4", 175_000_000_000) / 1e9
    said = f"{bits:.3f} bits a weight; 175B parameters in {size:.0f} GB instead of 350"
    return said, near(bits, 4.127, 0.001) and size < 100


CLAIMS = [
    Claim("checkpoint", DOCUMENT, "175B parameters are about 350 GB", _checkpoint),
    Claim("a thousand customers", DOCUMENT, "copies are prohibitive, adapters are not", _customers),
    Claim("QLoRA", DOCUMENT, "a quantised base lowers the cost further", _quantised),
]
