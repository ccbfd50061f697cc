"""Bases that a function builds, instead of transformers: registered from safetensors, and built in
the trainer.

The function's import path is an operator's word and its package is installed on the worker by the
operator: nothing of it is ever uploaded, and no tenant can name one. A worker imports only modules
its own setting `factories` lists, so neither a stolen operator's key nor a stranger's folder makes
it run another function. Weights are safetensors, never pickles.
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from lora_core import ArrayTask, LoraError
from lora_core.array_forward import ArrayForward
from lora_core.forward import Forward
from lora_core.inject import candidates
from lora_core.layer import LoraLinear
from lora_core.lookup import LoraEmbedding
from manylora.datasets.templates import template_text
from manylora.errors import UsageError
from manylora.storage.store import sha256_of
from worker.bases.card import Card, fingerprint, read

WEIGHTS = "model.safetensors"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_TEMPLATE = "chat_template.jinja"
Json = dict[str, Any]


def task_of(network: Json | None) -> ArrayTask | None:
    """What a network of arrays is asked for; None for a causal LM."""
    if network is None or network["task"] == "causal-lm":
        return None
    into = network["input"]
    return ArrayTask(network["task"], tuple(into["shape"]), getattr(torch, into["dtype"]))


def allow(network: Json, factories: str) -> None:
    """Raises: UsageError unless the factory's module, or a package above it, is in the list."""
    module = network["factory"].partition(":")[0]
    listed = [each.strip() for each in factories.split(",") if each.strip()]
    if not any(f"{module}.".startswith(f"{each}.") for each in listed):
        raise UsageError(
            f"this machine does not build networks of {module}",
            hint=f"its operator may list the module in MANYLORA_FACTORIES={module}",
        )


def build(network: Json, weights: Path, dtype: str) -> nn.Module:
    """The network with its weights, frozen, in evaluation mode. Imports the factory's module: see
    `allow`. Raises: UsageError."""
    module, _, name = network["factory"].partition(":")
    try:
        make: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"{network['factory']} cannot be imported: {error}",
            hint="install its package beside the worker",
        ) from error
    try:
        model = make(**network["args"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{network['factory']} builds nothing: {error}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"{network['factory']} builds no torch.nn.Module")
    try:
        found = model.load_state_dict(load_file(str(weights)), strict=False)
    except (OSError, RuntimeError, SafetensorError) as error:
        said = str(error).splitlines()[-1].strip()
        raise UsageError(f"{weights.name} is not this network's: {said}") from error
    tied = {each for names in _tied(model) for each in names[1:]}
    lacking = sorted(set(found.missing_keys) - tied)
    if lacking or found.unexpected_keys:
        wrong = lacking or found.unexpected_keys
        what = "lacks" if lacking else "holds"
        raise UsageError(f"{weights.name} {what} {wrong[0]}, so it is not this network's")
    model.requires_grad_(False)
    return model.eval().to(getattr(torch, dtype))


def require_text(folder: Path) -> None:
    """Raises: UsageError for a base that reads arrays."""
    if task_of(read(folder).network) is not None:
        raise UsageError("this base reads arrays, and no prompt")


def prepare(
    name: str,
    cache: Path,
    *,
    factory: str,
    args: Json,
    weights: Path,
    task: str,
    shape: tuple[int, ...] | None,
    input_dtype: str,
    dtype: str,
    tokenizer: Path | None,
    chat_template: str | None,
    progress: Callable[[str], None],
) -> tuple[Card, Path]:
    """Try a network out and put it into the cache; returns its card and its folder.

    Raises: UsageError for one that cannot be built, or trained for `task`.
    """
    if weights.suffix != ".safetensors":
        raise UsageError(f"{weights.name} is no .safetensors file", hint="pickles are refused")
    network: Json = {"task": task, "factory": factory, "args": args, "input": None, "output": None}
    progress(f"building {factory}")
    model = build(network, weights, dtype)
    facts: Json = {
        "architecture": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    try:
        layers = (
            _text(model, tokenizer)
            if task == "causal-lm"
            else _arrays(model, network, shape, input_dtype)
        )
    except LoraError as error:
        raise UsageError(f"{factory} cannot be trained for {task}: {error}") from error
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".making-") as scratch:
        made = Path(scratch) / "base"
        made.mkdir()
        shutil.copyfile(weights, made / WEIGHTS)
        if tokenizer is not None:
            _copy_tokenizer(tokenizer, made, chat_template)
        files: list[Json] = [
            {"name": p.name, "sha256": sha256_of(p), "bytes": p.stat().st_size}
            for p in sorted(made.iterdir())
        ]
        template = made / _TEMPLATE
        config = getattr(model, "config", None)
        widest = max(min(sizes) for sizes in layers.values())
        card = Card(
            name=name,
            fingerprint=fingerprint(dtype, files, network=network),
            dtype=dtype,
            source=f"factory:{factory}",
            hidden_size=int(getattr(config, "hidden_size", None) or widest),
            bytes=sum(file["bytes"] for file in files),
            chat_template=template.read_text(encoding="utf-8") if template.exists() else None,
            files=files,
            layers=layers,
            network=network,
            **facts,
        )
        return card, card.keep(made, cache)


def _arrays(
    model: nn.Module, network: Json, shape: tuple[int, ...] | None, dtype: str
) -> dict[str, list[int]]:
    """Its layers; what it reads and makes goes into `network`."""
    if shape is None:
        raise UsageError("--input-shape is needed: one example's x, as in 3,32,32")
    network["input"] = {"shape": list(shape), "dtype": dtype, "below": None}
    network["output"] = []
    task = task_of(network)
    assert task is not None
    tried = ArrayForward(model, task)
    network["input"]["below"] = tried.below
    network["output"] = list(tried.outputs)
    return _layers(model)


def _text(model: nn.Module, tokenizer: Path | None) -> dict[str, list[int]]:
    if tokenizer is None:
        raise UsageError("--tokenizer is needed: a folder with the causal LM's tokenizer.json")
    asked = ("get_output_embeddings", "get_input_embeddings", "base_model_prefix", "config")
    lacking = [each for each in asked if not hasattr(model, each)]
    if lacking:
        raise UsageError(
            f"a causal-lm offers what transformers' models do, and this one has no {lacking[0]}",
            hint=f"it needs {', '.join(asked)}, and a forward with input_ids and position_ids",
        )
    Forward(model)
    return _layers(model)


def _layers(model: nn.Module) -> dict[str, list[int]]:
    """What "all-linear" reaches: no embeddings."""
    return {
        name: [module.in_features, module.out_features]
        for name, module in candidates(model).items()
        if isinstance(module, LoraLinear) and not isinstance(module, LoraEmbedding)
    }


def _tied(model: nn.Module) -> list[list[str]]:
    """Names of parameters that are one."""
    by_place: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_place.setdefault(id(parameter), []).append(name)
    return [sorted(names) for names in by_place.values() if len(names) > 1]


def _copy_tokenizer(source: Path, made: Path, chat_template: str | None) -> None:
    for name in _TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, made / name)
    if not (made / _TOKENIZER[0]).is_file():
        raise UsageError(f"{source} holds no {_TOKENIZER[0]}")
    (made / "config.json").write_text("{}\n", encoding="utf-8")
    if chat_template:
        (made / _TEMPLATE).write_text(template_text(chat_template), encoding="utf-8")
