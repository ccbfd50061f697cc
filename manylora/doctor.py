"""How is the service, seen from this machine? Every part is asked, and each answer that is not good
says what to do. `manylora doctor` prints it.

It reads, but for one small object that it writes to the bucket and deletes again.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2
import redis
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError

from manylora import __version__, checks, keys
from manylora.errors import (
    IntegrityError,
    ManyloraError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from manylora.ledger import schema, webhooks, workers
from manylora.ledger.database import Database
from manylora.ledger.states import JobState
from manylora.ledger.tables import Job
from manylora.settings import Settings
from manylora.storage.store import Store

OK: Final = "ok"
#: works, but not for long or not well
WARN: Final = "warn"
FAIL: Final = "fail"
#: could not be asked, because something it needs is away
SKIP: Final = "skip"

_LEAST_FREE, _LITTLE_FREE = 1 << 30, 10 << 30
_SKEW_WARN, _SKEW_FAIL = 2.0, 60.0
_LATE_SECONDS = 300.0


@dataclass(frozen=True)
class Finding:
    """What was found about one part, and what to do about it."""

    name: str
    state: str
    message: str
    hint: str | None = None


Answer = tuple[str, str, str | None]


def examine(settings: Settings) -> list[Finding]:
    """Ask every part. What needs a part that is away is skipped, not failed a second time.

    Raises: UsageError for a database's address that is none.
    """
    try:
        database = Database(settings.database_url.get_secret_value(), pool_size=1)
    except SQLAlchemyError as error:
        raise UsageError(
            "MANYLORA_DATABASE_URL is not the address of a database",
            hint="postgresql://manylora_app:…@host/manylora",
        ) from error
    try:
        return list(_examine(settings, database))
    finally:
        database.close()


def _examine(settings: Settings, database: Database) -> Iterator[Finding]:
    yield _asked("settings", lambda: _settings(settings))
    yield _asked("disk", lambda: _disk(settings))
    base = _asked("database", lambda: _database(database))
    yield base
    needed = "the database is away" if base.state == FAIL else None
    tables = _asked("schema", lambda: _schema(database), needed)
    yield tables
    if needed is None and tables.state == FAIL:
        needed = "the schema is another one"
    yield _asked("broker", lambda: _broker(settings))
    yield _asked("store", lambda: _store(Store(settings)))
    yield _asked("scheduler", lambda: _scheduler(database), needed)
    yield _asked("workers", lambda: _workers(settings, database), needed)
    yield _asked("webhooks", lambda: _webhooks(database), needed)
    yield _asked("clock", lambda: _clock(database), needed)
    yield _asked("api", lambda: _api(settings))


def _asked(name: str, ask: Callable[[], Answer], needed: str | None = None) -> Finding:
    if needed is not None:
        return Finding(name, SKIP, f"not asked: {needed}")
    try:
        return Finding(name, *ask())
    except ManyloraError as error:
        return Finding(name, FAIL, error.message, error.hint or error.default_hint)
    except (SQLAlchemyError, OSError) as error:
        # Refused rather than away: rights that lack, a table of another's.
        said = str(getattr(error, "orig", None) or error).splitlines()[0]
        return Finding(name, FAIL, said, "what it may not do, or lacks, must be given to it")


def _settings(settings: Settings) -> Answer:
    files = [
        path
        for path in (settings.home / "service.env", settings.home / "client.env", Path(".env"))
        if path.is_file()
    ]
    open_ = [path for path in files if stat.S_IMODE(path.stat().st_mode) & 0o077]
    if open_:
        named = " ".join(str(path) for path in open_)
        return WARN, f"others may read the secrets in {named}", f"chmod 600 {named}"
    if not settings.key_pepper.get_secret_value():
        return (
            WARN,
            "MANYLORA_KEY_PEPPER is not set: an API started with these settings takes no key",
            "set it for the API; schedulers and workers do without it, and should",
        )
    where = ", ".join(str(path) for path in files) or "the environment and the defaults"
    return OK, f"from {where}", None


def _disk(settings: Settings) -> Answer:
    folders = {
        name: _existing(folder)
        for name, folder in (
            ("home", settings.home),
            ("bases", settings.folder("bases")),
            ("scratch", settings.folder("scratch")),
        )
    }
    free = {name: shutil.disk_usage(folder).free for name, folder in folders.items()}
    least = min(free, key=lambda name: free[name])
    said = f"{free[least] / 1e9:.1f} GB free for {least} ({folders[least]})"
    hint = (
        "make room, or move it with MANYLORA_SCRATCH or MANYLORA_BASE_CACHE; what is below "
        "bases may be deleted, it is fetched again"
    )
    if not os.access(folders["scratch"], os.W_OK):
        return FAIL, f"{folders['scratch']} cannot be written to", "run this as the service's user"
    if free[least] < _LEAST_FREE:
        return FAIL, said, hint
    return (WARN, said, hint) if free[least] < _LITTLE_FREE else (OK, said, None)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def _database(database: Database) -> Answer:
    with database.transaction() as tx:
        version = str(tx.scalar(text("SHOW server_version"))).split()[0]
        used = tx.scalar(text("SELECT count(*) FROM pg_stat_activity")) or 0
        most = int(tx.scalar(text("SHOW max_connections")) or 0)
        read_only = tx.scalar(text("SHOW transaction_read_only")) == "on"
    said = f"PostgreSQL {version}, {used} of {most} connections"
    if read_only:
        return FAIL, f"{said}: it takes no writes", "a standby, or a disk that is full: see its log"
    if used > 0.8 * most:
        return WARN, said, "raise max_connections, or run fewer processes"
    return OK, said, None


def _schema(database: Database) -> Answer:
    checks.check_schema(database)
    return OK, f"revision {schema.head()}", None


def _broker(settings: Settings) -> Answer:
    checks.check_broker(settings)
    client = redis.Redis.from_url(settings.broker_url.get_secret_value(), socket_timeout=5)
    try:
        found: Any = client.info()
    except redis.RedisError:
        return OK, "answers; it does not let us read what it is", None
    finally:
        client.close()
    name = "Valkey" if "valkey_version" in found else "Redis"
    said = f"{name} {found.get('valkey_version') or found.get('redis_version')}"
    policy = found.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and found.get("maxmemory"):
        return (
            WARN,
            f"{said} may throw wake-ups away (maxmemory-policy {policy})",
            "CONFIG SET maxmemory-policy noeviction; until then lost ones are sent again, late",
        )
    return OK, said, None


def _store(store: Store) -> Answer:
    """The bucket, a put, a read, and whether a conditional put is one."""
    try:
        store.ping()
    except NotFoundError as error:
        raise NotFoundError(
            f"there is no bucket {store.bucket}",
            hint="deploy/migrate.py makes it; or set MANYLORA_S3_BUCKET",
        ) from error
    except UnavailableError as error:
        if "Credentials" not in error.message:
            raise
        raise UnavailableError(
            "there is no key for the object store",
            hint="set MANYLORA_S3_ACCESS_KEY and MANYLORA_S3_SECRET_KEY",
        ) from error
    key = keys.probe_key(secrets.token_hex(8))
    try:
        store.put_bytes(key, b"one", if_absent=True)
        if store.get_bytes(key) != b"one":
            raise IntegrityError("the store gave back other bytes than it took")
        try:
            store.put_bytes(key, b"two", if_absent=True)
            conditional = False
        except IntegrityError:  # it holds the first ones: so it must be
            conditional = True
    finally:
        store.delete(key)
    said = f"bucket {store.bucket}: put, read and deleted"
    if not conditional:
        return (
            WARN,
            f"{said}; but it overwrites where it was told not to (If-None-Match)",
            "nothing is published twice all the same; a newer version of the store may do better",
        )
    return OK, f"{said}, conditional puts hold", None


def _scheduler(database: Database) -> Answer:
    checks.check_scheduler(database)
    with database.transaction() as tx:
        return OK, f"last round {workers.last_tick_age(tx) or 0.0:.1f} s ago", None


def _workers(settings: Settings, database: Database) -> Answer:
    with database.transaction() as tx:
        alive = workers.alive(tx, within_seconds=settings.lease_seconds)
        waiting = dict(
            tx.execute(
                select(Job.base, func.count())
                .where(Job.state == JobState.QUEUED.value)
                .group_by(Job.base)
            ).all()
        )
    ready = [w for w in alive if w.state == "ready"]
    said = f"{len(ready)} ready of {len(alive)}, {sum(w.slots for w in ready)} slots"
    if not alive:
        return WARN, "no worker has been heard of lately", "start one: manylora worker"
    unserved = {base: n for base, n in waiting.items() if base not in _bases(ready)}
    if unserved:
        base, count = next(iter(sorted(unserved.items())))
        return (
            WARN,
            f"{said}; {count} jobs wait for {base}, which none of them holds",
            f"start one for it: manylora worker --base {base}",
        )
    noted = [w for w in alive if w.note]
    if noted:
        return WARN, f"{said}; {noted[0].id}: {noted[0].note}", "its log says more"
    others = sorted({str(w.facts.get("manylora", __version__)) for w in alive} - {__version__})
    if others:
        return (
            WARN,
            f"{said}; some run manylora {', '.join(others)}, this is {__version__}",
            "bring them to one version, one after the other (SIGTERM hands jobs back)",
        )
    return OK, said, None


def _bases(ready: list[Any]) -> set[str | None]:
    return {worker.assigned_base for worker in ready}


def _webhooks(database: Database) -> Answer:
    with database.transaction() as tx:
        counts, late = webhooks.counts(tx), webhooks.longest_due(tx)
    said = f"{counts['pending']} messages pending, {counts['dead']} given up in 30 days"
    if late > _LATE_SECONDS:
        return (
            WARN,
            f"{said}; one is due for {late:.0f} s",
            "schedulers send them: see the log of one for webhooks.unavailable",
        )
    return OK, said, None


def _clock(database: Database) -> Answer:
    """Leases go by the database's clock; signatures, of S3 and webhooks, by this machine's."""
    with database.transaction() as tx:
        tx.execute(text("SELECT 1"))  # the connection is made by now, and takes no time below
        before = time.time()
        there = float(tx.scalar(select(func.extract("epoch", func.clock_timestamp()))) or 0.0)
        after = time.time()
    skew = abs(there - (before + after) / 2)
    said = f"{skew:.1f} s off the database's"
    hint = "let both machines keep time (chrony, systemd-timesyncd)"
    if skew > _SKEW_FAIL:
        return FAIL, said, hint
    return (WARN, said, hint) if skew > _SKEW_WARN else (OK, said, None)


def _api(settings: Settings) -> Answer:
    try:
        answer = httpx2.get(f"{settings.api_url.rstrip('/')}/readyz", timeout=30.0)
        found = answer.json() if answer.status_code in (200, 503) else {}
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        return (
            WARN,
            f"{settings.api_url} does not answer ({type(error).__name__})",
            "start one: manylora api; is it elsewhere, set MANYLORA_API_URL",
        )
    wrong = [f"{k}: {v}" for k, v in found.get("checks", {}).items() if v != "ok"]
    if wrong:
        return FAIL, f"{settings.api_url} lacks {'; '.join(wrong)}", "mend what it names"
    if not found:
        return WARN, f"what answers at {settings.api_url} is not the API", "set MANYLORA_API_URL"
    return OK, f"{settings.api_url} is ready", None
