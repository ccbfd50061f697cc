"""Does the service of this container work? `python health.py api|scheduler|worker`; 0 if it does.

The API answers; a scheduler and a worker write a sign of life into the ledger, under a name that
begins with the host's.
"""

from __future__ import annotations

import datetime as dt
import socket
import sys
import urllib.request

from sqlalchemy import func, select

from manylora.errors import ManyloraError
from manylora.ledger.database import Database
from manylora.ledger.tables import Scheduler, Worker
from manylora.settings import Settings, load_settings

SCHEDULER_SECONDS = 30.0


def api(settings: Settings) -> bool:
    """Whether it answers here."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://127.0.0.1:{settings.api_port}/healthz", timeout=5) as response:
        return bool(response.status == 200)


def in_ledger(settings: Settings, what: str) -> bool:
    """Whether a scheduler or a worker of this host was heard of lately."""
    table, seen, seconds = {
        "scheduler": (Scheduler, Scheduler.ticked_at, SCHEDULER_SECONDS),
        "worker": (Worker, Worker.heartbeat_at, settings.lease_seconds),
    }[what]
    since = func.clock_timestamp() - dt.timedelta(seconds=seconds)
    mine = table.id.startswith(f"{socket.gethostname()}-", autoescape=True)
    database = Database(settings.database_url.get_secret_value(), pool_size=1)
    try:
        with database.transaction() as tx:
            found = tx.scalar(select(func.count()).select_from(table).where(mine, seen > since))
            return bool(found)
    finally:
        database.close()


def main(what: str) -> bool:
    """Raises: OSError, ManyloraError when what it asks does not answer."""
    settings = load_settings()
    return api(settings) if what == "api" else in_ledger(settings, what)


if __name__ == "__main__":
    try:
        sys.exit(0 if main(sys.argv[1]) else f"{sys.argv[1]}: no sign of life")
    except (OSError, ManyloraError) as error:
        sys.exit(f"{sys.argv[1]}: {error}")
