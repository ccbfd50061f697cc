"""`manylora simulate`: policies and pools side by side, one process for each play."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manylora.errors import UsageError
from scheduler.forecast import demand as demands
from scheduler.forecast.demand import Demand
from scheduler.forecast.judge import judge
from scheduler.forecast.play import POLICIES, play


@dataclass(frozen=True)
class Question:
    """What is asked: the demand, the pools and the policies to try it on."""

    devices: tuple[int, ...] = (16,)
    slots: int = 4
    policies: tuple[str, ...] = ("fair",)
    tenants: int = 100
    jobs: int = 10_000
    days: float = 7.0
    #: of what the first pool can do
    load: float = 0.8
    flood: int = 0
    seed: int = 0
    trace: Path | None = None
    half_life: float = 86_400.0
    tick: float = 1.0
    price: float = 0.10

    def check(self) -> None:
        """Raises: UsageError for what cannot be played."""
        positive = ("slots", "tenants", "jobs", "days", "load", "half_life", "tick")
        wrong = [name for name in positive if not getattr(self, name) > 0]
        if wrong or self.flood < 0 or self.price < 0 or not self.devices or min(self.devices) < 1:
            raise UsageError(f"{', '.join(wrong) or 'devices, flood or price'}: must be above zero")
        unknown = sorted(set(self.policies) - set(POLICIES))
        if unknown:
            raise UsageError(f"no policy {', '.join(unknown)}", hint=", ".join(POLICIES))

    def demand(self) -> Demand:
        """The demand, drawn or read. Raises: UsageError."""
        if self.trace is not None:
            with self.trace.open(newline="", encoding="utf-8") as stream:
                return demands.read(stream)
        # A flood is beyond the load: what the others want is the same with it and without.
        mean = self.load * self.devices[0] * self.slots * self.days * 86_400 / self.jobs
        return demands.generate(
            self.seed,
            tenants=self.tenants,
            jobs=self.jobs,
            days=self.days,
            mean=mean,
            flood=self.flood,
        )


def compare(question: Question) -> list[dict[str, Any]]:
    """The figures of every policy on every pool, and the course of each.

    Raises: UsageError.
    """
    question.check()
    if question.trace is not None:
        question.demand()  # refused here, not in a process of its own
    asked = [
        (question, policy, count) for count in question.devices for policy in question.policies
    ]
    workers = min(len(asked), os.cpu_count() or 1)
    if workers == 1:
        return [_one(*each) for each in asked]
    with ProcessPoolExecutor(workers) as processes:
        return list(processes.map(_each, asked))


def _each(asked: tuple[Question, str, int]) -> dict[str, Any]:
    return _one(*asked)


def _one(question: Question, policy: str, devices: int) -> dict[str, Any]:
    began = time.perf_counter()
    demand = question.demand()
    end = None if question.trace is not None else question.days * 86_400.0
    played = play(
        demand,
        devices * question.slots,
        policy=policy,
        half_life=question.half_life,
        tick=question.tick,
        end=end,
    )
    found = judge(demand, played, slots_per_device=question.slots, price=question.price)
    return found | {"course": played.seen, "wall_seconds": time.perf_counter() - began}


def ask(**given: Any) -> list[dict[str, Any]]:
    """`compare`, for the command line: sequences become tuples."""
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list | tuple) else value
        for name, value in given.items()
    }
    return compare(Question(**plain))
