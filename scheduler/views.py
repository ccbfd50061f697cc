"""What the planner sees and what it answers: plain values, no row and no connection among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: seconds: a day, after which shares used are half forgotten, unless a setting says otherwise
HALF_LIFE = 86_400.0
#: device-seconds from which a job is a long one
LONG = 3600.0


@dataclass(frozen=True)
class Waiting:
    """A queued job. Times in seconds since the epoch; `cost` in device-seconds, as foreseen."""

    job_id: str
    base: str
    fingerprint: str
    priority: int
    queued_at: float
    tenant: str = ""
    cost: float = 60.0
    deadline: float | None = None
    #: as foretold when it was queued; None for one that has been out before
    foretold: float | None = None


@dataclass(frozen=True)
class Running:
    """A job at work. `wish`: what it is asked for already; its slot is about to be free."""

    job_id: str
    attempt: int
    queue: str
    priority: int
    started_at: float
    wish: str | None = None
    preemptions: int = 0
    worker_id: str | None = None
    tenant: str = ""
    cost: float = 60.0


@dataclass(frozen=True)
class Tenant:
    """What a tenant may have and has had. `active`: its jobs dispatched or running, in all pools;
    `left_today`: device-seconds left of its day, None without bound."""

    weight: float = 1.0
    used: float = 0.0
    used_at: float = 0.0
    active: int = 0
    max_running: int | None = None
    left_today: float | None = None


@dataclass(frozen=True)
class WorkerView:
    """A living worker. `queue` is None until it holds a base and is ready."""

    worker_id: str
    slots: int
    pinned: bool
    assigned_base: str | None
    fingerprint: str | None
    queue: str | None
    ready: bool


@dataclass(frozen=True)
class Snapshot:
    """All that the planner knows. `waiting` need not be the whole queue: of each base the lines
    whose turn is next, as many as there are free slots, are enough (see `fill.py`)."""

    waiting: tuple[Waiting, ...]
    workers: tuple[WorkerView, ...]
    #: open attempts per queue
    busy: Mapping[str, int]
    #: ready bases by name, oldest first
    bases: tuple[str, ...]
    running: tuple[Running, ...] = ()
    #: how often a job makes room
    most_preemptions: int = 0
    #: whether silence may be held against a worker; if not, nothing is taken from anybody
    settled: bool = True
    #: who is not there has had nothing and has no quota
    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    #: since when a tenant's line for a base has had jobs; else since its first job here
    since: Mapping[tuple[str, str], float] = field(default_factory=dict)
    #: queued jobs by base, where `waiting` is not all of them
    demand: Mapping[str, int] | None = None
    now: float = 0.0
    half_life: float = HALF_LIFE


@dataclass
class Plan:
    """What to do, and why the rest waits."""

    #: (job, queue)
    dispatches: list[tuple[str, str]] = field(default_factory=list)
    assignments: list[tuple[str, str]] = field(default_factory=list)
    #: why each job that was looked at and did not go waits
    reasons: dict[str, str] = field(default_factory=dict)
    #: (job, attempt) of those asked to make room
    preemptions: list[tuple[str, int]] = field(default_factory=list)
    #: tenants of whom nothing more is to go, and why
    stops: dict[str, str] = field(default_factory=dict)
    #: per base: slots, and why nothing at all is sent out, if so
    pools: dict[str, tuple[int, str | None]] = field(default_factory=dict)
