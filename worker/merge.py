"""An adapter and its base to a model of its own, for whatever loads plain transformers folders."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lora_core import LoraError, fold, load_adapter
from manylora.errors import BadSpecError, UsageError
from manylora.storage.store import sha256_of
from worker.bases.card import CARD, Card, read
from worker.describe import base_of
from worker.trainer.load import load_base

_WEIGHTS = "adapter_model.safetensors"


def merge(adapter: Path, base_folder: Path, out: Path, *, force: bool = False) -> dict[str, Any]:
    """Fill the folder `out`: safetensors in the base's dtype, its config and tokenizer files.

    The sum is rounded once. Raises: UsageError when the adapter's manifest names another base, or
    when there is no manifest and not `force`; BadSpecError for an adapter that does not fit;
    OSError.
    """
    card = read(base_folder)
    _must_fit(adapter, card, force)
    model = load_base(base_folder, "cpu", None)
    try:
        load_adapter(model, adapter)
        fold(model)
    except LoraError as error:
        raise BadSpecError(
            f"{adapter} does not fit {card.name}: {error}", code=error.code
        ) from error
    try:
        model.save_pretrained(out, max_shard_size="2GB")
    except SafetensorError as error:
        full = f"os error {errno.ENOSPC}" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error
    for path in sorted(base_folder.iterdir()):
        # The base's own words, not those of a model that was loaded to be trained.
        if path.is_file() and not _of_the_weights(path) and not path.name.startswith("."):
            shutil.copyfile(path, out / path.name)
    return {
        "base": card.name,
        "base_fingerprint": card.fingerprint,
        "dtype": card.dtype,
        "adapter_sha256": sha256_of(adapter / _WEIGHTS),
        "bytes": sum(path.stat().st_size for path in out.iterdir()),
    }


def _must_fit(adapter: Path, card: Card, force: bool) -> None:
    named = base_of(adapter)
    if named is None:
        if not force:
            raise UsageError(
                f"{adapter} has no manifest.json: nothing says which base it was trained on",
                hint=f"if you know that it was {card.name}, add --force",
            )
        return
    if named["fingerprint"] != card.fingerprint:
        raise UsageError(
            f"{adapter} was trained on {named['name']} ({named['fingerprint'][:12]}…), not on "
            f"{card.name} ({card.fingerprint[:12]}…)",
            code="wrong_base",
            hint=f"give that base: --base {named['name']}",
        )


def _of_the_weights(path: Path) -> bool:
    weights = path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json")
    return weights or path.name == CARD or path.name.startswith("costs-")
