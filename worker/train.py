"""The trainer alone, without a service: a dataset and a base in, an adapter folder out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_core import Trainer
from manylora import hyperparameters as hp
from manylora.datasets.arrays import require_kind
from manylora.datasets.tokenize import Totals
from manylora.errors import TrainingError
from worker.bases.card import read
from worker.bases.network import task_of
from worker.main import pick_device
from worker.prepare import KINDS, cut, tokenizer_of, write_arrays, write_examples
from worker.trainer.child import training_job
from worker.trainer.load import kernels_in, load_base


def train(
    *,
    file: Path,
    base_folder: Path,
    out: Path,
    validation: Path | None,
    seed: int,
    device: str,
    kernels: Path | None = None,
    factories: str = "",
    hyperparameters: dict[str, Any],
    progress: Callable[[dict[str, Any]], None],
    warn: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Train on one machine; returns where the adapter is and how it went. `kernels` is the folder
    the native kernels are kept in, `factories` the modules that may build a base.

    The bytes are those the service publishes for the same job. Raises: BadSpecError,
    DatasetError, TrainingError.
    """
    card = read(base_folder)
    resolved = hp.resolve(
        hp.parse(hyperparameters), hidden_size=card.hidden_size, layers=card.layers
    )
    hp.check_layers(resolved, card.layers)
    task = task_of(card.network)
    tokenizer = tokenizer_of(base_folder, card.chat_template) if task is None else None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for source, name in ((file, "train"), (validation, "validation")):
            if source is not None:
                totals, length = Totals(), resolved.context_length
                target = folder / f"{name}.safetensors"
                require_kind(source.name, card.network, KINDS[name])
                if tokenizer is None:
                    write_arrays(source, target, card.network or {})
                else:
                    write_examples(tokenizer, source, target, length, totals)
                if totals.truncated:
                    warn(cut(totals.truncated, KINDS[name], length))
        where = pick_device(device)
        trainer = Trainer(
            load_base(base_folder, where, None, factories),
            slots=1,
            kernels=kernels_in(kernels, where),
            arrays=task,
        )
        order = {
            "hyperparameters": resolved.as_json(),
            "seed": seed if seed is not None else 0,
            "folder": str(folder),
        }
        trainer.join(training_job("train", order, task is not None))
        while True:
            report = trainer.step()[0]
            if report.error is not None:
                raise TrainingError(str(report.error), code=report.error.code)
            told = {
                "step": report.step,
                "total_steps": report.total_steps,
                "train_loss": report.loss,
            }
            if report.validation_loss is not None:
                told["valid_loss"] = report.validation_loss
            progress(told)
            if report.finished:
                break
        trainer.export("train", out, base_model_name=card.name)
    return {"out": str(out), **told}
