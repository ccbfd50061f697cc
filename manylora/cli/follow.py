"""Following a job until it ends: what `submit`, `watch` and `wait` share.

An outage of the API of up to ten minutes is ridden out. Ctrl-C is left to the caller.
"""

from __future__ import annotations

import shutil
from threading import Event
from typing import TYPE_CHECKING, Any

from manylora.cli import output
from manylora.clock import Clock, SystemClock

if TYPE_CHECKING:
    from manylora.client import Client
    from manylora.errors import UnavailableError

OUTAGE_SECONDS = 600.0
FATES = {"succeeded": 0, "failed": 100, "cancelled": 103}
Json = dict[str, Any]


def outage(error: UnavailableError) -> None:
    """Say once that the service is away."""
    output.talk(f"{error.message}; trying again for up to 10 minutes", "waiting")


class Follower:
    """Watches one job; keeps every loss it has seen for the plot."""

    def __init__(self, client: Client, job_id: str, clock: Clock | None = None) -> None:
        self.client = client
        self.job_id = job_id
        self.clock = clock or SystemClock()
        self.points: list[Json] = []
        self._told: tuple[Any, ...] | None = None
        self._seen: set[str] = set()

    def until_final(self, interval: float = 1.0) -> Json:
        """The job's last object, once nothing changes any more."""
        while True:
            job = self.client.ride_out(OUTAGE_SECONDS, lambda: self.client.job(self.job_id), outage)
            if job["status"] in ("running", *FATES):
                self._read_metrics()
            if output.live():
                output.progress(line(job, self.points))
            else:
                self._tell_events()
            if job["status"] in FATES:
                self._tell_events()
                output.end_progress()
                return job
            self.clock.wait(Event(), interval)

    def _read_metrics(self) -> None:
        last = int(self.points[-1]["step"]) if self.points else 0
        self.points += self.client.ride_out(
            OUTAGE_SECONDS, lambda: self.client.metrics(self.job_id, last), outage
        )

    def _tell_events(self) -> None:
        """Without a terminal that can redraw a line, the events are the progress."""
        fresh = []
        for event in self.client.ride_out(
            OUTAGE_SECONDS, lambda: newest(self.client, self.job_id, 50), outage
        ):
            if event["id"] in self._seen:
                break
            self._seen.add(event["id"])
            fresh.append(event)
        for event in reversed(fresh):
            if not output.live() or event.get("level") != "info":
                output.talk(event["message"], event.get("level", "info"))


def newest(client: Client, job_id: str, count: int) -> list[Json]:
    """A job's newest events, newest first."""
    events = client.events(job_id, limit=min(count, 100))
    return [event for event, _ in zip(events, range(count), strict=False)]


def line(job: Json, points: list[Json]) -> str:
    """One line: where the job stands and how its loss went."""
    x = job.get("x") or {}
    step, total = x.get("step") or 0, x.get("total_steps")
    suffix = job.get("user_provided_suffix") or ""
    wide = shutil.get_terminal_size().columns >= 110
    # Ids are long; where there is no room, the suffix or the id's beginning has to do.
    parts = [job["id"], suffix] if wide else [suffix or f"{job['id'][:12]}…"]
    parts.append(job["status"])
    if job["status"] == "running" and total:
        share = step / total
        parts += [f"step {step}/{total}", output.bar(share, 24 if wide else 12), f"{share:.0%}"]
    elif x.get("waiting_for"):
        parts.append(str(x["waiting_for"]))
    return "  ".join(part for part in [*parts, losses(points)] if part)


def losses(points: list[Json]) -> str:
    """First and last training loss, last and best validation loss."""
    train = [(p["step"], p["train_loss"]) for p in points if p.get("train_loss") is not None]
    valid = [(p["valid_loss"], p["step"]) for p in points if p.get("valid_loss") is not None]
    parts = []
    if train:
        parts.append(f"loss {train[0][1]:.2f} → {train[-1][1]:.2f}")
    if valid:
        best, at = min(valid)
        parts.append(f"val {valid[-1][0]:.2f} (best {best:.2f} at {at})")
    return "   ".join(parts)


def cost(job: Json) -> str:
    """What a job cost so far."""
    x = job.get("x") or {}
    if x.get("cost") is None:
        return ""
    seconds = f"{output.span(x['device_seconds'])} of a device, " if x.get("device_seconds") else ""
    return f"{seconds}{x['cost']:.4f} {x.get('currency', '')}".rstrip()


def why(job: Json) -> str:
    """Why a job failed, in the service's words."""
    return str((job.get("error") or {}).get("message") or "no reason was given")
