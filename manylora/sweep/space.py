"""What a sweep tries: `name=value,value` options to a grid of values, or a draw from it."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from dataclasses import dataclass
from typing import Any

from manylora.errors import UsageError

Params = dict[str, Any]
#: option -> how a value is read; all else would change what a step is
KEYS: dict[str, type] = {
    "lora_r": int,
    "lora_alpha": float,
    "learning_rate": float,
    "learning_rate_multiplier": float,
    "lora_dropout": float,
    "weight_decay": float,
    "warmup_ratio": float,
    "lr_schedule": str,
    "target_modules": str,
}

_KINDS = {int: "whole number", float: "number", str: "word"}


@dataclass(frozen=True)
class Axis:
    """One hyperparameter: the values it may take, or (log-uniformly) any between two."""

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0


def axis(text: str) -> Axis:
    """`lora_r=4,8,16`, `target_modules=all-linear,q_proj+v_proj` or `learning_rate=1e-5..1e-3`.

    Raises: UsageError.
    """
    name, equals, rest = text.partition("=")
    if not equals or not rest:
        raise UsageError(f"--over {text}: is not name=value,value", hint="--over lora_r=4,8,16")
    if name not in KEYS:
        raise UsageError(f"--over {name}: cannot be swept", hint=f"these can: {', '.join(KEYS)}")
    low, dots, high = rest.partition("..")
    if dots:
        ends = _read(name, low), _read(name, high)
        if KEYS[name] is str or not 0 < ends[0] < ends[1]:
            raise UsageError(f"--over {text}: is no range of positive numbers, low..high")
        return Axis(name, low=float(ends[0]), high=float(ends[1]))
    values = tuple(_read(name, value.strip()) for value in rest.split(","))
    return Axis(name, tuple(dict.fromkeys(values)))


def _read(name: str, text: str) -> Any:
    try:
        value = KEYS[name](text)
    except ValueError as error:
        raise UsageError(f"--over {name}: {text!r} is no {_KINDS[KEYS[name]]}") from error
    if not text or (isinstance(value, float) and not math.isfinite(value)):
        raise UsageError(f"--over {name}: {text!r} is no value")
    return value


def trials(axes: list[Axis], count: int | None, seed: int) -> list[Params]:
    """Every combination, or `count` drawn without repetition; the same for the same seed.

    Raises: UsageError for a range in a full grid, or a name given twice.
    """
    names = [one.name for one in axes]
    if len(set(names)) < len(names):
        raise UsageError("--over: a name is given twice")
    ranges = [one.name for one in axes if not one.values]
    if count is None:
        if ranges:
            raise UsageError(f"--over {ranges[0]}: a range needs --random N")
        return [dict(zip(names, row, strict=True)) for row in _grid(axes)]
    draw = random.Random(seed)  # noqa: S311
    if not ranges:
        grid = _grid(axes)
        rows = draw.sample(grid, min(count, len(grid)))
        return [dict(zip(names, row, strict=True)) for row in rows]
    return [{one.name: _drawn(one, draw) for one in axes} for _ in range(count)]


def _grid(axes: list[Axis]) -> list[tuple[Any, ...]]:
    return list(itertools.product(*(one.values for one in axes)))


def _drawn(one: Axis, draw: random.Random) -> Any:
    if one.values:
        return draw.choice(one.values)
    value = math.exp(draw.uniform(math.log(one.low), math.log(one.high)))
    return round(value) if KEYS[one.name] is int else float(f"{value:.3g}")


def hyperparameters(params: Params) -> Params:
    """A trial's values as the wire takes them: `q_proj+v_proj` is a list of names."""
    wanted = params.get("target_modules")
    if wanted is None or wanted == "all-linear":
        return params
    return {**params, "target_modules": wanted.split("+")}


def label(params: Params) -> str:
    """A trial in a few words: `lora_r=4 learning_rate=0.0005`."""
    return " ".join(f"{name}={_short(value)}" for name, value in params.items())


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def digest(value: Any) -> str:
    """Ten characters that stand for a plain value."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
