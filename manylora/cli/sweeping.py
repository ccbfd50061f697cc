"""Drive a sweep through the API: start its jobs, look at their losses, hold, stop and let go.

Which trials there are and who goes on is decided in `manylora.sweep`, from the service's answers
alone: a sweep that is called again goes on where it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any

from manylora.cli import output
from manylora.cli.follow import FATES, OUTAGE_SECONDS, outage
from manylora.clock import Clock, SystemClock
from manylora.errors import ManyloraError, StateError
from manylora.sweep import space
from manylora.sweep.halving import Plan, Standing, Trial, stand
from manylora.sweep.report import Outcome

if TYPE_CHECKING:
    from manylora.client import Client

Json = dict[str, Any]


@dataclass
class Sweeping:
    """One sweep. `body` is what all its jobs have in common, as the API takes it."""

    client: Client
    name: str
    plan: Plan
    params: list[space.Params]
    body: Json
    budget: int | None
    clock: Clock = field(default_factory=SystemClock)
    poll: float = 0.5

    def __post_init__(self) -> None:
        self.jobs: list[Json] = []
        self.trials = [Trial() for _ in self.params]
        #: who was at the open rung when last looked at: these are held if others are not
        self._there: set[int] = set()

    def start(self) -> None:
        """Create the jobs, or find those an earlier call made: the keys are the same.

        Where one is refused, those before it are taken back.
        """
        shared = self.body["method"]["supervised"]["hyperparameters"]
        for number, params in enumerate(self.params):
            hyper = {**shared, **space.hyperparameters(params)}
            body = {
                **self.body,
                "suffix": f"{self.name}-{number:03d}",
                "metadata": {
                    **(self.body.get("metadata") or {}),
                    "sweep": self.name,
                    "trial": f"{number:03d}",
                    "values": space.label(params)[:512],
                },
                "method": {"type": "supervised", "supervised": {"hyperparameters": hyper}},
            }
            try:
                made = self.client.create_job(body, f"sweep-{self.name}-{number:03d}")
            except ManyloraError:
                self.cancel()  # a sweep without one of its trials is another one
                raise
            self.jobs.append(made)

    def follow(self) -> Outcome:
        """Until nobody is waited for any more, or the budget is used up."""
        while True:
            self.look()
            standing = stand(self.plan, self.trials)
            self._act(standing)
            self._tell(standing)
            outcome = self.outcome(standing)
            if standing.done:
                return outcome
            if self.budget is not None and outcome.spent >= self.budget:
                self.cancel()
                self.look()
                output.talk(f"the budget of {self.budget:,} steps is used up", "stopped")
                return self.outcome(stand(self.plan, self.trials))
            self.clock.wait(Event(), self.poll)

    def outcome(self, standing: Standing) -> Outcome:
        """Where it stands, for the report."""
        return Outcome(
            self.name, self.plan, self.params, self.jobs, self.trials, standing, self.budget
        )

    def look(self) -> None:
        """Read every job that may have changed, and its new metric points."""
        for i, (job, trial) in enumerate(zip(self.jobs, self.trials, strict=True)):
            if trial.ended:
                continue
            self.jobs[i] = job = self._ask(partial(self.client.job, job["id"]))
            ended = job["status"] in FATES
            for point in self._ask(partial(self.client.metrics, job["id"], trial.step)):
                trial.step = int(point["step"])
                if point.get("valid_loss") is not None:
                    trial.losses[trial.step] = float(point["valid_loss"])
            trial.ended = ended

    def cancel(self) -> None:
        """Take every job back that has not ended."""
        for job, trial in zip(self.jobs, self.trials, strict=False):
            if not trial.ended:
                self._do(self.client.cancel, job["id"])

    def _act(self, standing: Standing) -> None:
        for i in standing.dropped:
            if not self.trials[i].ended:
                self._do(self.client.cancel, self.jobs[i]["id"])
        there, rung = set(standing.waiting), self.plan.rungs[standing.rung]
        for i in standing.going:
            status = self.jobs[i]["status"]
            # Twice seen at the rung while others are not: it would spend steps that may be lost.
            ahead = i in there & self._there and rung < self.plan.rungs[-1]
            if ahead and status == "running":
                self._do(self.client.pause, self.jobs[i]["id"])
            elif i not in there and status == "paused":
                self._do(self.client.resume, self.jobs[i]["id"])
        self._there = there

    def _do(self, verb: Callable[[str], Json], job_id: str) -> None:
        """A verb on a job that may have ended, or stopped, a moment ago: then it is too late."""
        with contextlib.suppress(StateError):
            self._ask(partial(verb, job_id))

    def _ask(self, call: Callable[[], Any]) -> Any:
        return self.client.ride_out(OUTAGE_SECONDS, call, outage)

    def _tell(self, standing: Standing) -> None:
        rung = self.plan.rungs[standing.rung]
        spent = sum(trial.step for trial in self.trials)
        output.progress(
            f"sweep {self.name}  rung {standing.rung + 1} of {len(self.plan.rungs)} (step {rung})  "
            f"{len(standing.waiting)} of {len(standing.going)} there  {spent:,} steps"
        )
