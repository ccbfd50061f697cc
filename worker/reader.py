"""A job's datasets as the trainer takes them: downloaded, and tokenised or unpacked. Imports no
torch. How one file is turned into the other is `prepare.py`'s."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock

import structlog

from manylora.datasets.arrays import reads_arrays
from manylora.datasets.limits import Limits
from manylora.datasets.tokenize import Tokenizer, Totals
from manylora.errors import ManyloraError
from manylora.ledger import leases
from manylora.ledger.database import Database
from manylora.ledger.tables import Base, File, Job
from manylora.settings import Settings
from manylora.storage.store import Store
from worker import prepare

log = structlog.get_logger(__name__)
#: makes a call that the store may not answer at once
Insist = Callable[[Callable[[], None]], None]


class Reader:
    """What the jobs of one worker read with."""

    def __init__(
        self, settings: Settings, database: Database, store: Store, base_folder: Path
    ) -> None:
        self._limits = Limits.from_settings(settings)
        self._database = database
        self._store = store
        self._folder = base_folder
        self._tokenizer: Tokenizer | None = None
        self._lock = Lock()

    def warm(self, base: Base) -> None:
        """Read what every job needs of the base, so that the first one does not wait for it."""
        try:
            self.tokenizer(base)
        except ManyloraError as error:
            log.warning("worker.no_tokenizer", base=base.name, error=error.message)  # jobs say so

    def tokenizer(self, base: Base) -> Tokenizer | None:
        """The base's tokenizer, read once: it may be hundreds of megabytes, so jobs share it. None
        for a base that reads arrays."""
        if reads_arrays(base.network):
            return None
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = prepare.tokenizer_of(self._folder, base.chat_template)
            return self._tokenizer

    def read(self, job: Job, base: Base, files: list[File], folder: Path, insist: Insist) -> None:
        """Put `train.safetensors` and, of the second file, `validation.safetensors` into `folder`.

        Raises: DatasetError, BadSpecError, LostError, UnavailableError, OSError.
        """
        tokenizer = self.tokenizer(base)
        for file, name in zip(files, ("train", "validation"), strict=False):
            ending = ".jsonl" if tokenizer is not None else f"-sent{Path(file.filename).suffix}"
            source, target = folder / f"{name}{ending}", folder / f"{name}.safetensors"
            insist(partial(prepare.fetch_dataset, self._store, file, source))
            if tokenizer is None:
                prepare.write_arrays(source, target, base.network or {}, self._limits)
            else:
                self._tokenise(job, tokenizer, source, target, prepare.KINDS[name])

    def _tokenise(
        self, job: Job, tokenizer: Tokenizer, source: Path, target: Path, kind: str
    ) -> None:
        length = int(job.hyperparameters["context_length"])
        totals = Totals()
        prepare.write_examples(tokenizer, source, target, length, totals)
        if totals.truncated:
            told = prepare.cut(totals.truncated, kind, length)
            with self._database.transaction() as tx:
                leases.note(tx, job, told, actor="worker", level="warn")
