"""How long the scheduler has been in touch with the database without a break. Pure: times go in.

A lease that ran out while the database was away, or while its clock jumped, says nothing about
its worker. So nothing is taken from anybody before workers have had one TTL to renew.
"""

from __future__ import annotations


class Contact:
    """The scheduler's unbroken contact with the database. A break is: a failed round, a silence
    longer than half a TTL, a database that was started anew, or a database's clock that did not
    go as ours did."""

    def __init__(self, ttl_seconds: float) -> None:
        self.ttl = ttl_seconds
        self._since: tuple[float, float] | None = None
        self._last = 0.0
        self._settled = False

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

    @property
    def settled(self) -> bool:
        """Whether silence may be held against anybody."""
        return self._settled
