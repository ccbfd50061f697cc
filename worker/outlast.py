"""Sit out an outage of the store or the database, while the lease is renewed."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from typing import TypeVar

import structlog

from manylora.clock import Clock
from manylora.errors import LostError, UnavailableError
from worker.lease import Lease

log = structlog.get_logger(__name__)
T = TypeVar("T")
_FIRST, _MOST = 0.5, 15.0


def outlast(
    call: Callable[[], T],
    *,
    clock: Clock,
    lease: Lease,
    draining: Event,
    seconds: float,
) -> T:
    """`call`, again until it goes through, for at most `seconds`; it must bear repeating.

    Raises: UnavailableError when the time is over, or the worker is to stop; LostError when the
    lease is gone meanwhile.
    """
    until = clock.monotonic() + seconds
    pause = _FIRST
    while True:
        try:
            return call()
        except UnavailableError as error:
            if clock.monotonic() >= until or draining.is_set() or error.code != error.error_code:
                raise
            log.warning("job.waits_for_service", job_id=lease.job_id, error=error.message)
        clock.wait(draining, pause)
        pause = min(_MOST, 2 * pause)
        if lease.lost.is_set():
            raise LostError(f"{lease.job_id}: the lease is gone")
