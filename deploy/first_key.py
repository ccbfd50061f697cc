"""Make a tenant, if there is none of that name, and print a new API key of it.

`python first_key.py NAME [--operator]`; an operator's key may also register bases. Reads
MANYLORA_DATABASE_URL and MANYLORA_KEY_PEPPER. The key is shown this once: only a hash is kept.
"""

from __future__ import annotations

import argparse
import sys

from manylora.errors import ManyloraError, UsageError
from manylora.ledger import tenants
from manylora.ledger.database import Database
from manylora.settings import load_settings


def main() -> None:
    """Raises: ManyloraError."""
    parser = argparse.ArgumentParser(description="Make a tenant and an API key.")
    parser.add_argument("name", help="lower-case letters, digits and dashes")
    parser.add_argument("--operator", action="store_true", help="it may register bases, too")
    asked = parser.parse_args()
    settings = load_settings()
    pepper = settings.key_pepper.get_secret_value()
    if not pepper:
        raise UsageError("MANYLORA_KEY_PEPPER is not set: the API would hash the key otherwise")
    scopes = ("tenant", "operator") if asked.operator else ("tenant",)
    database = Database(settings.database_url.get_secret_value(), pool_size=1)
    try:
        with database.transaction() as tx:
            tenant = tenants.find(tx, asked.name) or tenants.create(tx, asked.name)
            key = tenants.mint_key(tx, tenant, pepper, scopes=scopes)
    finally:
        database.close()
    sys.stdout.write(f"{key}\n")


if __name__ == "__main__":
    try:
        main()
    except ManyloraError as error:
        sys.exit(f"error: {error.message}")
