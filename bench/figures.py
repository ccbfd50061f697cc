"""The figures that were promised, each computed from the rows: a ratio of things measured in the
same round, its median, least and most over the rounds. Pure: rows in, values out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.measure import Row
from bench.workload import JOBS

Rows = list[Row]
STEADY = "steady_tokens_per_second"
ALL = "tokens_per_second"


@dataclass(frozen=True)
class Spread:
    """A value over the rounds."""

    middle: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None where there is nothing."""
        found = sorted(values)
        return cls(statistics.median(found), found[0], found[-1]) if found else None


@dataclass(frozen=True)
class Figure:
    """One promise: `goal` is the least allowed, or with `at_most` the most."""

    name: str
    goal: float
    value: Callable[[Rows], Spread | None]
    bound: str
    at_most: bool = False
    unit: str = "ratio"  # ratio | share | seconds

    def reached(self, rows: Rows) -> bool | None:
        """Whether the median is as good as promised; None where it was not measured."""
        found = self.value(rows)
        if found is None:
            return None
        return found.middle <= self.goal if self.at_most else found.middle >= self.goal


def pick(rows: Rows, what: str, **where: object) -> Rows:
    """The rows of that kind with those values; a missing value is its default."""
    plain = {"exact": True, "native": True, "part": "jobs"}
    if what == "service" or what == "memory":
        plain = {}
    wanted = {**plain, **where}
    return [
        row
        for row in rows
        if row["what"] == what
        and all(row.get(key, plain.get(key)) == value for key, value in wanted.items())
    ]


def by_round(rows: Rows, key: str) -> dict[int, float]:
    """The value of each round; rows that lack it are left out."""
    return {row["round"]: row[key] for row in rows if row.get(key) is not None}


def over(top: dict[int, float], bottom: dict[int, float]) -> Spread | None:
    """One by the other, round by round."""
    return Spread.of(top[n] / bottom[n] for n in top.keys() & bottom.keys())


def swapped(rows: Rows, key: str, part: str = "jobs") -> dict[int, float]:
    """PEFT's set_adapter in each round: the faster of its two adapter dtypes."""
    found: dict[int, float] = {}
    for row in pick(rows, "set_adapter", part=part):
        if row.get(key) is not None:
            found[row["round"]] = max(row[key], found.get(row["round"], 0.0))
    return found


def floors(rows: Rows, jobs: int, **where: object) -> dict[int, float]:
    """Tokens per second of the bare products, by round."""
    return {
        row["round"]: row["floors"][str(jobs)][ALL]
        for row in pick(rows, "floor", **where)
        if str(jobs) in row["floors"]
    }


def _against_peft(jobs: int, key: str, part: str = "jobs") -> Callable[[Rows], Spread | None]:
    def value(rows: Rows) -> Spread | None:
        ours = by_round(pick(rows, "ours", part=part, jobs=jobs), key)
        return over(ours, swapped(rows, key, part))

    return value


def _floor_share(rows: Rows) -> Spread | None:
    return over(by_round(pick(rows, "ours", jobs=JOBS), STEADY), floors(rows, JOBS))


def _peft_share(rows: Rows) -> Spread | None:
    return over(swapped(rows, STEADY), floors(rows, JOBS))


def _memory(jobs: int) -> Callable[[Rows], Spread | None]:
    def value(rows: Rows) -> Spread | None:
        ours = by_round(pick(rows, "ours", jobs=jobs), "peak_bytes")
        return over(ours, by_round(pick(rows, "trainer_peft"), "peak_bytes"))

    return value


def _exactness(rows: Rows) -> Spread | None:
    exact = by_round(pick(rows, "ours", jobs=JOBS, native=False), STEADY)
    free = by_round(pick(rows, "ours", jobs=JOBS, native=False, exact=False), STEADY)
    return Spread.of(1 - exact[n] / free[n] for n in exact.keys() & free.keys())


def _padding(rows: Rows) -> Spread | None:
    return Spread.of(by_round(pick(rows, "ours", jobs=JOBS), "padding").values())


def _cold(rows: Rows) -> Spread | None:
    return Spread.of(by_round(pick(rows, "ours", jobs=JOBS), "cold_seconds").values())


def _first_cold(rows: Rows) -> Spread | None:
    return Spread.of(by_round(pick(rows, "ours", part="cold"), "cold_seconds").values())


def _service(rows: Rows) -> Spread | None:
    return Spread.of(
        JOBS * row["alone_seconds"] / row["wall_seconds"]
        for row in pick(rows, "service", jobs=JOBS)
    )


def _first_step(rows: Rows) -> Spread | None:
    return Spread.of(
        max(row["claim_to_first_step_seconds"]) for row in pick(rows, "service", jobs=JOBS)
    )


def _first_step_alone(rows: Rows) -> Spread | None:
    return Spread.of(
        by_round(pick(rows, "service", jobs=JOBS), "first_step_alone_seconds").values()
    )


def _warm(rows: Rows) -> Spread | None:
    return Spread.of(by_round(pick(rows, "ours", part="warm"), "cold_seconds").values())


def _predicted(least: bool) -> Callable[[Rows], Spread | None]:
    def value(rows: Rows) -> Spread | None:
        found = [row["least_ratio" if least else "most_ratio"] for row in pick(rows, "memory")]
        worst = min(found, default=None) if least else max(found, default=None)
        return None if worst is None else Spread(worst, min(found), max(found))

    return value


_HEAD = "the head's and the base's products, which the floor is made of"
FIGURES = [
    Figure(
        "8 jobs through the warm service, against 8 Trainer+PEFT processes one after another",
        8.0,
        _service,
        "the engine's rate; dispatch, upload and publishing come on top",
    ),
    Figure("engine, 8 jobs, steady, against set_adapter", 6.5, _against_peft(8, STEADY), _HEAD),
    Figure(
        "the same with warm-up",
        5.3,
        _against_peft(8, ALL),
        "the first two steps touch memory for the first time",
    ),
    Figure(
        "the same, a Llama of Gemma's size, steady",
        5.0,
        _against_peft(8, STEADY, "llama"),
        "a smaller vocabulary: less of the step is the head, where most is gained",
    ),
    Figure("engine, 32 jobs, steady, against set_adapter", 8.5, _against_peft(32, STEADY), _HEAD),
    Figure(
        "engine, one job alone, steady, against set_adapter",
        3.0,
        _against_peft(1, STEADY),
        "reading the weights: a step reads as much for 128 rows as for 1,024",
    ),
    Figure(
        "share of the floor, 8 jobs, steady",
        0.6,
        _floor_share,
        "nothing: the floor is the library's own products, and the native ones are faster",
        unit="share",
    ),
    Figure(
        "peak memory, 8 jobs, against one Trainer+PEFT process",
        0.7,
        _memory(8),
        "the largest probe of the calibration; the base itself",
        at_most=True,
    ),
    Figure(
        "peak memory, 32 jobs, against one Trainer+PEFT process",
        1.3,
        _memory(32),
        "what the forward keeps for the backward of as many rows as the token budget lets in",
        at_most=True,
    ),
    Figure(
        "cost of exactness, 8 jobs, steady, without native kernels",
        0.05,
        _exactness,
        "tiles of 256 rows instead of one product over all rows; native kernels have no other way",
        at_most=True,
        unit="share",
    ),
    Figure(
        "padding's share of the base's rows, 8 jobs",
        0.10,
        _padding,
        "segments end at multiples of 16 rows",
        at_most=True,
        unit="share",
    ),
    Figure(
        "start after loading, where the base was held before: build the trainer, a step",
        2.0,
        _warm,
        "finding the model's groups and trying each of its layers on the kernels",
        at_most=True,
        unit="seconds",
    ),
    Figure(
        "the same on another machine: its memory is measured first",
        20.0,
        _cold,
        "three probe steps",
        at_most=True,
        unit="seconds",
    ),
    Figure(
        "the same with the kernels to be compiled",
        20.0,
        _first_cold,
        "the compiler",
        at_most=True,
        unit="seconds",
    ),
    Figure(
        "from a job's claim to its first step in the books, on an idle worker",
        1.0,
        _first_step_alone,
        "download, tokenising and the step itself",
        at_most=True,
        unit="seconds",
    ),
    Figure(
        "the same, the last of 8 that are claimed together",
        1.0,
        _first_step,
        "the others' step that is under way, and its own beside them: almost a second each",
        at_most=True,
        unit="seconds",
    ),
    Figure(
        "predicted peak memory by measured, the least of the grid",
        1.0,
        _predicted(least=True),
        "the margin over the fit",
    ),
    Figure(
        "predicted peak memory by measured, the most of the grid",
        1.25,
        _predicted(least=False),
        "memory grows in pieces of the allocator's, the formula grows smoothly",
        at_most=True,
    ),
]
