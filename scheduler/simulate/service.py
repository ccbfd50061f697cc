"""The scheduler's rounds, by the planner and the contact rule of the service, and its clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from manylora.errors import LostError, StateError, UnavailableError
from manylora.ledger.moves import MOST_FAILURES
from manylora.ledger.states import JobState
from scheduler.contact import Contact
from scheduler.planner import plan
from scheduler.simulate.books import Books
from scheduler.simulate.worker import TTL, Fate, Worker
from scheduler.simulate.world import Actor, Hint, Process, World
from scheduler.views import Plan, Running, Snapshot, Tenant, Waiting, WorkerView

TICK, DEADLINE, RESEND, MOST_PREEMPTIONS = 4.0, 45.0, 15.0, 3


class Scheduler(Process):
    """One scheduler process."""

    def __init__(self, world: World, books: Books, workers: list[Worker], name: str) -> None:
        super().__init__(name)
        self.world, self.books, self.workers = world, books, workers
        self.contact = Contact(TTL)
        world.start(self, self.rounds())
        world.start(self, self.intake())

    def rounds(self) -> Actor:
        """Rescue, look, decide, do: each a transaction of its own, with time in between."""
        while True:
            yield TICK
            try:
                again = self.world.transact(self._rescue)
                self._wake(again)
                yield 0.05
                seen = self.world.transact(self._look)
                yield self.world.random.choice((0.05, 0.05, 2.0))
                self._wake(self.world.transact(lambda seen=seen: self._do(plan(seen))))  # type: ignore[misc]
            except UnavailableError:
                self.contact.broke()

    def intake(self) -> Actor:
        """Validate new jobs, one after the other."""
        while True:
            yield self.world.random.uniform(0.5, 3.0)
            try:
                new = self.world.transact(lambda: self._in(JobState.VALIDATING))
                if not new:
                    continue
                yield self.world.random.uniform(0.1, 2.0)
                self.world.transact(
                    lambda new=new: self.books.move(new[0], "accept", actor=self.name)  # type: ignore[misc]
                )
            except (LostError, UnavailableError):
                continue

    def _in(self, state: JobState) -> list[str]:
        return [job_id for job_id, job in self.books.jobs.items() if job["state"] == state]

    def _rescue(self) -> Sequence[tuple[str, str, int]]:
        world = self.world
        up = world.now - world.database_started
        self.contact.saw(world.now, world.database_time(), up)
        self.books.rescue(
            leases=self.contact.settled,
            only=self.contact.silent(world.now, self.books.held()),
            most_failures=MOST_FAILURES["lost"],
        )
        return self.books.resend(resend=RESEND)

    def _look(self) -> Snapshot:
        now = self.world.database_time()
        jobs, attempts = self.books.jobs, self.books.attempts
        waiting, running = [], []
        for job_id, job in jobs.items():
            if job["state"] == JobState.QUEUED:
                if job["not_before"] is None or job["not_before"] <= now:
                    waiting.append(
                        Waiting(
                            job_id,
                            job["base"],
                            job["base"],
                            job["priority"],
                            job["queued_at"] or 0.0,
                            job["tenant"],
                        )
                    )
            elif job["state"] == JobState.RUNNING and (job_id, job["attempt"]) in attempts:
                books = attempts[job_id, job["attempt"]]
                running.append(
                    Running(
                        job_id,
                        job["attempt"],
                        books["queue"],
                        job["priority"],
                        books["started_at"] or 0.0,
                        job["wish"],
                        job["preemptions"],
                        books["worker_id"],
                        job["tenant"],
                    )
                )
        busy: dict[str, int] = {}
        for books in attempts.values():
            if books["ended_at"] is None:
                busy[books["queue"]] = busy.get(books["queue"], 0) + 1
        alive = [
            WorkerView(w.name, w.slots, True, w.base, w.base, w.queue, True)
            for w in self.workers
            if w.heartbeat_at is not None and w.heartbeat_at > now - TTL and not w.draining
        ]
        return Snapshot(
            tuple(waiting),
            tuple(alive),
            busy,
            (),
            running=tuple(running),
            most_preemptions=MOST_PREEMPTIONS,
            settled=self.contact.settled,
            tenants=self._tenants(now),
            now=now,
        )

    def _tenants(self, now: float) -> dict[str, Tenant]:
        """What each has had so far; nothing is forgotten in so short a time."""
        found: dict[str, Tenant] = {}
        for job in self.books.jobs.values():
            one = found.get(job["tenant"], Tenant(used_at=now))
            active = job["state"] in (JobState.DISPATCHED, JobState.RUNNING)
            found[job["tenant"]] = replace(
                one, used=one.used + job["device_seconds"], active=one.active + active
            )
        return found

    def _do(self, decided: Plan) -> Sequence[tuple[str, str, int]]:
        sent = []
        for job_id, queue in decided.dispatches:
            try:
                attempt = self.books.dispatch(job_id, queue=queue, deadline=DEADLINE, resend=RESEND)
            except LostError:
                continue
            sent.append((queue, job_id, attempt))
        for job_id, attempt in decided.preemptions:
            try:
                self.books.preempt(job_id, attempt, most_preemptions=MOST_PREEMPTIONS)
            except LostError:
                continue
        return sent

    def _wake(self, hints: Sequence[tuple[str, str, int]]) -> None:
        for queue, job_id, attempt in hints:
            hint: Hint = (job_id, attempt)
            try:
                self.world.send(queue, hint, DEADLINE)
            except UnavailableError:
                self.world.tell(f"{self.name} cannot wake {queue} for {hint}")


class Clients(Process):
    """Tenants that submit, cancel, pause and resume."""

    def __init__(
        self, world: World, books: Books, fates: dict[str, Fate], bases: Sequence[str], until: float
    ) -> None:
        super().__init__("clients")
        self.world, self.books, self.fates, self.bases = world, books, fates, bases
        self.until = until
        #: jobs whose submission was acknowledged
        self.acknowledged: set[str] = set()
        #: jobs whose cancel was acknowledged
        self.cancelled: set[str] = set()
        #: job -> did its tenant last ask for a pause? Noted before the asking.
        self.wants_pause: dict[str, bool] = {}
        self.meddle = world.random.random() < 0.7
        world.start(self, self.submitting(world.random.randint(3, 9)))
        if self.meddle:
            world.start(self, self.meddling())

    def submitting(self, jobs: int) -> Actor:
        """Submit that many jobs over the time there is."""
        chance = self.world.random
        for number in range(jobs):
            job_id = f"job{number}"
            steps = chance.randint(3, 25)
            fate = Fate(steps, chance.choice((1.0, 3.0, 8.0)))
            if chance.random() < 0.1:
                fate.oom_at = chance.randint(1, steps)
            elif chance.random() < 0.1:
                fate.nan_at = chance.randint(1, steps)
            self.fates[job_id] = fate
            columns = {
                "base": chance.choice(self.bases),
                "priority": chance.choice((0, 0, 0, 5)),
                "tenant": f"tenant{number % 3 % 2}",
            }
            try:
                self.world.transact(
                    lambda job_id=job_id, columns=columns: self.books.create(job_id, **columns)  # type: ignore[misc]
                )
                self.acknowledged.add(job_id)
            except UnavailableError:
                self.world.tell(f"submission of {job_id} is not acknowledged")
            yield chance.uniform(0, 2 * self.until / jobs / 1.5)

    def meddling(self) -> Actor:
        """Cancel, pause, resume; whatever is paused at the end is resumed."""
        chance = self.world.random
        while self.world.now < self.until:
            yield chance.expovariate(1 / 40)
            if not self.books.jobs:
                continue
            job_id = chance.choice(sorted(self.books.jobs))
            what = chance.choices(("cancel", "pause", "resume"), (1, 3, 3))[0]
            self._ask(what, job_id)
        while True:
            yield 20.0
            for job_id, wanted in sorted(self.wants_pause.items()):
                if wanted:
                    self._ask("resume", job_id)

    def _ask(self, what: str, job_id: str) -> None:
        before = self.wants_pause.get(job_id, False)
        if what == "pause":
            self.wants_pause[job_id] = True
        try:
            self.world.transact(lambda: getattr(self.books, what)(job_id))
        except StateError:
            return
        except UnavailableError:
            self.wants_pause[job_id] = before or what == "pause"
            self.world.tell(f"{what} of {job_id} is not acknowledged")
            return
        if what == "resume":
            self.wants_pause[job_id] = False
        elif what == "cancel":
            self.cancelled.add(job_id)
