"""`manylora scheduler`: the scheduler as a process of its own."""

from __future__ import annotations

from manylora.cli import context
from manylora.cli.flags import command


@command()
def scheduler() -> None:
    """Run the scheduler until it is told to stop. A second one waits for the first to go.

    \b
    Examples:
    $ manylora scheduler
    """
    context.load("scheduler.loop:serve")(context.settings())
