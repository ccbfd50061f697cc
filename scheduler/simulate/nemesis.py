"""What goes wrong: a seed switches some of the faults on, and lets them strike until it is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from scheduler.simulate.worker import Worker
from scheduler.simulate.world import Actor, Process, World

#: how long a process is stopped: less and more than a TTL
STOPS: Final = (5.0, 50.0, 70.0, 200.0)
FAULTS: Final = (
    "kill worker",
    "stop worker",
    "drain worker",
    "kill trainer",
    "kill scheduler",
    "stop scheduler",
    "restart database",
    "unsure database",
    "broker away",
    "flush broker",
    "store away",
    "unsure store",
    "jump clock",
)


class Nemesis(Process):
    """Whoever does it. Never stopped, never killed."""

    def __init__(
        self,
        world: World,
        workers: list[Worker],
        schedulers: list[Process],
        new_worker: Callable[[int], Worker],
        new_scheduler: Callable[[int], Process],
        until: float,
    ) -> None:
        super().__init__("nemesis")
        self.world, self.workers, self.schedulers = world, workers, schedulers
        self.new_worker, self.new_scheduler, self.until = new_worker, new_scheduler, until
        chance = world.random
        self.faults = [fault for fault in FAULTS if chance.random() < 0.4]
        world.loses = chance.choice((0.0, 0.0, 0.1, 0.5))
        world.doubles = chance.choice((0.0, 0.0, 0.1, 0.5))
        world.delay = chance.choice((0.5, 0.5, 5.0, 60.0))
        world.stalls = chance.choice((0.05, 0.4)) if "stop worker" in self.faults else 0.0
        self.every = chance.choice((8.0, 20.0, 60.0))
        world.tell(f"faults: {self.faults}")
        world.start(self, self.striking())

    def striking(self) -> Actor:
        """Strike until it is over, then mend all."""
        world, chance = self.world, self.world.random
        while self.faults and world.now < self.until:
            yield min(chance.expovariate(1 / self.every), self.until - world.now)
            if world.now >= self.until:
                break
            fault = chance.choice(self.faults)
            world.tell(f"fault: {fault}")
            getattr(self, "_" + fault.replace(" ", "_"))()
        yield self.until - world.now
        world.loses = world.doubles = world.stalls = 0.0
        world.database_started = min(world.database_started, world.now)
        world.delay = 0.5
        world.unsure = {"database": 0.0, "store": 0.0}
        world.down_until = dict.fromkeys(world.down_until, 0.0)
        for process in (*self.workers, *self.schedulers):
            process.stopped_until = min(process.stopped_until, world.now)
        world.tell("no more faults")

    def _after(self, seconds: float, then: Callable[[], None]) -> None:
        def later() -> Actor:
            yield seconds
            then()

        self.world.start(self, later())

    def _again_worker(self, index: int, seconds: float) -> None:
        def again() -> None:
            self.workers[index] = self.new_worker(index)

        self._after(seconds, again)

    def _some_worker(self) -> tuple[int, Worker] | None:
        alive = [(i, w) for i, w in enumerate(self.workers) if w.alive and not w.draining]
        return self.world.random.choice(alive) if alive else None

    def _kill_worker(self) -> None:
        picked = self._some_worker()
        if picked is not None:
            picked[1].alive = False
            self.world.tell(f"{picked[1].name} is killed")
            self._again_worker(picked[0], self.world.random.uniform(1, 40))

    def _stop_worker(self) -> None:
        picked = self._some_worker()
        if picked is not None:
            self._stop(picked[1])

    def _stop(self, process: Process) -> None:
        process.stopped_until = self.world.now + self.world.random.choice(STOPS)
        self.world.tell(f"{process.name} stands still until {process.stopped_until:.0f}")

    def _drain_worker(self) -> None:
        picked = self._some_worker()
        if picked is None:
            return
        index, worker = picked
        worker.draining = True

        def leave() -> Actor:
            for _ in range(600):
                yield 1.0
                if worker.busy == 0 or not worker.alive:
                    break
            worker.alive = False
            self._again_worker(index, 2.0)

        self.world.start(self, leave())

    def _kill_trainer(self) -> None:
        picked = self._some_worker()
        if picked is not None:
            picked[1].crashes += 1

    def _kill_scheduler(self) -> None:
        index = self.world.random.randrange(len(self.schedulers))
        if not self.schedulers[index].alive:
            return
        self.schedulers[index].alive = False

        def again() -> None:
            self.schedulers[index] = self.new_scheduler(index)

        self._after(self.world.random.uniform(1, 30), again)

    def _stop_scheduler(self) -> None:
        self._stop(self.world.random.choice(self.schedulers))

    def _restart_database(self) -> None:
        world = self.world
        until = world.now + world.random.choice((1.0, 20.0, 90.0, 150.0))
        world.down_until["database"] = until
        world.database_started = until

    def _unsure_database(self) -> None:
        self._unsure("database")

    def _unsure_store(self) -> None:
        self._unsure("store")

    def _unsure(self, server: str) -> None:
        self.world.unsure[server] = 0.25
        self._after(
            self.world.random.uniform(5, 40), lambda: self.world.unsure.update({server: 0.0})
        )

    def _broker_away(self) -> None:
        self.world.down_until["broker"] = self.world.now + self.world.random.uniform(5, 90)

    def _flush_broker(self) -> None:
        self.world.flush()

    def _store_away(self) -> None:
        self.world.down_until["store"] = self.world.now + self.world.random.uniform(5, 90)

    def _jump_clock(self) -> None:
        jump = self.world.random.choice((-200.0, -30.0, 30.0, 200.0, 3600.0))
        self.world.ahead += jump
        self.world.set_back += max(0.0, -jump)
        self.world.tell(f"the database's clock jumps by {jump:.0f}")
