"""docs/performance.png: tokens per second against the number of jobs and against their length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.figures import STEADY, Rows, Spread, by_round, floors, pick, swapped

_COLOURS = {"ours": "#1f6f8b", "set_adapter": "#c8553d", "floor": "#888888"}
_NAMES = {
    "ours": "manylora, exact",
    "set_adapter": "PEFT set_adapter, job after job",
    "floor": "the floor: matrix products only",
}


def lines(rows: Rows) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """The points of both pictures: by picture, then by variant. Steady tokens per second."""
    many = sorted({row["jobs"] for row in pick(rows, "ours")})
    by_jobs: dict[str, list[tuple[float, float]]] = {name: [] for name in _NAMES}
    for jobs in many:
        _add(by_jobs["ours"], jobs, by_round(pick(rows, "ours", jobs=jobs), STEADY))
        _add(by_jobs["set_adapter"], jobs, swapped(rows, STEADY))
        _add(by_jobs["floor"], jobs, floors(rows, jobs))
    by_length: dict[str, list[tuple[float, float]]] = {name: [] for name in _NAMES}
    for row in sorted(pick(rows, "ours", part="length"), key=lambda row: row["length"]):
        length, jobs = row["length"], row["jobs"]
        for name in ("ours", "set_adapter"):
            found = pick(rows, name, part="length", length=length)
            _add(by_length[name], length, by_round(found, STEADY))
        _add(by_length["floor"], length, floors(rows, jobs, part="length", length=length))
    return {"number of jobs": by_jobs, "tokens a text, 8 jobs": by_length}


def _add(points: list[tuple[float, float]], at: float, values: dict[int, float]) -> None:
    found = Spread.of(values.values())
    if found is not None:
        points.append((at, found.middle))


def draw(rows: Rows, target: Path) -> None:
    """Write the picture. Raises: ModuleNotFoundError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {title: each for title, each in lines(rows).items() if any(each.values())}
    figure, axes = pyplot.subplots(
        1, len(shown), figsize=(5.5 * len(shown), 4.2), layout="constrained", squeeze=False
    )
    for axis, (title, variants) in zip(axes[0], shown.items(), strict=True):
        _one(axis, title, variants)
    axes[0][0].legend(frameon=False)
    figure.suptitle("Gemma 3 270M on a CPU, rank 8, batch 4: steady tokens/s")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130, metadata={"Software": None})
    pyplot.close(figure)


def _one(axis: Any, title: str, variants: dict[str, list[tuple[float, float]]]) -> None:
    for name, points in variants.items():
        if points:
            across, up = zip(*points, strict=True)
            style = "--" if name == "floor" else "-"
            axis.plot(across, up, style, marker="o", color=_COLOURS[name], label=_NAMES[name])
    ticks = sorted({x for points in variants.values() for x, _ in points})
    if ticks:
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axis.minorticks_off()
    axis.set_xlabel(title)
    axis.set_ylabel("tokens/s")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
