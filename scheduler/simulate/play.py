"""Play one seed to its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from manylora.ledger.moves import MOVES, Move
from manylora.ledger.states import FINAL, JobState
from scheduler.simulate.books import Books
from scheduler.simulate.check import Check, Violation, at_the_end
from scheduler.simulate.nemesis import Nemesis
from scheduler.simulate.service import RESEND, TICK, Clients, Scheduler
from scheduler.simulate.worker import TTL, Fate, Redone, Worker
from scheduler.simulate.world import Actor, Process, World

#: while things fail, in seconds
FAULTY = 500.0
#: after that all must be over
LIMIT = 4000.0
#: no slot stays empty so long while a job for it waits and nothing fails
IDLE = 120.0
#: faults under which a checkpoint may be missed
_NO_CHECKPOINTS = {"store away", "unsure store", "restart database", "unsure database"}


@dataclass
class Played:
    """What a seed was."""

    seed: int
    seconds: float
    steps: int
    moves: Counter[str]
    states: Counter[str]
    faults: tuple[str, ...]


def play(seed: int, table: Mapping[str, Move] = MOVES) -> Played:
    """Play a seed. Raises: Violation, with the seed and what happened last."""
    world = World(seed)
    try:
        return _play(world, seed, table)
    except Exception as error:
        told = "\n".join(world.log)
        raise Violation(
            f"seed {seed} at {world.now:.1f} s: {error}\n{told}\n"
            f"again: SEED={seed} pytest tests/scheduler/simulate/test_seeds.py"
        ) from error


def _play(world: World, seed: int, table: Mapping[str, Move]) -> Played:
    chance = world.random
    check = Check(world)
    books = Books(world.database_time, table, check)
    fates: dict[str, Fate] = {}
    redone = Redone(fates, books)
    bases = ("alpha", "beta")[: chance.randint(1, 2)]
    names = Counter[str]()

    def name(kind: str) -> str:
        names[kind] += 1
        return f"{kind}{names[kind]}"

    shapes = [(base, chance.randint(1, 2)) for base in bases for _ in range(chance.randint(1, 2))]

    def new_worker(index: int) -> Worker:
        return Worker(world, books, fates, redone, name("worker"), *shapes[index])

    workers = [new_worker(index) for index in range(len(shapes))]

    def new_scheduler(index: int) -> Process:
        return Scheduler(world, books, workers, name("scheduler"))

    schedulers = [new_scheduler(index) for index in range(chance.choice((1, 1, 2)))]
    clients = Clients(world, books, fates, bases, FAULTY * 0.8)
    check.clients = clients
    nemesis = Nemesis(world, workers, schedulers, new_worker, new_scheduler, FAULTY)
    redone.strict = not _NO_CHECKPOINTS & set(nemesis.faults)
    steps = 0
    onlooker = _Onlooker(world, books, workers, schedulers)
    world.start(Process("onlooker"), onlooker.look())
    while world.now < LIMIT and world.step():
        steps += 1
        if world.now > FAULTY and all(job["state"] in FINAL for job in books.jobs.values()):
            break
    # Zombies and late messages go on for a while; the scheduler closes the last books.
    ended = world.now
    while world.now < ended + 200.0 + world.set_back and world.step():
        steps += 1
    at_the_end(world, books, check, clients)
    states = Counter(str(job["state"]) for job in books.jobs.values())
    return Played(seed, ended, steps, check.moves, states, tuple(nemesis.faults))


class _Onlooker:
    """Sees to it that, once nothing fails any more, no slot is empty for long while a job waits
    for one, and that a wake-up that was lost is sent again before its deadline (I11)."""

    def __init__(
        self, world: World, books: Books, workers: list[Worker], schedulers: list[Process]
    ) -> None:
        self.world, self.books = world, books
        self.workers, self.schedulers = workers, schedulers
        self.since: dict[object, float] = {}

    def look(self) -> Actor:
        """Once in a while, after the faults."""
        yield FAULTY + 1.0
        while True:
            yield 2.0
            for base in {worker.base for worker in self.workers}:
                self._look_at(base)

    def _look_at(self, base: str) -> None:
        free = sum(
            w.slots - w.busy for w in self.workers if w.base == base and w.alive and not w.draining
        )
        steered = any(scheduler.alive for scheduler in self.schedulers)
        now = self.world.database_time()
        waiting: set[object] = set()
        for job_id, job in self.books.jobs.items():
            if job["base"] != base or not (free and steered):
                continue
            if job["state"] == JobState.DISPATCHED:
                waiting.add((job_id, job["attempt"]))
            due = job["not_before"] is None or job["not_before"] <= now
            if job["state"] == JobState.QUEUED and due:
                waiting.add(base)
        for what in [*self.since]:
            mine = what == base or (isinstance(what, tuple) and self._base(what[0]) == base)
            if mine and what not in waiting:
                del self.since[what]
        for what in waiting:
            waited = self.world.now - self.since.setdefault(what, self.world.now)
            most = IDLE + TTL if what == base else RESEND + 2 * TICK + 5.0
            if waited > most + self.world.set_back:
                raise Violation(f"{free} slots of {base} are empty, and {what} waits (I11)")

    def _base(self, job_id: str) -> object:
        return self.books.jobs[job_id]["base"]
