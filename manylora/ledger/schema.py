"""The schema's version: what the database has, what this code needs, and the upgrade between.

Two roles: the owner changes the schema; the app role reads and writes rows and nothing else.
"""

from __future__ import annotations

import re
from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from manylora.errors import UsageError
from manylora.ledger.database import Database, driver_url

_ROLE = re.compile(r"[a-z_][a-z0-9_]{0,62}")


def _config(url: str | None = None, app_role: str | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
    config.attributes["url"] = url
    config.attributes["app_role"] = app_role
    return config


def head() -> str:
    """The revision this code needs."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise RuntimeError("the package has no migrations")
    return revision


def current(database: Database) -> str | None:
    """The revision the database has; None before the first upgrade."""
    try:
        with database.transaction() as tx:
            revision: str | None = tx.scalar(text("SELECT version_num FROM alembic_version"))
            return revision
    except ProgrammingError:  # no such table: nothing was ever migrated
        return None


def upgrade(owner_url: str, app_role: str = "manylora_app") -> None:
    """Bring the schema to `head()`, as the owner, and let `app_role` use it.

    Raises: UsageError for a role name that is none; SQLAlchemy's errors when the owner may not.
    """
    if not _ROLE.fullmatch(app_role):
        raise UsageError(f"{app_role!r} is not a role's name")
    command.upgrade(_config(driver_url(owner_url), app_role), "head")
