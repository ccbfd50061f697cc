"""The virtual world: time, processes that can be killed and stopped, and the servers around them.

An actor is a generator that yields how many seconds it waits. Nothing here looks at a real clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import TypeVar

from manylora.errors import UnavailableError

Actor = Generator[float, None, None]
Hint = tuple[str, int]
T = TypeVar("T")


class Process:
    """Something that is killed or stopped as a whole, with all the actors in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        #: SIGSTOP until then
        self.stopped_until = 0.0


class World:
    """Time, chance and the three servers: database, broker, store."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)  # noqa: S311
        self.now = 0.0
        #: how much the database's clock is ahead of the true time
        self.ahead = 0.0
        #: by how much it was ever set back: so much longer do its leases last
        self.set_back = 0.0
        self.database_started = -1000.0
        self.down_until = {"database": 0.0, "broker": 0.0, "store": 0.0}
        #: chance that what was done is answered by an error all the same
        self.unsure = {"database": 0.0, "store": 0.0}
        #: chance that a worker stands still just before a write that counts
        self.stalls = 0.0
        #: chances of the broker's, and the longest delay of a message
        self.loses = self.doubles = 0.0
        self.delay = 0.5
        self.queues: dict[str, list[tuple[float, float, Hint]]] = {}
        self.objects: dict[str, tuple[str, ...]] = {}
        #: the last things that happened, for whoever has to find out why
        self.log: deque[str] = deque(maxlen=80)
        self._heap: list[tuple[float, int, Process, Actor]] = []
        self._numbers = count()

    def tell(self, line: str) -> None:
        """Note something."""
        self.log.append(f"{self.now:9.2f}  {line}")

    def start(self, process: Process, actor: Actor) -> None:
        """Let an actor of that process begin now."""
        self._push(self.now, process, actor)

    def _push(self, at: float, process: Process, actor: Actor) -> None:
        heappush(self._heap, (at, next(self._numbers), process, actor))

    def step(self) -> bool:
        """Let whoever is next go on; False when nobody is left."""
        if not self._heap:
            return False
        at, _, process, actor = heappop(self._heap)
        self.now = max(self.now, at)
        if not process.alive:
            actor.close()
        elif process.stopped_until > self.now:
            self._push(min(process.stopped_until, self.now + 5.0), process, actor)
        else:
            wait = next(actor, None)
            if wait is not None:
                self._push(self.now + wait, process, actor)
        return True

    # the database

    def database_time(self) -> float:
        """The database's own idea of now."""
        return self.now + self.ahead

    def transact(self, work: Callable[[], T]) -> T:
        """One transaction. Raises: UnavailableError, before or after it was committed."""
        self._reach("database")
        result = work()
        self._answer("database")
        return result

    def _reach(self, server: str) -> None:
        if self.down_until[server] > self.now:
            raise UnavailableError(f"the {server} is away")

    def _answer(self, server: str) -> None:
        chance = self.unsure[server]
        if chance and self.random.random() < chance:
            raise UnavailableError(f"the {server} did not answer")

    # the store

    def put(self, key: str, names: tuple[str, ...] = ()) -> None:
        """Store an object; a manifest names others. Raises: UnavailableError, perhaps after it."""
        self._reach("store")
        self.objects[key] = names
        self._answer("store")

    def complete(self, manifest: str) -> bool:
        """Whether a manifest and all it names is there. Raises: UnavailableError."""
        self._reach("store")
        names = self.objects.get(manifest)
        return names is not None and all(name in self.objects for name in names)

    # the broker

    def send(self, queue: str, hint: Hint, expires: float) -> None:
        """Send a wake-up; it may be lost, doubled or late. Raises: UnavailableError."""
        self._reach("broker")
        if self.random.random() < self.loses:
            self.tell(f"broker loses {hint}")
            return
        for _ in range(2 if self.random.random() < self.doubles else 1):
            at = self.now + self.random.uniform(0, self.delay)
            self.queues.setdefault(queue, []).append((at, self.now + expires, hint))

    def take(self, queue: str) -> Hint | None:
        """The next wake-up, if there is one. Raises: UnavailableError."""
        self._reach("broker")
        waiting = self.queues.get(queue)
        if not waiting:
            return None
        for index, (at, until, hint) in enumerate(waiting):
            if at <= self.now:
                del waiting[index]
                return hint if until > self.now else None
        return None

    def flush(self) -> None:
        """The broker forgets everything."""
        self.queues.clear()
