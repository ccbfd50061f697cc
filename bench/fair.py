"""Shares under a flood, by `manylora simulate`'s own code: `python -m bench.fair [--quick]`.

500 tenants with heavy-tailed demand, one more that sends 5,000 jobs at once; three
policies on the same pool. Then the service's policy on pools of three sizes. Rows go to
build/bench/fair.json, the picture to docs/scheduling.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench.measure import OUT, ROOT, Row
from scheduler.forecast.compare import ask

PICTURE = ROOT / "docs" / "scheduling.png"
FLOOD: dict[str, Any] = {
    "slots": 4, "tenants": 500, "jobs": 20_000, "days": 7.0, "load": 0.8, "flood": 5000, "seed": 0,
}  # fmt: skip
POLICIES = ("fair", "fifo", "priority")
_COLOURS = {"fair": "#1f6f8b", "fifo": "#c8553d", "priority": "#888888"}


def draw(rows: list[Row], target: Path) -> None:
    """Waits by class of tenant, and how many jobs waited, under each policy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.0), layout="constrained")
    kinds = ("small", "large", "flood")
    for place, row in enumerate(rows):
        colour, name = _COLOURS[row["policy"]], f"{row['policy']}: Jain {row['jain']:.3f}"
        heights = [max(row["waits"][kind]["p95"], 1.0) / 60 for kind in kinds]
        across = [i + 0.27 * (place - 1) for i in range(len(kinds))]
        left.bar(across, heights, 0.25, color=colour, label=name)
        days, _, waiting = zip(*row["course"], strict=True)
        right.plot([d / 86_400 for d in days], waiting, color=colour, label=row["policy"])
    left.set_xticks(range(len(kinds)), [f"{kind} tenants" for kind in kinds[:2]] + ["the flood"])
    left.set_yscale("log")
    left.set_ylabel("p95 wait, minutes")
    right.set_xlabel("day")
    right.set_ylabel("jobs waiting")
    for axis in (left, right):
        axis.legend(frameon=False)
        axis.grid(alpha=0.25)
    figure.savefig(target, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def main() -> None:
    """Play, write, draw."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--quick", action="store_true", help="few jobs, no picture")
    given = words.parse_args()
    asked = FLOOD | ({"jobs": 2000, "flood": 200, "days": 1.0} if given.quick else {})
    policies = ask(devices=(16,), policies=POLICIES, **asked)
    pools = ask(devices=(12, 16, 24), policies=("fair",), **(asked | {"flood": 0}))
    OUT.mkdir(parents=True, exist_ok=True)
    found = {"policies": policies, "pools": pools}
    (OUT / "fair.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not given.quick:
        draw(policies, PICTURE)


if __name__ == "__main__":
    main()
