"""Demand: who submits what when, drawn from a seed or read from a trace."""

from __future__ import annotations

import csv
import math
import random
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate

from manylora.errors import UsageError

#: a tenant's demand, and how many jobs it sends at once: Pareto, cut off
_RATE, _BURST = 1.1, 1.3
_MOST_RATE, _MOST_BURST = 1e4, 200
#: a job's size: log-normal, at most so many times the mean
_SIGMA, _MOST_SIZE = 1.5, 50.0
COLUMNS = ("time", "tenant", "seconds")
MORE = ("priority", "deadline", "weight")


@dataclass
class Demand:
    """Jobs in order of their times: seconds since the start, and the tenant, what the job takes in
    a slot (seconds), its priority and its deadline (`inf` without)."""

    times: array[float] = field(default_factory=lambda: array("d"))
    tenants: array[int] = field(default_factory=lambda: array("l"))
    seconds: array[float] = field(default_factory=lambda: array("d"))
    priorities: array[int] = field(default_factory=lambda: array("h"))
    deadlines: array[float] = field(default_factory=lambda: array("d"))
    names: list[str] = field(default_factory=list)
    weights: dict[int, float] = field(default_factory=dict)
    #: the one that submits far more than its share, if one does
    flooding: int | None = None

    def __len__(self) -> int:
        return len(self.times)


def generate(
    seed: int, *, tenants: int, jobs: int, days: float, mean: float, flood: int = 0
) -> Demand:
    """Heavy-tailed demand: few tenants want most, jobs come in bursts, few jobs are most of the
    work. `mean`: seconds a job takes in its slot. `flood`: jobs of one more tenant, all at a tenth
    of the time. The same seed gives the same demand."""
    chance = random.Random(seed)  # noqa: S311
    rates = [min(chance.paretovariate(_RATE), _MOST_RATE) for _ in range(tenants)]
    totals = list(accumulate(rates))
    horizon = days * 86_400.0
    scale = math.log(mean) - _SIGMA**2 / 2
    rows: list[tuple[float, int, float]] = []
    while len(rows) < jobs:
        (tenant,) = chance.choices(range(tenants), cum_weights=totals)
        at = chance.uniform(0.0, horizon)
        for _ in range(min(int(chance.paretovariate(_BURST)), _MOST_BURST, jobs - len(rows))):
            rows.append((at, tenant, min(chance.lognormvariate(scale, _SIGMA), _MOST_SIZE * mean)))
    for _ in range(flood):
        rows.append((horizon / 10, tenants, mean))
    rows.sort()
    found = Demand(
        array("d", (row[0] for row in rows)),
        array("l", (row[1] for row in rows)),
        array("d", (row[2] for row in rows)),
        array("h", bytes(2 * len(rows))),
        array("d", [math.inf]) * len(rows),
        [f"tenant-{i}" for i in range(tenants)] + (["flood"] if flood else []),
        flooding=tenants if flood else None,
    )
    return found


def read(lines: Iterable[str]) -> Demand:
    """A trace: CSV with a header; `time`, `tenant`, `seconds`, and if wanted `priority`,
    `deadline` (seconds since the start), `weight` of the tenant. Times may come in any order.

    Raises: UsageError naming the line.
    """
    rows = csv.reader(lines)
    header = [name.strip() for name in next(rows, [])]
    missing = [name for name in COLUMNS if name not in header]
    unknown = [name for name in header if name not in COLUMNS + MORE]
    if missing or unknown:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(unknown)}"
        raise UsageError(
            f"line 1: the header {wrong}",
            hint=f"columns: {', '.join(COLUMNS)}; if wanted {', '.join(MORE)}",
        )
    found, index = Demand(), dict[str, int]()
    read_: list[tuple[float, int, float, int, float]] = []
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        line = rows.line_num
        cells = _cells(header, row, line)
        tenant = index.setdefault(cells["tenant"], len(index))
        at = _number(cells, "time", line, least=0.0)
        seconds = _number(cells, "seconds", line, least=0.0, above=True)
        priority = _number(cells, "priority", line, least=-100.0) if cells.get("priority") else 0.0
        deadline = _number(cells, "deadline", line) if cells.get("deadline") else math.inf
        if priority != int(priority) or priority > 100:
            raise UsageError(f"line {line}: priority {cells['priority']} is not -100 to 100")
        if deadline <= at:
            raise UsageError(f"line {line}: deadline {deadline:g} is before its job, at {at:g}")
        if cells.get("weight"):
            weight = _number(cells, "weight", line, least=0.0, above=True)
            if found.weights.setdefault(tenant, weight) != weight:
                raise UsageError(f"line {line}: {cells['tenant']} had another weight before")
        read_.append((at, tenant, seconds, int(priority), deadline))
    if not read_:
        raise UsageError("the trace has no jobs")
    read_.sort()
    found.times = array("d", (row[0] for row in read_))
    found.tenants = array("l", (row[1] for row in read_))
    found.seconds = array("d", (row[2] for row in read_))
    found.priorities = array("h", (row[3] for row in read_))
    found.deadlines = array("d", (row[4] for row in read_))
    found.names = list(index)
    return found


def _cells(header: list[str], row: list[str], line: int) -> dict[str, str]:
    if len(row) != len(header):
        raise UsageError(f"line {line}: {len(row)} values for {len(header)} columns")
    cells = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
    holes = [name for name in COLUMNS if not cells[name]]
    if holes:
        raise UsageError(f"line {line}: {', '.join(holes)} is missing")
    return cells


def _number(
    cells: dict[str, str], name: str, line: int, *, least: float = -math.inf, above: bool = False
) -> float:
    try:
        value = float(cells[name])
    except ValueError:
        raise UsageError(f"line {line}: {name} {cells[name]!r} is not a number") from None
    if not math.isfinite(value) or value < least or (above and value == least):
        bound = f"above {least:g}" if above else f"at least {least:g}"
        raise UsageError(f"line {line}: {name} {cells[name]} must be finite and {bound}")
    return value
