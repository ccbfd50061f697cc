"""Who ends the trainer? A job that was inside at two crashes running, without having got further
in between, is tried alone; while it is, nobody else joins. One worker's jobs share this.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock


@dataclass
class _Record:
    step: int = 0
    #: the furthest step it had made at a crash
    mark: int = -1
    crashes: int = 0
    #: how many of `crashes` it was alone at
    alone: int = 0
    inside: bool = False
    suspect: bool = False


class Quarantine:
    """The jobs of one trainer, by key. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        #: in the order they first asked, which is the order of the trials
        self._jobs: dict[str, _Record] = {}

    def enter(self, key: str) -> bool:
        """Let a job into the trainer, unless somebody else is being tried or waits for it."""
        with self._lock:
            record = self._jobs.setdefault(key, _Record())
            tried = next((k for k, r in self._jobs.items() if r.suspect), None)
            others = any(r.inside for k, r in self._jobs.items() if k != key)
            if tried is not None and (tried != key or others):
                return False
            record.inside = True
            return True

    def in_the_way(self, key: str) -> bool:
        """Whether this one, itself beyond suspicion, keeps another from being tried alone."""
        with self._lock:
            record = self._jobs.get(key)
            waits = any(r.suspect and not r.inside for r in self._jobs.values())
            return waits and record is not None and record.inside and not record.suspect

    def leave(self, key: str) -> None:
        """It is out of the trainer, and may come again."""
        with self._lock:
            if key in self._jobs:
                self._jobs[key].inside = False

    def forget(self, key: str) -> None:
        """It is over."""
        with self._lock:
            self._jobs.pop(key, None)

    def progress(self, key: str, step: int) -> None:
        """A step was made: one that goes beyond the last crash clears the job."""
        with self._lock:
            record = self._jobs.get(key)
            if record is None:
                return
            record.step = step
            if step > record.mark:
                record.crashes, record.alone, record.suspect = 0, 0, False

    def crash(self, *, memory: bool = False) -> None:
        """The trainer is gone, and everybody with it. Out of `memory` needs no second proof."""
        with self._lock:
            inside = [record for record in self._jobs.values() if record.inside]
            for record in inside:
                record.crashes += 1
                record.alone += len(inside) == 1 and record.suspect
                record.mark = max(record.mark, record.step)
                record.suspect = record.crashes >= 2 or memory
                record.inside = False

    def guilty(self, key: str) -> int | None:
        """How many crashes running it was inside at, if the last was with nobody beside it after
        it had come under suspicion; None while it may be somebody else's doing."""
        with self._lock:
            record = self._jobs.get(key)
            return record.crashes if record is not None and record.alone else None
