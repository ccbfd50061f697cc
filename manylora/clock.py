"""Time, as a thing that is handed in. Leases and every column of the ledger use the database's
own time; this is for waiting and for measuring, and tests hand in one they turn by hand."""

from __future__ import annotations

import time
from threading import Event
from typing import Protocol


class Clock(Protocol):
    """What a loop needs of time: seconds that never go back, and a wait that can be cut short."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        ...

    def wait(self, event: Event, seconds: float) -> bool:
        """Wait at most `seconds` for `event`; True if it was set."""
        ...


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        """Seconds since the machine started, or some such moment."""
        return time.monotonic()

    def wait(self, event: Event, seconds: float) -> bool:
        """Wait at most `seconds` for `event`; True if it was set."""
        return event.wait(seconds)
