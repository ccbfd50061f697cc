"""Recognise a decoder of the Llama pattern: which module is which part of a layer.

    x ─┬─ norm ─ q,k,v ─ rotary ─ attention ─ o ─ (norm) ─ + ─┬─ norm ─ gate,up ─ down ─ (norm) ─ +
       └───────────────────────────────────────────────────┘ └─────────────────────────────────┘

Llama, Mistral, Qwen 2 and 3, Gemma 1 and 3 and all that are built like them. This file goes by
names and shapes; whether the model computes nothing else is found out by trying (`forward.py`).
E head width, D width, F width of the gate.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_core.attention import Asked
from lora_core.group import LinearGroup
from lora_core.layer import LoraLinear
from lora_core.ops import norm

#: rows of weights and of activations are taken in steps of this
_STEP = 32


@dataclass(frozen=True)
class Norm:
    """float32 weight [D] that multiplies x / rms(x), and epsilon; `part` is the model's own."""

    weight: Tensor
    eps: float
    part: norm.Norm


@dataclass(frozen=True)
class Layer:
    """One decoder layer. `window` 0 is no window; `angles` names its rotary embedding; `act` is 0
    for SiLU, 1 for GELU by tanh."""

    before_attention: Norm
    after_attention: Norm | None
    before_mlp: Norm
    after_mlp: Norm | None
    q_norm: Norm | None
    k_norm: Norm | None
    qkv: LinearGroup
    o: LinearGroup
    gate_up: LinearGroup
    down: LinearGroup
    heads: int
    groups: int
    width: int
    scale: float
    window: int
    angles: str
    act: int


@dataclass(frozen=True)
class Plan:
    """A decoder's layers, its last norm, and the modules that embed tokens and positions."""

    layers: list[Layer]
    norm: Norm
    embed: nn.Module
    rotary: nn.Module
    typed_rotary: bool

    def angles(self, positions: Tensor, like: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """cos and sin float32 [N, E] of every kind of layer, rounded as the model rounds them."""
        found = {}
        for kind in dict.fromkeys(layer.angles for layer in self.layers):
            given = (like[None], positions[None], *([kind] if self.typed_rotary else []))
            cosine, sine = self.rotary(*given)
            found[kind] = (cosine[0].float().contiguous(), sine[0].float().contiguous())
        return found


def recognise(model: nn.Module, asked: dict[int, Asked]) -> Plan | None:
    """The plan of a model whose linear layers carry slots and belong to groups; None for one that
    is built in another way. `asked` is what its attention modules were seen to ask for."""
    decoder: Any = getattr(model, getattr(model, "base_model_prefix", ""), None)
    if not all(hasattr(decoder, part) for part in ("layers", "norm", "embed_tokens", "rotary_emb")):
        return None
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    kinds = getattr(config, "layer_types", None)
    typed = "layer_type" in inspect.signature(decoder.rotary_emb.forward).parameters
    layers = []
    for index, module in enumerate(decoder.layers):
        kind = kinds[index] if typed and kinds else ""
        layer = _layer(module, kind, asked)
        if layer is None:
            return None
        layers.append(layer)
    last = _norm(decoder.norm)
    if last is None or not layers or last.weight.shape[0] % _STEP:
        return None
    return Plan(layers, last, decoder.embed_tokens, decoder.rotary_emb, typed)


def _layer(module: Any, kind: str, asked: dict[int, Asked]) -> Layer | None:
    attention, mlp = getattr(module, "self_attn", None), getattr(module, "mlp", None)
    parts = ("q_proj", "k_proj", "v_proj", "o_proj")
    if attention is None or mlp is None or not all(hasattr(attention, part) for part in parts):
        return None
    call = asked.get(id(attention))
    if call is None or call.softcap is not None:
        return None
    if not all(hasattr(mlp, part) for part in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        return None
    sandwich = hasattr(module, "pre_feedforward_layernorm")
    before_mlp = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"
    norms = [
        _norm(getattr(module, name, None))
        for name in ("input_layernorm", "post_attention_layernorm", before_mlp)
    ]
    after_mlp = _norm(module.post_feedforward_layernorm) if sandwich else None
    groups = [
        _group(attention, "q_proj", "k_proj", "v_proj"),
        _group(attention, "o_proj"),
        _group(mlp, "gate_proj", "up_proj"),
        _group(mlp, "down_proj"),
    ]
    act = _activation(mlp.act_fn)
    width = getattr(attention, "head_dim", 0)
    if act is None or not width or width % _STEP:
        return None
    first, second, third = norms
    if first is None or second is None or third is None or (sandwich and after_mlp is None):
        return None
    qkv, o, gate_up, down = groups
    if qkv is None or o is None or gate_up is None or down is None:
        return None
    q_norm, k_norm = (_norm(getattr(attention, name, None)) for name in ("q_norm", "k_norm"))
    for name, found in (("q_norm", q_norm), ("k_norm", k_norm)):
        if getattr(attention, name, None) is not None and found is None:
            return None
        if found is not None and found.weight.shape[0] != width:
            return None
    heads, keys = qkv.sizes[0] // width, qkv.sizes[1] // width
    if qkv.sizes != [heads * width, keys * width, keys * width] or heads % max(1, keys):
        return None
    return Layer(
        before_attention=first,
        after_attention=second if sandwich else None,
        before_mlp=third,
        after_mlp=after_mlp,
        q_norm=q_norm,
        k_norm=k_norm,
        qkv=qkv,
        o=o,
        gate_up=gate_up,
        down=down,
        heads=heads,
        groups=keys,
        width=width,
        scale=call.scale,
        window=call.window or 0,
        angles=kind,
        act=act,
    )


def _norm(module: Any) -> Norm | None:
    """What `ops/norm.py` made of a module it has taken over."""
    made = getattr(module, "forward", None)
    return Norm(made.factor, made.eps, made) if isinstance(made, norm.Norm) else None


def _group(module: Any, *names: str) -> LinearGroup | None:
    """The group of exactly these layers, in this order, if its shapes suit the kernels."""
    members = [getattr(module, name) for name in names]
    group = members[0].group if isinstance(members[0], LoraLinear) else None
    if group is None or group.members != members or members[0].transposed:
        return None
    weight = group.weight
    whole = all(size % _STEP == 0 for size in (*group.sizes, group.in_features))
    plain = weight.dtype == torch.bfloat16 and weight.is_contiguous()
    return group if whole and plain and weight.device.type == "cpu" else None


@torch.no_grad()
def _activation(function: Any) -> int | None:
    x = torch.linspace(-6.0, 6.0, 97)
    own = function(x)
    for number, made in ((0, F.silu(x)), (1, F.gelu(x, approximate="tanh"))):
        if torch.allclose(own, made, atol=1e-6):
            return number
    return None
