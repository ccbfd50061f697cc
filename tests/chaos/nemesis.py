"""A seeded nemesis: it kills and freezes every part while jobs run, then asks if all is well."""

import collections
import random
import signal
import threading
import time
from dataclasses import dataclass, field

from sqlalchemy import select

from manylora.ledger import adapters
from manylora.ledger.tables import Adapter, Event, Job
from tests.chaos.checks import adapters_per_job, assert_nothing_left, assert_published_once
from tests.chaos.stack import LEASE, SERVERS, until

#: frozen for so long, a worker has lost its leases when it wakes
FROZEN = 1.5 * LEASE
STALL = 4.0
TARGETS = ("worker-0", "worker-1", "trainer", "scheduler", "api", *SERVERS)
WAYS = ("kill", "freeze", "drain")
#: (dataset's seed, its lines, hyperparameters): short and long, with and without dropout
SPECS = (
    (1, 160, dict(n_epochs=10, lora_r=4)),
    (2, 120, dict(n_epochs=20, lora_r=8)),
    (3, 200, dict(n_epochs=12, lora_r=2, seed=11)),
    (4, 80, dict(n_epochs=40, lora_r=4, batch_size=2)),
)
#: so many jobs are kept in the air
_IN_THE_AIR = 5


@dataclass
class Report:
    """What was done, and what came of it."""

    seed: int
    faults: collections.Counter = field(default_factory=collections.Counter)
    jobs: int = 0
    seconds: float = 0.0
    attempts: collections.Counter = field(default_factory=collections.Counter)
    failures: collections.Counter = field(default_factory=collections.Counter)
    adopted: int = 0
    restarts: collections.Counter = field(default_factory=collections.Counter)

    def table(self):
        """Markdown, for people and for the docs."""
        rows = [
            "| target | " + " | ".join(WAYS) + " | restarts |",
            "| --- | --- | --- | --- | --- |",
        ]
        for target in TARGETS:
            told = [str(self.faults[(way, target)]) for way in WAYS]
            rows.append(f"| {target} | " + " | ".join(told) + f" | {self.restarts[target]} |")
        attempts = ", ".join(f"{n} jobs at {a}" for a, n in sorted(self.attempts.items()))
        failures = ", ".join(f"{kind} {n}" for kind, n in sorted(self.failures.items())) or "none"
        rows += [
            "",
            f"seed {self.seed}: {sum(self.faults.values())} faults over {self.jobs} jobs in "
            f"{self.seconds:.0f} s. All succeeded, one adapter each, byte-identical; no orphans.",
            f"attempts: {attempts}; failures counted: {failures}; adopted: {self.adopted}",
        ]
        return "\n".join(rows)


class Submitter:
    """Keeps jobs in the air, through the API, whatever happens to it."""

    def __init__(self, stack, files, draw, most):
        self.stack, self.files, self.draw, self.most = stack, files, draw, most
        self.made = []  # (id, index of its spec), acknowledged
        self.error = None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._submit, name="submitter")

    def _submit(self):
        try:
            while len(self.made) < self.most:
                if not self.over.is_set() and self._flying() >= _IN_THE_AIR:
                    self.over.wait(0.3)
                    continue
                index = self.draw.randrange(len(SPECS))
                job_id = self.stack.submit(self.files[index], seconds=120, **SPECS[index][2])
                self.made.append((job_id, index))
        except BaseException as error:  # told to the thread that waits
            self.error = error

    def _flying(self):
        ids = [job_id for job_id, _ in self.made]

        def count():
            with self.stack.service.database.transaction() as tx:
                rows = tx.scalars(select(Job.state).where(Job.id.in_(ids))).all()
            return [sum(r not in ("succeeded", "failed", "cancelled") for r in rows)]

        return until(count, "the database", 120)[0] if ids else 0


def undisturbed(stack):
    """Datasets and digests: each spec once, before anything happens."""
    files = [stack.upload(seed, count) for seed, count, _ in SPECS]
    ids = [stack.submit(f, **spec[2]) for f, spec in zip(files, SPECS, strict=True)]
    digests = []
    for job in stack.wait(ids, 240):
        assert (job.state, job.attempt) == ("succeeded", 1)
        with stack.service.database.transaction() as tx:
            digests.append(adapters.of_job(tx, job.id).weights_sha256)
    return files, digests


def rage(stack, *, faults, jobs, seed, say=lambda line: None):
    """So many faults, one after the other, over at least so many jobs; then every check.

    Returns a Report; raises what does not hold.
    """
    began, report = time.monotonic(), Report(seed)
    files, digests = undisturbed(stack)
    draw = random.Random(seed)
    # Jobs are drawn by a generator of their own: how fast they end must not change the faults.
    submitter = Submitter(stack, files, random.Random(seed + 1), jobs)
    submitter.thread.start()
    trainer_hit = -60.0
    for number in range(1, faults + 1):
        way, target, pause = draw.choice(WAYS[:2]), draw.choice(TARGETS), draw.uniform(0.1, 1.5)
        if draw.random() < 0.1:
            way, target = "drain", draw.choice(("worker-0", "worker-1", "scheduler"))
        if target == "trainer" and time.monotonic() - trainer_hit < 20:
            # Hit again and again with no step in between, a job cannot be told from the culprit.
            target = f"worker-{number % 2}"
        if target.startswith("worker") or target == "trainer":
            _await_worker(stack)
        threading.Event().wait(pause)
        say(f"{number:3d}/{faults} {way} {target}")
        hit(stack, way, target)
        if target == "trainer":
            trainer_hit = time.monotonic()
        report.faults[(way, target)] += 1
    submitter.over.set()
    submitter.thread.join(300)
    if submitter.error is not None:
        raise submitter.error
    assert not submitter.thread.is_alive()
    ids = [job_id for job_id, _ in submitter.made]
    say(f"the faults are over; waiting for {len(ids)} jobs")
    until(lambda: stack.wait(ids, 400), "the jobs", 420)
    for job_id, index in submitter.made:
        adapter, _ = assert_published_once(stack, job_id, digests[index])
        report.adopted += adapter.source_attempt < adapter.attempt
    assert adapters_per_job(stack) == 1
    assert_nothing_left(stack)
    _count(stack, ids, report)
    report.jobs, report.seconds = len(ids), time.monotonic() - began
    return report


def hit(stack, way, target):
    """One fault."""
    if way == "freeze":
        stack.freeze(target, STALL * 1.5 if target == "trainer" else FROZEN)
    else:
        stack.kill(target, signal.SIGKILL if way == "kill" else signal.SIGTERM)


def _await_worker(stack):
    """Until workers hold a base, so that each fault meets one at work, but not for ever: a fault
    in the middle of a start is a fault, too."""
    deadline = time.monotonic() + 12
    until(lambda: stack.workers_ready() or time.monotonic() > deadline, "workers", 60)


def _count(stack, ids, report):
    with stack.service.database.transaction() as tx:
        rows = list(tx.scalars(select(Job).where(Job.id.in_(ids))))
        assert len(list(tx.scalars(select(Adapter).where(Adapter.job_id.in_(ids))))) == len(ids)
        told = tx.scalars(select(Event.message).where(Event.job_id.in_(ids)))
        report.failures["trainer ended"] = sum("The trainer ended" in m for m in told)
    for row in rows:
        report.attempts[row.attempt] += 1
        for kind in ("lost", "oom", "infra"):
            report.failures[kind] += getattr(row, f"failures_{kind}")
    for target in TARGETS:
        if target != "trainer":
            report.restarts[target] = stack.child(target).restarts
