"""`python -m claims`: measure every claim, print the table and write docs/claims.md."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from claims import page
from claims.row import Place, measured


def main(argv: list[str]) -> int:
    """0 when every claim holds."""
    asked = argparse.ArgumentParser(prog="python -m claims", description=__doc__)
    asked.add_argument("--cifar", type=Path, help="folder with cifar10.safetensors")
    asked.add_argument("--out", type=Path, default=page.ROOT / "build" / "claims")
    given = asked.parse_args(argv)
    place = Place(given.out, given.cifar)
    rows = []
    for claim in page.EVERY:
        began = time.perf_counter()
        row = measured(claim, place)
        rows.append(row)
        spent = time.perf_counter() - began
        word = "holds" if row.holds else "DOES NOT HOLD"
        sys.stdout.write(
            f"{claim.document}\n  {claim.name}: {claim.says}\n  {row.measured}\n"
            f"  {word} ({spent:.1f} s)\n"
        )
        sys.stdout.flush()
    page.PAGE.write_text(page.written(rows), encoding="utf-8")
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
