"""Write docs/performance.md and docs/performance.png from the raw rows: `python -m bench.report`.

Only what stands between the markers of the page is replaced. With --quick the rows are those of
the smoke test, and page and picture go to build/bench/quick instead: such numbers mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from bench import plot, rows, tables
from bench.measure import OUT, ROOT

PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- measured by `make bench`: {} -->", "<!-- end -->"
FILES = ("engine", "memory", "quantized", "service")


def filled(text: str, blocks: dict[str, str]) -> str:
    """A page with its blocks replaced. Raises: ValueError for a block the page has no place for."""
    for name, block in blocks.items():
        begin = BEGIN.format(name)
        head, found, rest = text.partition(begin)
        _, closed, tail = rest.partition(END)
        if not (found and closed):
            raise ValueError(f"the page has no {begin} … {END}")
        text = f"{head}{begin}\n\n{block}\n\n{END}{tail}"
    return text


def blocks_of(folder: Path) -> dict[str, str]:
    """Every block from the files of rows in a folder."""
    files = {name: rows.read(folder / f"{name}.json") for name in FILES}
    every = [row for held in files.values() for row in held["rows"]]
    made = {name: write(every) for name, write in tables.BLOCKS.items()}
    return {**made, "machine": tables.machine(files)}


def main(argv: list[str]) -> int:
    """Write the page and the picture; print the goals."""
    asked = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    asked.add_argument("--quick", action="store_true")
    asked.add_argument("--check", action="store_true", help="only see that it could be drawn")
    given = asked.parse_args(argv)
    if importlib.util.find_spec("matplotlib") is None:
        sys.stderr.write("matplotlib is not installed: make setup\n")
        return 1
    if given.check:
        return 0
    folder = OUT / "quick" if given.quick else OUT
    page = folder / "performance.md" if given.quick else PAGE
    blocks = blocks_of(folder)
    page.write_text(filled(PAGE.read_text(encoding="utf-8"), blocks), encoding="utf-8")
    every = rows.read(folder / "engine.json")["rows"]
    if every:
        plot.draw(every, page.with_suffix(".png"))
    sys.stdout.write(f"{blocks['workload']}\n\n{blocks['goals']}\n\n{page.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
