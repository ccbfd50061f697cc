"""`manylora simulate`: what a pool would do, before it is bought. The play is the scheduler's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from manylora.cli import context, output
from manylora.cli.flags import command, existing_file, json_option
from manylora.cli.plot import course_plot


@command()
@click.option(
    "--devices", type=click.IntRange(1), multiple=True, default=(16,), show_default=True,
    help="Devices of the pool; repeat it to compare.",
)  # fmt: skip
@click.option("--slots", type=click.IntRange(1), default=4, show_default=True, help="Of a device.")
@click.option(
    "--policy", "policies", multiple=True, default=("fair",), show_default=True,
    type=click.Choice(["fair", "fifo", "priority"]), help="Repeat it to compare.",
)  # fmt: skip
@click.option("--tenants", type=click.IntRange(1), default=100, show_default=True, help="How many.")
@click.option("--jobs", type=click.IntRange(1), default=10_000, show_default=True, help="Of all.")
@click.option("--days", type=click.FloatRange(0, min_open=True), default=7.0, show_default=True)
@click.option(
    "--load", type=click.FloatRange(0, min_open=True), default=0.8, show_default=True,
    help="Work asked for, of what the first pool can do.",
)  # fmt: skip
@click.option(
    "--flood", type=click.IntRange(0), default=0, help="Jobs of one more tenant, at once."
)
@click.option("--trace", type=existing_file, help="CSV of time, tenant, seconds instead of a seed.")
@click.option("--half-life", type=click.FloatRange(0, min_open=True), help="Seconds  [a setting]")
@click.option("--tick", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the demand.")
@click.option("--plot", is_flag=True, help="Draw the slots taken over the days.")
@json_option
def simulate(
    trace: Path | None, half_life: float | None, plot: bool, as_json: bool, **given: Any
) -> None:
    """Play demand on pools of devices by the scheduler's own planner, and compare.

    \b
    Examples:
    $ manylora simulate --devices 8 --devices 16 --tenants 500 --jobs 20000
    $ manylora simulate --policy fair --policy fifo --flood 5000
    $ manylora simulate --trace jobs.csv --devices 4 --json
    """
    settings = context.settings()
    found = context.load("scheduler.forecast.compare:ask")(
        trace=trace,
        half_life=half_life or settings.share_half_life_seconds,
        price=settings.device_hour_price,
        **given,
    )
    if as_json:
        output.document({"object": "list", "data": found})
        return
    output.table(
        ("policy", "devices", "used", "idle, wanted", "Jain", "small p50", "small p95", "alone",
         "large p95", "longest", "by p90", "cost each"),
        [_row(item, settings.currency) for item in found],
    )  # fmt: skip
    if plot:
        for item in found:
            course_plot(f"{item['policy']}, {item['devices']} devices", item["course"])


def _row(item: dict[str, Any], currency: str) -> tuple[Any, ...]:
    small, large = item["waits"].get("small"), item["waits"].get("large")
    alone, kept, cost = item["small_alone_p95"], item["started_by_p90"], item["cost_per_adapter"]
    return (
        item["policy"],
        item["devices"],
        f"{item['utilisation']:.1%}",
        f"{item['idle_while_waiting']:.2%}",
        f"{item['jain']:.3f}",
        output.span(small["p50"]) if small else "",
        output.span(small["p95"]) if small else "",
        output.span(alone) if alone is not None else "",
        output.span(large["p95"]) if large else "",
        output.span(max(waits["max"] for waits in item["waits"].values())),
        f"{kept:.1%}" if kept is not None else "",
        f"{cost:.4f} {currency}" if cost is not None else "",
    )
