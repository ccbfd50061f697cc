"""Requests a minute, counted by each API process for itself: a bucket for each tenant that has such
a quota. It fills by the second, so that a client that keeps to it never waits a minute."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable
from threading import Lock

from manylora.errors import QuotaError

_MOST_TENANTS = 100_000


class Rate:
    """What is left in each bucket. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        #: tenant -> (what was left, when)
        self._left: dict[uuid.UUID, tuple[float, float]] = {}

    def take(self, tenant_id: uuid.UUID, most: int) -> None:
        """One request of a tenant that may make `most` a minute.

        Raises: QuotaError, saying in how many seconds there is room for the next.
        """
        now = self._clock()
        with self._lock:
            if len(self._left) > _MOST_TENANTS:
                self._left.clear()
            left, at = self._left.get(tenant_id, (float(most), now))
            left = min(float(most), left + (now - at) * most / 60.0)
            if left >= 1.0:
                self._left[tenant_id] = left - 1.0, now
                return
            self._left[tenant_id] = left, now
        wait = max(1, math.ceil((1.0 - left) * 60.0 / most))
        raise QuotaError(
            f"your {most:,} requests a minute are used",
            hint=f"try again in {wait} s",
            code="rate_limit_exceeded",
            details={"limit": most, "used": most, "retry_after": wait},
        )
