"""Rows to Markdown tables. Pure: what was not measured is an empty cell or a sentence.

Every cell is the median over the rounds; where there are several, (least to most) follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bench import memory
from bench.figures import (
    ALL,
    FIGURES,
    STEADY,
    Figure,
    Rows,
    Spread,
    by_round,
    floors,
    over,
    pick,
    swapped,
)
from bench.measure import Row

NOTHING = "Not measured yet: `make bench`."


def table(headers: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    every = [headers, ["---"] * len(headers), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in every)


def shown(found: Spread | None, digits: int = 1, factor: float = 1.0, unit: str = "") -> str:
    """A spread as a cell."""
    if found is None:
        return ""
    text = f"{found.middle * factor:,.{digits}f}{unit}"
    if found.least == found.most:
        return text
    return f"{text} ({found.least * factor:,.{digits}f} to {found.most * factor:,.{digits}f})"


def _cell(rows: Rows, key: str, digits: int = 0, factor: float = 1.0, unit: str = "") -> str:
    return shown(Spread.of(by_round(rows, key).values()), digits, factor, unit)


def _gib(rows: Rows, key: str = "peak_bytes") -> str:
    return _cell(rows, key, 2, 2**-30)


def goals(rows: Rows) -> str:
    """What was promised, what is measured, what bounds it."""
    marks = {True: "reached", False: "not reached", None: ""}

    def line(figure: Figure) -> list[str]:
        found = figure.value(rows)
        share = figure.unit == "share"
        digits, factor, unit = (1, 100.0, " %") if share else (2, 1.0, "")
        unit = " s" if figure.unit == "seconds" else unit
        goal = f"{figure.goal * factor:g}{unit}"
        value = shown(found, digits, factor, unit) or "not measured"
        if figure.name.startswith("predicted") and found is not None:
            value = f"{found.middle:.2f}"
        at = "at most " if figure.at_most else "at least "
        return [figure.name, at + goal, value, marks[figure.reached(rows)], figure.bound]

    headers = ("figure", "goal", "measured", "", "what bounds it")
    return table(headers, (line(figure) for figure in FIGURES))


def workload(rows: Rows) -> str:
    """Every variant on the fixed workload."""
    lines = []
    alone = pick(rows, "trainer_peft")
    if alone:
        seconds = _cell(alone, "wall_seconds", 1)
        lines.append(
            ["Trainer+PEFT, a process per job", *_rate(alone), seconds, _gib(alone), "", ""]
        )
    for dtype in ("float32", "bfloat16"):
        found = pick(rows, "set_adapter", adapter_dtype=dtype)
        if found:
            name = f"PEFT set_adapter, {dtype} adapters"
            lines.append([name, *_rate(found), _per_job(found), _gib(found), "", ""])
    for jobs in _values(pick(rows, "ours"), "jobs"):
        found = pick(rows, "ours", jobs=jobs)
        share = over(by_round(found, STEADY), floors(rows, jobs))
        lines.append([_jobs(jobs), *_rate(found), *_ours(found), shown(share, 0, 100, " %")])
    for exact, name in ((True, "no native kernels"), (False, "no native kernels, not exact")):
        for jobs in _values(pick(rows, "ours", native=False, exact=exact), "jobs"):
            found = pick(rows, "ours", native=False, exact=exact, jobs=jobs)
            share = over(by_round(found, STEADY), floors(rows, jobs))
            told = f"{_jobs(jobs)}, {name}"
            lines.append([told, *_rate(found), *_ours(found), shown(share, 0, 100, " %")])
    for jobs in sorted({int(each) for row in pick(rows, "floor") for each in row["floors"]}):
        rate = shown(Spread.of(floors(rows, jobs).values()), 0)
        lines.append([f"the floor for {_jobs(jobs)}", rate, rate, "", "", "", "100 %"])
    headers = (
        "variant",
        "tokens/s with warm-up",
        "steady",
        "seconds a job",
        "peak GiB",
        "padding",
        "share of the floor",
    )
    return table(headers, lines) if lines else NOTHING


def engine(rows: Rows) -> str:
    """What only this engine has: cold start, forwards, memory of the steps alone."""
    lines = []
    for jobs in _values(pick(rows, "ours"), "jobs"):
        found = pick(rows, "ours", jobs=jobs)
        lines.append(
            [
                _jobs(jobs),
                _cell(found, "load_seconds", 1),
                _cell(found, "kernels_seconds", 1),
                _cell(found, "construct_seconds", 1),
                _cell(found, "calibrate_seconds", 1),
                _gib(found, "steps_peak_bytes"),
                _cell(found, "passes_per_step", 2),
                _cell(found, "head_padding", 0, 100, " %"),
            ]
        )
    headers = (
        "jobs",
        "load, s",
        "kernels, s",
        "build, s",
        "calibrate, s",
        "peak GiB in the steps",
        "forwards of the base a step",
        "padding of the head's rows",
    )
    return table(headers, lines) if lines else NOTHING


def growth(rows: Rows, key: str) -> str:
    """Ours, set_adapter and the floor against `length` or `rank`, 8 jobs."""
    lines = []
    for value in _values(pick(rows, "ours", part=key), key):
        ours = pick(rows, "ours", part=key, **{key: value})
        peer = pick(rows, "set_adapter", part=key, **{key: value})
        ratio = over(by_round(ours, STEADY), by_round(peer, STEADY))
        line = [f"{value}", _cell(ours, STEADY), _cell(peer, STEADY), shown(ratio)]
        if key == "length":
            jobs = ours[0]["jobs"]
            under = floors(rows, jobs, part=key, length=value)
            line.append(shown(over(by_round(ours, STEADY), under), 0, 100, " %"))
        lines.append([*line, _gib(ours), _gib(peer), _cell(ours, "padding", 0, 100, " %")])
    headers = [key if key == "rank" else "tokens a text", "ours, tokens/s", "set_adapter", "ratio"]
    headers += ["share of the floor"] if key == "length" else []
    headers += ["ours, peak GiB", "set_adapter, peak GiB", "padding"]
    return table(headers, lines) if lines else NOTHING


def llama(rows: Rows) -> str:
    """The architecture without Gemma's special pieces."""
    lines = []
    for dtype in ("float32", "bfloat16"):
        found = pick(rows, "set_adapter", part="llama", adapter_dtype=dtype)
        if found:
            lines.append([f"set_adapter, {dtype} adapters", *_rate(found), _gib(found), "", ""])
    for jobs in _values(pick(rows, "ours", part="llama"), "jobs"):
        found = pick(rows, "ours", part="llama", jobs=jobs)
        steady = by_round(found, STEADY)
        ratio = over(steady, swapped(rows, STEADY, "llama"))
        share = over(steady, floors(rows, jobs, part="llama"))
        lines.append(
            [_jobs(jobs), *_rate(found), _gib(found), shown(ratio), shown(share, 0, 100, " %")]
        )
    headers = (
        "variant",
        "tokens/s with warm-up",
        "steady",
        "peak GiB",
        "against set_adapter",
        "share of the floor",
    )
    return table(headers, lines) if lines else NOTHING


def predicted(rows: Rows) -> str:
    """The grid of predictions."""
    lines = []
    for row in pick(rows, "memory"):
        told, seen = max(row["steps"], key=lambda pair: pair[1])
        lines.append(
            [
                *(str(row[key]) for key in ("length", "jobs", "batch", "rank")),
                f"{told / 2**30:.2f}",
                f"{seen / 2**30:.2f}",
                f"{row['least_ratio']:.2f} to {row['most_ratio']:.2f}",
                memory.flag(row),
            ]
        )
    headers = (
        "tokens a text",
        "jobs",
        "batch",
        "rank",
        "predicted GiB",
        "measured GiB",
        "ratio",
        "",
    )
    return table(headers, lines) if lines else NOTHING


def quantized(rows: Rows) -> str:
    """One base in four bits and whole, here and by the peer."""

    def of(what: str, **where: object) -> Rows:
        plain = {"native": True, "four_bits": False, "jobs": 1, "saved": False}
        wanted = {"part": "quantized", **plain, **where}
        return [
            row
            for row in rows
            if row["what"] == what and all(row.get(k, plain.get(k)) == v for k, v in wanted.items())
        ]

    usual = by_round(of("set_adapter", bits="nf4", four_bits=True), "peak_bytes")
    every = (
        (
            "PEFT on bitsandbytes, quantised as it loads",
            of("set_adapter", bits="nf4", four_bits=True),
        ),
        ("PEFT on bitsandbytes, saved quantised", of("set_adapter", bits="nf4", saved=True)),
        ("PEFT on the whole base", of("set_adapter", bits="bf16")),
        ("1 job, NF4", of("ours", bits="nf4")),
        ("1 job, NF4, no native kernels", of("ours", bits="nf4", native=False)),
        ("1 job, whole base", of("ours", bits="bf16")),
        ("8 jobs, NF4", of("ours", bits="nf4", jobs=8)),
        ("8 jobs, whole base", of("ours", bits="bf16", jobs=8)),
    )
    lines = [
        [
            name,
            _gib(found),
            shown(over(by_round(found, "peak_bytes"), usual), 2),
            _cell(found, "base_bytes", 0, 1e-6, " MB"),
        ]
        for name, found in every
        if found
    ]
    headers = ("variant", "peak GiB", "against bitsandbytes", "the base's files")
    return table(headers, lines) if lines else NOTHING


def service(rows: Rows) -> str:
    """Jobs through the service."""
    lines = []
    for row in pick(rows, "service"):
        lines.append(
            [
                str(row["round"]),
                str(row["jobs"]),
                f"{row['alone_seconds']:.1f}",
                f"{row['wall_seconds']:.1f}",
                f"{row['sent_seconds']:.1f}",
                _least_most(row["created_to_claim_seconds"]),
                _least_most(row["claim_to_first_step_seconds"]),
                _least_most(row["claim_to_published_seconds"]),
            ]
        )
    headers = (
        "round",
        "jobs",
        "one Trainer+PEFT process, s",
        "submit to all published, s",
        "sending, s",
        "created to claimed, s",
        "claimed to first step in the books, s",
        "claimed to published, s",
    )
    return table(headers, lines) if lines else NOTHING


def machine(files: dict[str, dict[str, Any]]) -> str:
    """Which machine, which versions, which commands."""
    lines: list[list[str]] = []
    for name, held in files.items():
        if not held["rows"]:
            continue
        facts: Row = held["machine"]
        flags = ", ".join(facts["flags"]) or "none of AMX, AVX512, AVX2"
        speed = ", ".join(f"{k}={v}" for k, v in facts["environment"].items()) or "none"
        where = f"{facts['cores']} cores of {facts['cpu']}, {facts['memory_bytes'] / 2**30:.0f} GiB"
        versions = f"torch {facts['torch']}, transformers {facts['transformers']}"
        lines.append(
            [
                name,
                held["started"],
                f"`{held['command']}`",
                facts.get("gpu", where),
                flags,
                f"{versions}, Python {facts['python']}, {facts['threads']} threads",
                speed,
            ]
        )
    headers = ("rows", "started", "command", "machine", "CPU flags", "versions", "variables")
    return table(headers, lines) if lines else NOTHING


def _rate(rows: Rows) -> list[str]:
    return [_cell(rows, ALL), _cell(rows, STEADY)]


def _per_job(rows: Rows) -> str:
    """Seconds a job at that rate: not all of them were trained."""
    done = [row["loop_seconds"] / min(row["jobs"], row.get("trained", row["jobs"])) for row in rows]
    return shown(Spread.of(done))


def _ours(rows: Rows) -> list[str]:
    padding = _cell(rows, "padding", 0, 100, " %")
    return [_cell(rows, "seconds_per_job", 1), _gib(rows), padding]


def _values(rows: Rows, key: str) -> list[int]:
    return sorted({row[key] for row in rows})


def _jobs(count: int) -> str:
    return f"{count} job{'' if count == 1 else 's'}"


def _least_most(values: list[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}"


def plot(rows: Rows) -> str:
    """The picture, once there is something in it."""
    if not pick(rows, "ours"):
        return NOTHING
    return "![tokens per second against the number of jobs and their length](performance.png)"


#: block of docs/performance.md -> what writes it from all rows
BLOCKS: dict[str, Callable[[Rows], str]] = {
    "plot": plot,
    "goals": goals,
    "workload": workload,
    "engine": engine,
    "length": lambda rows: growth(rows, "length"),
    "rank": lambda rows: growth(rows, "rank"),
    "llama": llama,
    "predicted": predicted,
    "quantized": quantized,
    "service": service,
}
