"""The loss plot of a finished job; only on a terminal."""

from __future__ import annotations

import shutil
from typing import Any

from manylora.cli import output


def loss_plot(points: list[dict[str, Any]]) -> None:
    """Draw training and validation loss over the steps, if there is something to see."""
    train = [(p["step"], p["train_loss"]) for p in points if p.get("train_loss") is not None]
    valid = [(p["step"], p["valid_loss"]) for p in points if p.get("valid_loss") is not None]
    if not output.live() or len(train) < 2:
        return
    import plotext as plt

    plt.clear_figure()
    plt.theme("clear")
    plt.plot_size(min(shutil.get_terminal_size().columns - 2, 78), 12)
    plt.plot(*zip(*train, strict=True), label="loss", marker="braille")
    if len(valid) > 1:
        plt.plot(*zip(*valid, strict=True), label="val", marker="braille")
    plt.xlabel("step")
    for line in plt.build().rstrip().splitlines():
        output.talk(f"  {line}")
