"""What may go from the bucket: everything of an ended job that no row names, and uploads in parts
that nobody completed. By listing, so that what a dead or a late attempt wrote is seen, too."""

from __future__ import annotations

from collections.abc import Iterable

from manylora import keys
from manylora.storage.store import Store


def clear(store: Store, tenant_id: str, job_id: str, prefixes: Iterable[str], *whole: str) -> int:
    """Delete every object of a job that is not below one of `prefixes` nor a key of `whole`;
    returns how many. Only for a job that has ended. Raises: UnavailableError.
    """
    kept = tuple(f"{prefix}/" for prefix in prefixes)
    gone = 0
    for key in store.list(f"{keys.job_prefix(tenant_id, job_id)}/"):
        if not (key.startswith(kept) or key in whole):
            store.delete(key)
            gone += 1
    return gone


def abort(store: Store, prefix: str, older_than_seconds: float) -> int:
    """Give up uploads in parts that were begun so long ago; returns how many.

    Raises: UnavailableError.
    """
    gone = 0
    for key, upload_id, age in store.unfinished(prefix):
        if age >= older_than_seconds:
            store.abort(key, upload_id)
            gone += 1
    return gone
