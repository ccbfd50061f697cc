"""Plots in the terminal: the losses of a finished job, the slots of a pool that was simulated."""

from __future__ import annotations

import shutil
from typing import Any

from manylora.cli import output


def curves(lines: dict[str, list[tuple[int, float]]]) -> None:
    """Draw lines of (step, value) by their labels; only on a terminal."""
    if output.live():
        for row in chart(lines, min(shutil.get_terminal_size().columns - 2, 78)):
            output.talk(f"  {row}")


def loss_plot(points: list[dict[str, Any]]) -> None:
    """Draw training and validation loss over the steps, if there is something to see."""
    if output.live():
        for row in drawn(points, min(shutil.get_terminal_size().columns - 2, 78)):
            output.talk(f"  {row}")


def drawn(points: list[dict[str, Any]], width: int) -> list[str]:
    """The plot's lines; none for fewer than two points."""
    lines = {}
    for key, label in (("train_loss", "loss"), ("valid_loss", "val")):
        known = [(p["step"], p[key]) for p in points if p.get(key) is not None]
        if len(known) > 1:
            lines[label] = known
    return chart(lines, width)


def chart(lines: dict[str, list[tuple[int, float]]], width: int) -> list[str]:
    """The rows of a plot; none without a line of two points."""
    shown = {label: known for label, known in lines.items() if len(known) > 1}
    if not shown:
        return []
    from plotext import figure, uncolorize

    figure.clear()
    figure.theme("colorless")
    figure.plot_size(width, 12)
    for label, known in shown.items():
        steps, values = zip(*known, strict=True)
        signal = figure.signal(list(steps), list(values), marker="braille")
        signal.lines()
        signal.label(label)
        figure.draw(signal)
    figure.label("step", axis="x")
    return [row.rstrip() for row in uncolorize(str(figure.build())).rstrip().splitlines()]


def course_plot(title: str, course: list[tuple[float, float, int]]) -> None:
    """Draw how many of the slots were taken, over the days."""
    from plotext import figure, uncolorize

    figure.clear()
    figure.theme("colorless")
    figure.plot_size(min(shutil.get_terminal_size().columns - 2, 78), 12)
    days = [at / 86_400 for at, _, _ in course]
    signal = figure.signal(days, [taken * 100 for _, taken, _ in course], marker="braille")
    signal.lines()
    signal.label("% of slots")
    figure.draw(signal)
    figure.label("day", axis="x")
    output.data(title)
    for row in uncolorize(str(figure.build())).rstrip().splitlines():
        output.data(row.rstrip())
