"""What a job trains with: the wire's keys, their limits, and how "auto" resolves.

The spelling is OpenAI's (`n_epochs`, `batch_size`, `learning_rate_multiplier`) with the extension
keys other services use (`lora_r`, `learning_rate`, `context_length`, …). Defaults follow
"LoRA Without Regret": every linear layer, rank 32 (less where a layer is narrower), alpha equal to
the rank, a learning rate that depends on the base's width only: 5e-5 * 10 * (2000 / hidden)^0.0775.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from manylora import advice
from manylora.errors import BadSpecError

AUTO_EPOCHS = 3
AUTO_BATCH = 4
AUTO_RANK = 32
#: inputs that share a number of QA-LoRA's A, as in PEFT
AUTO_GROUP = 16
_WIDTH_EXPONENT = 0.0775

_DORA_QALORA = (
    "use_dora and use_qalora cannot be one adapter: DoRA scales whole rows of the base, and "
    "QA-LoRA's point is that merging leaves a quantised base's numbers as they are"
)
_DORA_SCALING = (
    "use_dora and learnable_scaling cannot be one adapter: DoRA's magnitudes learn the scale of "
    "every row already"
)

Auto = Literal["auto"]
_Count = Annotated[int, Meta(ge=1, le=256)]


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Hyperparameters as a client may send them; everything may be left out."""

    n_epochs: Auto | Annotated[int, Meta(ge=1, le=50)] = "auto"
    batch_size: Auto | _Count = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Meta(gt=0, le=1000)] = "auto"
    learning_rate: Annotated[float, Meta(gt=0, le=1)] | None = None
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_ratio: Annotated[float, Meta(ge=0, lt=1)] = 0.03
    weight_decay: Annotated[float, Meta(ge=0, le=1)] = 0.0
    max_grad_norm: Annotated[float, Meta(gt=0)] = 1.0
    lora_r: Auto | Annotated[int, Meta(ge=1, le=1024)] = "auto"
    lora_alpha: Annotated[float, Meta(gt=0)] | None = None
    lora_dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    learnable_scaling: bool = False
    use_qalora: bool = False
    qalora_group_size: Annotated[int, Meta(ge=2)] | None = None
    loraplus_lr_ratio: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    longlora_group_size: Annotated[int, Meta(ge=2, multiple_of=2)] | None = None
    train_norms: bool = False
    train_embeddings: bool = False
    target_modules: str | list[str] = "all-linear"
    context_length: Annotated[int, Meta(ge=8)] = 1024
    gradient_accumulation_steps: _Count = 1
    eval_every: Annotated[int, Meta(ge=1)] | None = None
    early_stopping_patience: Annotated[int, Meta(ge=1)] | None = None
    early_stopping_min_delta: Annotated[float, Meta(ge=0)] = 0.0
    quality_report: bool = False


class Hyperparameters(msgspec.Struct, frozen=True):
    """Resolved: what the trainer is told. Learning rate per optimizer step, lengths in tokens."""

    n_epochs: int
    batch_size: int
    learning_rate: float
    learning_rate_multiplier: float
    lr_schedule: Literal["constant", "linear", "cosine"]
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    lora_r: int
    lora_alpha: float
    lora_dropout: float
    use_rslora: bool
    use_dora: bool
    learnable_scaling: bool
    use_qalora: bool
    qalora_group_size: int | None
    loraplus_lr_ratio: float
    longlora_group_size: int | None
    train_norms: bool
    train_embeddings: bool
    target_modules: str | list[str]
    context_length: int
    gradient_accumulation_steps: int
    eval_every: int | None
    early_stopping_patience: int | None
    early_stopping_min_delta: float
    quality_report: bool

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON column."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


def parse(raw: dict[str, Any] | None) -> Asked:
    """Read what a client sent.

    Raises: BadSpecError naming the key, its value's limit and the JSON path, or the variants that
    cannot be one adapter.
    """
    try:
        asked = msgspec.convert(
            {k: v for k, v in (raw or {}).items() if v is not None and k != "lora"}, Asked
        )
    except msgspec.ValidationError as error:
        path = re.search(r"\$\.(\w+)", str(error))
        known = ", ".join(f.name for f in msgspec.structs.fields(Asked))
        raise BadSpecError(
            f"hyperparameters: {error}",
            param=f"hyperparameters.{path[1]}" if path else "hyperparameters",
            hint=f"known keys: {known}",
        ) from error
    for key, wrong, why in (
        ("use_qalora", asked.use_dora and asked.use_qalora, _DORA_QALORA),
        ("learnable_scaling", asked.use_dora and asked.learnable_scaling, _DORA_SCALING),
        (
            "qalora_group_size",
            asked.qalora_group_size is not None and not asked.use_qalora,
            "qalora_group_size is for QA-LoRA only: set use_qalora, too",
        ),
    ):
        if wrong:
            raise BadSpecError(f"hyperparameters: {why}", param=f"hyperparameters.{key}")
    return asked


def default_learning_rate(hidden_size: int) -> float:
    """The learning rate for a base of that width (LoRA Without Regret), rounded to 3 digits."""
    return float(f"{5e-5 * 10 * (2000 / hidden_size) ** _WIDTH_EXPONENT:.3g}")


def resolve(
    asked: Asked,
    *,
    hidden_size: int,
    layers: dict[str, list[int]] | None = None,
    size: advice.Size | None = None,
) -> Hyperparameters:
    """Numbers for every "auto"; where the dataset's `size` is known, those of `advice`.

    `layers` maps the base's module names to [in_features, out_features]; without it an "auto" rank
    is 32. Raises: BadSpecError when no layer matches an "auto" rank's target modules.
    """
    if size is not None and layers:
        asked = _advised(asked, hidden_size, layers, size)
    group = (asked.qalora_group_size or AUTO_GROUP) if asked.use_qalora else None
    if asked.lora_r == "auto":
        hit = matched(asked.target_modules, layers) if layers else {}
        most = [min(inputs // (group or 1), outputs) for inputs, outputs in hit.values()]
        rank = max(1, min([AUTO_RANK, *most]))
    else:
        rank = asked.lora_r
    multiplier = 1.0 if asked.learning_rate_multiplier == "auto" else asked.learning_rate_multiplier
    base_rate = asked.learning_rate or default_learning_rate(hidden_size)
    return Hyperparameters(
        n_epochs=AUTO_EPOCHS if asked.n_epochs == "auto" else asked.n_epochs,
        batch_size=AUTO_BATCH if asked.batch_size == "auto" else asked.batch_size,
        learning_rate=base_rate * multiplier,
        learning_rate_multiplier=multiplier,
        lr_schedule=asked.lr_schedule,
        warmup_ratio=asked.warmup_ratio,
        weight_decay=asked.weight_decay,
        max_grad_norm=asked.max_grad_norm,
        lora_r=rank,
        lora_alpha=asked.lora_alpha if asked.lora_alpha is not None else float(rank),
        lora_dropout=asked.lora_dropout,
        use_rslora=asked.use_rslora,
        use_dora=asked.use_dora,
        learnable_scaling=asked.learnable_scaling,
        use_qalora=asked.use_qalora,
        qalora_group_size=group,
        loraplus_lr_ratio=asked.loraplus_lr_ratio,
        longlora_group_size=asked.longlora_group_size,
        train_norms=asked.train_norms,
        train_embeddings=asked.train_embeddings,
        target_modules=asked.target_modules,
        context_length=asked.context_length,
        gradient_accumulation_steps=asked.gradient_accumulation_steps,
        eval_every=asked.eval_every,
        early_stopping_patience=asked.early_stopping_patience,
        early_stopping_min_delta=asked.early_stopping_min_delta,
        quality_report=asked.quality_report,
    )


def _advised(
    asked: Asked, hidden_size: int, layers: dict[str, list[int]], size: advice.Size
) -> Asked:
    """`asked` with what the dataset's size suggests for whatever was left open."""
    room = advice.Room.of(matched(asked.target_modules, layers))
    told = advice.advise(size, room, default_learning_rate(hidden_size))
    opened = {
        name: value
        for name, (value, _) in told.items()
        if name != "target_modules" and getattr(asked, name) in ("auto", None)
    }
    if asked.lora_r != "auto":
        opened.pop("lora_alpha", None)  # alpha follows a rank that was chosen
    return msgspec.structs.replace(asked, **opened)


def matched(wanted: str | list[str], layers: dict[str, list[int]]) -> dict[str, list[int]]:
    """The layers that `target_modules` name: all-linear, a regular expression, or names' endings.

    Raises: BadSpecError when there is none, listing what there is.
    """
    if wanted == "all-linear":
        hit = layers
    elif isinstance(wanted, str):
        try:
            hit = {name: shape for name, shape in layers.items() if re.fullmatch(wanted, name)}
        except re.error as error:
            raise BadSpecError(
                f"target_modules: {wanted!r} is not a regular expression: {error}",
                param="hyperparameters.target_modules",
            ) from error
    else:
        hit = {
            name: shape
            for name, shape in layers.items()
            if any(name == w or name.endswith("." + w) for w in wanted)
        }
    if not hit:
        there = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in layers}))
        raise BadSpecError(
            f"target_modules {wanted!r} match no layer of this base",
            param="hyperparameters.target_modules",
            hint=f"layers of this base: {there}; or all-linear",
        )
    return hit


def check_layers(hyper: Hyperparameters, layers: dict[str, list[int]]) -> list[str]:
    """Names of the base's layers the adapter will sit on, judged from the base's row alone.

    `layers` maps module names to [in_features, out_features].
    Raises: BadSpecError when no layer matches, the rank is larger than one of them, or QA-LoRA's
    groups do not part its inputs.
    """
    hit = matched(hyper.target_modules, layers)
    for name in hit:
        if hyper.lora_r > min(layers[name]):
            raise BadSpecError(
                f"lora_r {hyper.lora_r} is larger than the layer {name} ({layers[name]})",
                param="hyperparameters.lora_r",
                hint=f"at most {min(min(layers[n]) for n in hit)}",
            )
        if hyper.qalora_group_size is not None:
            _check_groups(name, layers[name][0], hyper.lora_r, hyper.qalora_group_size)
    return list(hit)


def _check_groups(name: str, inputs: int, rank: int, size: int) -> None:
    """Whether QA-LoRA's groups part a layer's inputs, into no fewer than the rank."""
    if inputs % size:
        raise BadSpecError(
            f"qalora_group_size {size} does not divide the {inputs} inputs of the layer {name}",
            param="hyperparameters.qalora_group_size",
        )
    if rank > inputs // size:
        raise BadSpecError(
            f"lora_r {rank} is larger than the {inputs // size} groups of {size} inputs that the "
            f"layer {name} has",
            param="hyperparameters.lora_r",
            hint=f"at most {inputs // size}, or a smaller qalora_group_size",
        )
