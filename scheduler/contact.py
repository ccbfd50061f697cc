"""How long the scheduler has been in touch with the database without a break, and how long each
lease has not been renewed meanwhile. Pure: times go in.

A lease that ran out while the database was away, or while its clock jumped, says nothing about
its worker. So nothing is taken from anybody before workers have had one TTL to renew, and no lease
before it has stood still for one TTL by our own clock: the database's may have gone back and forth
between two rounds.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

#: a job and its attempt
Key = tuple[str, int]


class Contact:
    """The scheduler's unbroken contact with the database. A break is: a failed round, a silence
    longer than half a TTL, a database that was started anew, or a database's clock that did not
    go as ours did."""

    def __init__(self, ttl_seconds: float) -> None:
        self.ttl = ttl_seconds
        self._since: tuple[float, float] | None = None
        self._last = 0.0
        self._settled = False
        #: each lease's end, and since when it has been that
        self._ends: dict[Key, tuple[Hashable, float]] = {}

    def saw(self, mine: float, theirs: float, up: float) -> None:
        """A round reached the database: our monotonic seconds, its time, how long it is up."""
        if self._since is not None:
            ours, its = mine - self._since[0], theirs - self._since[1]
            if mine - self._last > self.ttl / 2 or abs(its - ours) > self.ttl / 12:
                self._since = None
        if self._since is None:
            self._since = mine, theirs
        self._last = mine
        self._settled = mine - self._since[0] >= self.ttl and up >= self.ttl

    def broke(self) -> None:
        """A round did not get through."""
        self._since, self._settled = None, False

    def silent(self, mine: float, held: Iterable[tuple[str, int, Hashable]]) -> set[Key]:
        """Of the leases `held` (job, attempt, end), those whose end has not moved for one TTL."""
        known = self._ends
        self._ends = {}
        for job_id, attempt, end in held:
            before = known.get((job_id, attempt))
            unmoved = before is not None and before[0] == end
            self._ends[job_id, attempt] = before if before and unmoved else (end, mine)
        return {key for key, (_, since) in self._ends.items() if mine - since >= self.ttl}

    @property
    def settled(self) -> bool:
        """Whether silence may be held against anybody."""
        return self._settled
