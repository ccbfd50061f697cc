"""`manylora tenants`: what each tenant is entitled to and may have at most; for operators."""

from __future__ import annotations

from typing import Any

import click

from manylora.cli import context, output
from manylora.cli.flags import command, group, json_option

_QUOTAS = ("max_queued", "max_running", "max_device_hours", "max_bytes", "max_requests")


@group()
def tenants() -> None:
    """List tenants, and set their weights and quotas. It takes an operator's key.

    \b
    Examples:
    $ manylora tenants list
    $ manylora tenants set acme --weight 2 --max-running 8
    """


@command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the tenants with their weights and quotas.

    \b
    Examples:
    $ manylora tenants list
    """
    found = context.connect().tenants()
    if as_json:
        output.document({"object": "list", "data": found})
        return
    output.table(
        ("tenant", "weight", "queued", "running", "hours a day", "bytes", "requests", "used"),
        [_row(item) for item in found],
        empty="no tenants",
    )


def _row(item: dict[str, Any]) -> tuple[Any, ...]:
    quotas = [f"{item[name]:,}" if item[name] is not None else "" for name in _QUOTAS]
    return item["tenant"], item["weight"], *quotas, output.span(item["used_device_seconds"])


@command("set")
@click.argument("name")
@click.option("--weight", type=float, help="2 is entitled to twice as much as 1.")
@click.option("--max-queued", type=int, help="Jobs that may wait  [the setting max_queued]")
@click.option("--max-running", type=int, help="Jobs that may run at once  [no bound]")
@click.option("--max-device-hours", type=float, help="Device-hours a day, by UTC  [no bound]")
@click.option("--max-bytes", type=int, help="Bytes of files and adapters  [no bound]")
@click.option("--max-requests", type=int, help="Requests a minute to each API  [no bound]")
@click.option(
    "--no-bound",
    "free",
    multiple=True,
    type=click.Choice([name.removeprefix("max_").replace("_", "-") for name in _QUOTAS]),
    help="Take a quota away; repeat it for more.",
)
@json_option
def set_(name: str, free: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Set a tenant's weight or quotas; what is not named stays as it is.

    \b
    Examples:
    $ manylora tenants set acme --weight 2 --max-running 8
    $ manylora tenants set acme --no-bound running
    """
    changes = {column: value for column, value in given.items() if value is not None}
    changes |= {f"max_{what.replace('-', '_')}": None for what in free}
    done = context.connect().set_tenant(name, changes)
    if as_json:
        output.document(done)
    else:
        said = ", ".join(f"{k} {v}" for k, v in done.items() if k in ("weight", *_QUOTAS) and v)
        output.talk(f"{name}: {said}", "tenant")


for _verb in (list_, set_):
    tenants.add_command(_verb)
