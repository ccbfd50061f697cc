"""Bring a registered base onto this machine: from the object store, verified, exactly once."""

from __future__ import annotations

import fcntl
from pathlib import Path

from manylora import keys
from manylora.ledger.tables import Base
from manylora.storage.store import Store, sha256_of
from worker.bases.card import CARD, Card


def ensure(store: Store, cache: Path, base: Base) -> Path:
    """The folder of a base: what this machine lacks, or holds damaged, is fetched; every digest
    is checked.

    Two workers of one machine wait for each other. Raises: IntegrityError, NotFoundError,
    UnavailableError.
    """
    folder = cache / base.fingerprint
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{base.fingerprint}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder.mkdir(exist_ok=True)
        for file in base.files:
            path = folder / keys.safe_file(file["name"])
            if path.is_file() and sha256_of(path) == file["sha256"]:
                continue
            store.get_file(keys.base_key(base.fingerprint, path.name), path, file["sha256"])
        if (folder / CARD).is_file():
            return folder
        Card(
            name=base.name,
            fingerprint=base.fingerprint,
            dtype=base.dtype,
            architecture=base.architecture,
            source=base.source,
            parameters=base.parameters,
            hidden_size=base.hidden_size,
            bytes=base.bytes,
            chat_template=base.chat_template,
            files=base.files,
            layers=base.layers,
            quantization=base.quantization,
            network=base.network,
        ).write(folder)
        return folder
