"""Make the schema and the bucket what this version needs, then end. Others wait for it.

`python migrate.py`; reads MANYLORA_DATABASE_OWNER_URL and MANYLORA_S3_*. Harmless when repeated.
"""

from __future__ import annotations

import sys

from manylora.errors import ManyloraError, UsageError
from manylora.ledger import schema
from manylora.settings import load_settings
from manylora.storage.store import Store


def main() -> None:
    """Raises: ManyloraError."""
    settings = load_settings()
    if settings.database_owner_url is None:
        raise UsageError("MANYLORA_DATABASE_OWNER_URL is not set")
    schema.upgrade(settings.database_owner_url.get_secret_value())
    Store(settings).ensure_bucket()
    sys.stderr.write(f"schema {schema.head()}, bucket {settings.s3_bucket}\n")


if __name__ == "__main__":
    try:
        main()
    except ManyloraError as error:
        sys.exit(f"error: {error.message}")
