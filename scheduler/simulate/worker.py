"""A worker as the ledger sees one: slots that take wake-ups, claim, renew, checkpoint, publish.

It does what `worker/` does, in virtual time and without mathematics: a step is a number.
"""

from __future__ import annotations

from dataclasses import dataclass

from manylora.errors import LostError, UnavailableError
from scheduler.simulate.books import Books
from scheduler.simulate.rows import Row
from scheduler.simulate.world import Actor, Process, World

TTL, HEARTBEAT, CHECKPOINT = 60.0, 10.0, 30.0


@dataclass
class Fate:
    """What a job is made of, and what is wrong with it."""

    steps: int
    step_seconds: float
    #: it runs out of memory at that step, or its loss is no number there
    oom_at: int | None = None
    nan_at: int | None = None


class Work:
    """One attempt under one worker: what its threads share."""

    def __init__(self, job_id: str, attempt: int) -> None:
        self.job_id, self.attempt = job_id, attempt
        self.step = 0
        self.trained = 0.0
        self.lost = self.closed = False
        self.wish: str | None = None


class Redone:
    """Steps done twice: no more than one interval of checkpoints for each attempt that was lost,
    where store and database were there for the checkpoints (I9)."""

    def __init__(self, fates: dict[str, Fate], books: Books) -> None:
        self.fates, self.books = fates, books
        self.strict = True
        self.reached: dict[str, int] = {}

    def resumed(self, job_id: str, attempt: int, step: int) -> None:
        """An attempt begins at that step."""
        if not self._owns(job_id, attempt):
            return
        most = int(CHECKPOINT / self.fates[job_id].step_seconds) + 3
        redone = self.reached.get(job_id, 0) - step
        if self.strict and redone > most:
            raise AssertionError(f"{job_id} redoes {redone} steps, {most} are an interval (I9)")
        self.reached[job_id] = step

    def trained(self, job_id: str, attempt: int, step: int) -> None:
        """A step was done; a zombie's do not count."""
        if self._owns(job_id, attempt):
            self.reached[job_id] = max(step, self.reached.get(job_id, 0))

    def _owns(self, job_id: str, attempt: int) -> bool:
        return bool(self.books.jobs[job_id]["attempt"] == attempt)


class Worker(Process):
    """One worker process."""

    def __init__(
        self,
        world: World,
        books: Books,
        fates: dict[str, Fate],
        redone: Redone,
        name: str,
        base: str,
        slots: int,
    ) -> None:
        super().__init__(name)
        self.redone = redone
        self.world, self.books, self.fates = world, books, fates
        self.base, self.slots, self.queue = base, slots, f"q-{base}"
        self.draining = False
        self.busy = 0
        #: raised whenever its trainer dies
        self.crashes = 0
        #: steps trained, to see what is done twice
        self.at_work: dict[str, Work] = {}
        self.heartbeat_at: float | None = None
        world.start(self, self.report())
        for _ in range(slots):
            world.start(self, self.slot())

    def report(self) -> Actor:
        """Say that it lives."""
        while True:
            try:
                self.heartbeat_at = self.world.transact(self.world.database_time)
            except UnavailableError:
                self.world.tell(f"{self.name} cannot report")
            yield 5.0

    def slot(self) -> Actor:
        """Take wake-ups, one after the other."""
        chance = self.world.random
        while not self.draining:
            try:
                hint = self.world.take(self.queue)
            except UnavailableError:
                hint = None
            if hint is None:
                yield chance.uniform(0.5, 2.0)
                continue
            self.busy += 1
            yield chance.uniform(0.0, 0.3)
            yield from self._attempt(*hint)
            self.busy -= 1

    def _attempt(self, job_id: str, attempt: int) -> Actor:
        world, books = self.world, self.books
        try:
            job = world.transact(lambda: books.claim(job_id, attempt, worker_id=self.name, ttl=TTL))
        except (LostError, UnavailableError) as error:
            world.tell(f"{self.name} does not claim {job_id}/{attempt}: {error}")
            return
        work = Work(job_id, attempt)
        self.at_work[job_id] = work
        world.start(self, self._keep(work))
        try:
            yield from self._work(work, job)
        except LostError:
            world.tell(f"{self.name} leaves {job_id}/{attempt}")
            yield from self._close(work)
        except UnavailableError as error:
            world.tell(f"{self.name} cannot go on with {job_id}/{attempt}: {error}")
            yield from self._give_back(work, counts=True, kind="infra")
        finally:
            work.closed = True
            if self.at_work.get(job_id) is work:
                del self.at_work[job_id]

    def _keep(self, work: Work) -> Actor:
        """The lease's own thread."""
        while True:
            yield HEARTBEAT
            if work.closed:
                return
            try:
                self._renew(work)
            except LostError:
                work.lost = True
                return
            except UnavailableError:
                continue

    def _renew(self, work: Work) -> None:
        work.wish = self.world.transact(
            lambda: self.books.renew(
                work.job_id,
                work.attempt,
                ttl=TTL,
                step=work.step,
                device_seconds=work.trained,
                actor=self.name,
            )
        )

    def _work(self, work: Work, job: Row) -> Actor:
        world, fate = self.world, self.fates[work.job_id]
        yield world.random.uniform(0.5, 4.0)  # download, tokenise
        work.step = self._resume(work.job_id)
        self.redone.resumed(work.job_id, work.attempt, work.step)
        saved, saved_at, crashes, deaths = work.step, world.now, self.crashes, 0
        while work.step < fate.steps:
            yield fate.step_seconds
            if work.lost:
                raise LostError("the lease is gone")
            if self.crashes != crashes:
                crashes, deaths = self.crashes, deaths + 1
                if deaths > 1:
                    yield from self._give_back(work, counts=True, kind="lost")
                    return
                work.step = saved
                continue
            work.step += 1
            work.trained += fate.step_seconds
            self.redone.trained(work.job_id, work.attempt, work.step)
            if work.step == fate.oom_at:
                yield from self._give_back(work, counts=True, kind="oom")
                return
            if work.step == fate.nan_at:
                yield from self._fail(work)
                return
            leaving = self.draining or work.wish is not None
            if leaving or world.now - saved_at >= CHECKPOINT:
                saved, saved_at = work.step, world.now
                yield from self._checkpoint(work)
                if leaving:
                    yield from self._give_back(work, counts=False)
                    return
        yield from self._publish(work)

    def _resume(self, job_id: str) -> int:
        """The newest checkpoint that is all there, of any attempt."""
        rows = self.world.transact(lambda: dict(self.books.checkpoints.get(job_id, {})))
        for (step, _), manifest in sorted(rows.items(), reverse=True):
            if self.world.complete(manifest):
                return step
        return 0

    def _checkpoint(self, work: Work) -> Actor:
        """Files, manifest, row. An outage costs this checkpoint only."""
        prefix = f"{work.job_id}/{work.attempt}/saved/{work.step}"
        step = work.step
        try:
            self.world.put(f"{prefix}/state")
            yield self.world.random.uniform(0.1, 1.5)
            self.world.put(f"{prefix}/manifest", (f"{prefix}/state",))
            yield from self._between()
            self.world.transact(
                lambda: self.books.record(
                    work.job_id,
                    work.attempt,
                    step=step,
                    digest=f"{prefix}/manifest",
                    actor=self.name,
                )
            )
        except UnavailableError:
            self.world.tell(f"{self.name} skips a checkpoint of {work.job_id}")

    def _publish(self, work: Work) -> Actor:
        prefix = f"{work.job_id}/{work.attempt}/adapter"
        names = f"{prefix}/weights", f"{prefix}/config"
        for name in names:
            self.world.put(name)
            yield self.world.random.uniform(0.1, 2.0)
        self.world.put(f"{prefix}/manifest", names)
        yield self.world.random.uniform(0.0, 1.0)
        work.closed = True
        self._renew(work)
        yield from self._between()
        self.world.transact(
            lambda: self.books.publish(
                work.job_id,
                work.attempt,
                worker_id=self.name,
                tokens=1,
                name=f"{prefix}/manifest",
            )
        )

    def _between(self) -> Actor:
        """Between two writes the whole process may stand still."""
        if self.world.random.random() < self.world.stalls:
            self.stopped_until = self.world.now + self.world.random.uniform(5.0, 200.0)
            self.world.tell(f"{self.name} stands still until {self.stopped_until:.0f}")
        yield self.world.random.uniform(0.05, 1.0)

    def _give_back(self, work: Work, *, counts: bool, kind: str = "lost") -> Actor:
        work.closed = True
        yield 0.1
        try:
            self._renew(work)
            yield from self._between()
            self.world.transact(
                lambda: self.books.release(
                    work.job_id,
                    work.attempt,
                    actor=self.name,
                    reason=f"{kind if counts else 'asked'}",
                    counts=counts,
                    kind=kind,
                )
            )
        except LostError:
            yield from self._close(work)
        except UnavailableError:
            self.world.tell(f"{self.name} leaves {work.job_id} to the rescue")

    def _fail(self, work: Work) -> Actor:
        work.closed = True
        yield from self._between()
        try:
            self.world.transact(
                lambda: self.books.fail(
                    work.job_id, work.attempt, worker_id=self.name, code="nan", message="no number"
                )
            )
        except (LostError, UnavailableError):
            self.world.tell(f"{self.name} cannot fail {work.job_id}")

    def _close(self, work: Work) -> Actor:
        work.closed = True
        yield 0.1
        try:
            self.world.transact(lambda: self.books.close(work.job_id, work.attempt, "left"))
        except UnavailableError:
            self.world.tell(f"{self.name} leaves the books of {work.job_id} open")
