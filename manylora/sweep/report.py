"""What a sweep found, for people and for files: a table, the pick and why, Markdown, a plot."""

from __future__ import annotations

import csv
import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manylora.sweep.halving import Plan, Standing, Trial
from manylora.sweep.space import Params, label

COLUMNS = ("trial", "job", "hyperparameters", "steps", "validation loss", "at step", "fate")


@dataclass(frozen=True)
class Outcome:
    """A sweep and where it stands."""

    name: str
    plan: Plan
    params: list[Params]
    jobs: list[dict[str, Any]]
    trials: list[Trial]
    standing: Standing
    budget: int | None

    @property
    def spent(self) -> int:
        """Optimizer steps of all trials so far."""
        return sum(trial.step for trial in self.trials)

    @property
    def pick(self) -> int | None:
        """The best trial of those that went farthest; None while no loss is known."""
        best = next(iter(self.standing.order), None)
        if best is not None and self.trials[best].losses:
            return best
        known = [i for i, trial in enumerate(self.trials) if trial.losses]
        far = max((max(self.trials[i].losses) for i in known), default=0)
        there = [i for i in known if max(self.trials[i].losses) == far]
        return min(there, key=lambda i: (self.trials[i].losses[far], i), default=None)

    @property
    def reason(self) -> str:
        """Why that one, in a sentence."""
        pick = self.pick
        if pick is None:
            return "no trial has a validation loss"
        step, loss = _last(self.trials[pick])
        others = [i for i in self.standing.order if i != pick and self.trials[i].losses]
        text = f"lowest validation loss, {loss:.4f} at step {step}"
        if others:
            second = _last(self.trials[others[0]])[1]
            text += f", of {len(others) + 1} that got there; the next has {second:.4f}"
            text += f" ({second / loss - 1:+.1%})" if loss > 0 else ""
        elif self.standing.dropped and self.standing.done:
            text += ", the one that was best at each comparison on the way"
        return text

    def rows(self) -> list[tuple[Any, ...]]:
        """The table's rows, best first."""
        order = list(self.standing.order)
        rest = [i for i in range(len(self.trials)) if i not in order]
        rest.sort(key=lambda i: (-self.standing.dropped.get(i, -1), _last(self.trials[i])[1], i))
        return [self._row(i) for i in [*order, *rest]]

    def _row(self, i: int) -> tuple[Any, ...]:
        trial = self.trials[i]
        step, loss = _last(trial)
        shown = f"{loss:.4f}" if math.isfinite(loss) else ""
        return (
            f"{i:03d}",
            self.jobs[i]["id"],
            label(self.params[i]),
            trial.step,
            shown,
            step or "",
            self.fate(i),
        )

    def fate(self, i: int) -> str:
        """What became of a trial."""
        status = self.jobs[i]["status"]
        if status == "failed":
            return f"failed: {(self.jobs[i].get('error') or {}).get('code') or 'unknown'}"
        if i in self.standing.dropped:
            rung = self.plan.rungs[self.standing.dropped[i]]
            late = status == "succeeded"  # its end was nearer than the next look at it
            return f"behind at step {rung}, had ended" if late else f"stopped at step {rung}"
        return "picked" if i == self.pick and self.standing.done else str(status)

    def cost(self) -> str:
        """Steps spent against the budget and a full grid."""
        text = f"{self.spent:,} steps of {self.budget or self.plan.cost:,} "
        text += "in the budget" if self.budget else "planned"
        share = self.spent / self.plan.full
        return f"{text}; every trial to its end would be {self.plan.full:,} ({share:.0%} of that)"

    def document(self) -> dict[str, Any]:
        """All of it as plain values."""
        pick = self.pick
        return {
            "object": "manylora.sweep",
            "sweep": self.name,
            "done": self.standing.done,
            "rungs": list(self.plan.rungs),
            "entering": list(self.plan.entering),
            "steps_spent": self.spent,
            "steps_budget": self.budget,
            "steps_planned": self.plan.cost,
            "steps_full_grid": self.plan.full,
            "pick": None
            if pick is None
            else {"trial": pick, "job_id": self.jobs[pick]["id"], **self.params[pick]},
            "reason": self.reason,
            "trials": [
                {
                    "trial": i,
                    "job_id": self.jobs[i]["id"],
                    "hyperparameters": self.params[i],
                    "steps": trial.step,
                    "valid_losses": {str(k): v for k, v in sorted(trial.losses.items())},
                    "fate": self.fate(i),
                }
                for i, trial in enumerate(self.trials)
            ],
        }

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Each trial's validation losses, by its number and values."""
        return {
            f"{i:03d} {label(self.params[i])}": [
                each for each in sorted(trial.losses.items()) if math.isfinite(each[1])
            ]
            for i, trial in enumerate(self.trials)
        }


def _last(trial: Trial) -> tuple[int, float]:
    return max(trial.losses.items()) if trial.losses else (0, math.inf)


def write(outcome: Outcome, folder: Path) -> list[str]:
    """`trials.csv`, `report.md` and, where matplotlib is, `sweep.png`; returns their names.

    Raises: OSError.
    """
    names = ["trials.csv", "report.md"]
    with (folder / "trials.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(COLUMNS)
        table.writerows(outcome.rows())
    try:
        importlib.import_module("matplotlib")
        _draw(outcome, folder / "sweep.png")
        names.append("sweep.png")
    except ModuleNotFoundError:
        names.append("")
    lines = [f"# Sweep {outcome.name}", ""]
    if outcome.pick is not None:
        params = label(outcome.params[outcome.pick])
        lines += [f"Picked: trial {outcome.pick:03d}, `{params}`: {outcome.reason}.", ""]
    rungs = ", ".join(
        f"{n} to step {r}" for n, r in zip(outcome.plan.entering, outcome.plan.rungs, strict=True)
    )
    lines += [f"Rungs: {rungs}. Spent: {outcome.cost()}.", ""]
    if "sweep.png" in names:
        lines += ["![validation loss by step](sweep.png)", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in outcome.rows()]
    (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [name for name in names if name]


def _draw(outcome: Outcome, path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, points) in enumerate(outcome.curves().items()):
        if points:
            mine = i == outcome.pick
            style = {"color": "black", "linewidth": 2.2, "zorder": 3} if mine else {"alpha": 0.55}
            steps, losses = zip(*points, strict=True)
            axes.plot(steps, losses, marker="o", markersize=3, label=name, **style)
    for rung in outcome.plan.rungs[:-1]:
        axes.axvline(rung, color="0.85", linewidth=1, zorder=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("validation loss")
    axes.set_title(f"sweep {outcome.name}: {outcome.spent:,} of {outcome.plan.full:,} steps")
    axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=120)
