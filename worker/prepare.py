"""From a job's files in the store to tokenised examples in its folder. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from manylora import keys
from manylora.datasets.arrays import load_arrays
from manylora.datasets.limits import Limits
from manylora.datasets.tokenize import Tokenizer, Totals, encode_file
from manylora.errors import BadSpecError, DatasetError, IntegrityError, NotFoundError
from manylora.ledger.tables import File
from manylora.storage.store import Store

#: a dataset's file in a job's folder -> what people call it
KINDS = {"train": "training", "validation": "validation"}


def tokenizer_of(base: Path, chat_template: str | None) -> Tokenizer:
    """The base's own tokenizer, with its end-of-text token and its chat template.

    Raises: BadSpecError when the base names no end-of-text token.
    """
    config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    named = base / "tokenizer_config.json"
    eos: Any = None
    if named.is_file():
        eos = json.loads(named.read_text(encoding="utf-8")).get("eos_token")
        if isinstance(eos, dict):
            eos = eos.get("content")
    if eos is None:
        eos = config.get("eos_token_id")
        eos = eos[0] if isinstance(eos, list) else eos
    if eos is None:
        raise BadSpecError("the base's tokenizer names no end-of-text token")
    return Tokenizer(base / "tokenizer.json", eos=eos, chat_template=chat_template)


def fetch_dataset(store: Store, file: File, target: Path) -> None:
    """Download a dataset and check its digest; twice, for the first time may have been the wire's.

    Raises: DatasetError when it is gone or is not what was uploaded.
    """
    key = keys.dataset_key(str(file.tenant_id), file.sha256)
    named = f"{file.id} ({file.filename})"
    for last in (False, True):
        try:
            store.get_file(key, target, file.sha256)
            return
        except NotFoundError as error:
            raise DatasetError(
                f"{named} is no longer in the store: upload it again and submit a new job",
                code="file_gone",
            ) from error
        except IntegrityError as error:
            if last:
                raise DatasetError(
                    f"{named} in the store is not what was uploaded (its sha256 differs): "
                    "upload it again and submit a new job",
                    code="file_changed",
                ) from error


def write_examples(
    tokenizer: Tokenizer,
    source: Path,
    target: Path,
    max_length: int,
    totals: Totals | None = None,
) -> int:
    """Tokenise a JSONL file into the safetensors the trainer reads; returns the examples.

    input_ids int32 [T] of all examples end to end, mask bool [T] (True: a label),
    offsets int64 [B + 1]. Raises: DatasetError.
    """
    ids: list[int] = []
    mask: list[bool] = []
    offsets = [0]
    for example in encode_file(source, tokenizer, max_length, totals):
        ids.extend(example.input_ids)
        mask.extend(example.mask)
        offsets.append(len(ids))
    save_file(
        {
            "input_ids": np.asarray(ids, dtype=np.int32),
            "mask": np.asarray(mask, dtype=np.bool_),
            "offsets": np.asarray(offsets, dtype=np.int64),
        },
        str(target),
    )
    return len(offsets) - 1


def write_arrays(
    source: Path, target: Path, network: dict[str, Any], limits: Limits | None = None
) -> int:
    """A file of arrays as the safetensors the trainer reads; returns the examples.

    Raises: DatasetError.
    """
    x, y = load_arrays(source, limits or Limits(), network)
    save_file({"x": x, "y": y}, str(target))
    return len(x)


def cut(lines: list[int], name: str, max_length: int) -> str:
    """Which examples of a file were truncated, for people."""
    shown = ", ".join(map(str, lines[:20])) + (", …" if len(lines) > 20 else "")
    plural = "" if len(lines) == 1 else "s"
    return (
        f"{len(lines):,} {name} example{plural} truncated at {max_length:,} tokens: "
        f"line{plural} {shown}"
    )
