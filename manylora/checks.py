"""Does a part answer? One function for each; silence is good news, an error says what to do.

`/readyz` of every part asks them, and so does `manylora doctor`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import redis

from manylora.errors import ManyloraError, UnavailableError
from manylora.ledger import schema, workers
from manylora.ledger.database import Database
from manylora.settings import Settings
from manylora.storage.store import Store

#: a scheduler whose last round is older than that is taken for dead
TICK_SECONDS: Final = 30.0
Check = Callable[[], None]


def check_schema(database: Database) -> None:
    """Raises: UnavailableError unless the schema is the one this code needs."""
    has, needs = schema.current(database), schema.head()
    if has != needs:
        raise UnavailableError(
            f"the schema is {has or 'not there'}, needed is {needs}",
            hint="as the owner role: manylora db upgrade",
        )


def check_broker(settings: Settings) -> None:
    """Raises: UnavailableError unless the broker answers."""
    try:
        client = redis.Redis.from_url(
            settings.broker_url.get_secret_value(), socket_timeout=5, socket_connect_timeout=5
        )
        try:
            client.ping()
        finally:
            client.close()
    except (redis.RedisError, ValueError) as error:
        raise UnavailableError(
            f"the broker cannot be reached ({type(error).__name__})",
            hint="is Valkey up, and MANYLORA_BROKER_URL its address? Jobs wait meanwhile",
        ) from error


def check_scheduler(database: Database) -> None:
    """Raises: UnavailableError unless some scheduler has made a round lately."""
    with database.transaction() as tx:
        age = workers.last_tick_age(tx)
    if age is None or age > TICK_SECONDS:
        since = "ever" if age is None else f"for {age:.0f} s"
        raise UnavailableError(
            f"no scheduler has made a round {since}",
            hint="start one: manylora scheduler; if one runs, its log says why it does not tick",
        )


def service_checks(settings: Settings, database: Database, store: Store) -> dict[str, Check]:
    """What every part needs: the three servers, the schema, and a scheduler that ticks."""
    return {
        "database": database.ping,
        "schema": lambda: check_schema(database),
        "store": store.ping,
        "broker": lambda: check_broker(settings),
        "scheduler": lambda: check_scheduler(database),
    }


def ask(checks: Mapping[str, Check]) -> dict[str, str]:
    """Each check by name: "ok", or what is wrong and what to do about it."""
    found = {}
    for name, check in checks.items():
        try:
            check()
            found[name] = "ok"
        except ManyloraError as error:
            found[name] = f"{error.message}; {error.hint or error.default_hint}"
    return found


def all_good(found: Mapping[str, str]) -> bool:
    """Whether all that was asked is well."""
    return set(found.values()) <= {"ok"}
