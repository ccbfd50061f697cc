"""`manylora db`: the database's schema. The migrations themselves are Alembic's."""

from __future__ import annotations

from manylora.cli import context, output
from manylora.cli.flags import command, group, json_option
from manylora.errors import UsageError


@group()
def db() -> None:
    """Create or upgrade the database.

    \b
    Examples:
    $ manylora db upgrade
    """


@command()
@json_option
def upgrade(as_json: bool) -> None:
    """Bring the schema up to date, as the owner role (MANYLORA_DATABASE_OWNER_URL).

    \b
    Examples:
    $ manylora db upgrade
    """
    owner = context.settings().database_owner_url
    if owner is None:
        raise UsageError(
            "MANYLORA_DATABASE_OWNER_URL is not set",
            hint="the owner role is needed here only: postgresql://owner:…@host/manylora",
        )
    context.load("manylora.ledger.schema:upgrade")(owner.get_secret_value())
    if as_json:
        output.document({"upgraded": True})
    else:
        output.talk("the schema is up to date", "db")


db.add_command(upgrade)
