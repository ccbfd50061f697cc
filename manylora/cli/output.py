"""The only file of the project that prints: data on stdout, talk on stderr.

What to say is the commands' business; here is how: colour, tables, units, times, progress.
NO_COLOR, FORCE_COLOR, TERM=dumb and streams that are no terminal are respected.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

ACCENT, DIM, RED = "36", "2", "31"
_progress_open = False


def setup() -> None:
    """Let no character of a name end a command on a terminal that cannot show it."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def coloured(stream: TextIO) -> bool:
    """Whether `stream` gets colour."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def live() -> bool:
    """Whether stderr can show a line that is drawn again and again."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str, stream: TextIO | None = None) -> str:
    """`text` in a style, where `stream` (stderr, if none) takes colour."""
    return f"\x1b[{style}m{text}\x1b[0m" if coloured(stream or sys.stderr) else text


def data(text: str) -> None:
    """A line somebody asked for."""
    end_progress()
    print(text, flush=True)


def document(value: Any) -> None:
    """The one JSON document of a call with `--json`."""
    end_progress()
    indent = 2 if sys.stdout.isatty() else None
    print(json.dumps(value, ensure_ascii=False, indent=indent, default=str), flush=True)


def line(value: Any) -> None:
    """One line of JSON, where a call follows something that goes on."""
    print(json.dumps(value, ensure_ascii=False, default=str), flush=True)


def talk(text: str, label: str | None = None) -> None:
    """A line for the person who watches, with an optional word in front."""
    end_progress()
    print(f"{paint(label.ljust(9), ACCENT)} {text}" if label else text, file=sys.stderr, flush=True)


def error(message: str, hint: str | None = None) -> None:
    """What happened and what to do about it."""
    end_progress()
    print(f"{paint('error:', RED)} {message}", file=sys.stderr)
    for line in (hint or "").splitlines():
        print(f"  {line}", file=sys.stderr)
    sys.stderr.flush()


def progress(text: str) -> None:
    """Draw one line over the last one; nothing where the terminal cannot."""
    global _progress_open
    if live():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\x1b[2K{text[:width]}", end="", file=sys.stderr, flush=True)
        _progress_open = True


def end_progress() -> None:
    """Take the drawn line away before something else is printed."""
    global _progress_open
    if _progress_open:
        print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
        _progress_open = False


def bar(done: float, width: int = 24) -> str:
    """A bar that is `done` (0 to 1) full."""
    full = round(min(max(done, 0.0), 1.0) * width)
    return "━" * full + " " * (width - full)


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], empty: str = "nothing") -> None:
    """Aligned columns on stdout; numbers to the right. `empty` is said when there are no rows."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not cells:
        talk(empty)
        return
    widths = [max(len(r[i]) for r in [list(headers), *cells]) for i in range(len(headers))]
    right = [all(r[i][:1].isdigit() or not r[i] for r in cells) for i in range(len(headers))]
    data(paint(_row(headers, widths, right), DIM, sys.stdout))
    for row in cells:
        data(_row(row, widths, right))


def _row(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = [
        cell.rjust(width) if to_right else cell.ljust(width)
        for cell, width, to_right in zip(cells, widths, right, strict=True)
    ]
    return "   ".join(parts).rstrip()


def facts(pairs: Iterable[tuple[str, Any]]) -> None:
    """Names and values, one a line, those without a value left out."""
    known = [(name, value) for name, value in pairs if value not in (None, "")]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        data(f"{paint(name.ljust(width), DIM, sys.stdout)}   {value}")


def size(count: float | None) -> str:
    """Bytes for people."""
    if count is None:
        return ""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count:.0f} B"


def span(seconds: float) -> str:
    """A length of time for people."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"


def ago(moment: float | None, now: float | None = None) -> str:
    """How long ago a moment (seconds since 1970) was."""
    if moment is None:
        return ""
    return f"{span(max((time.time() if now is None else now) - moment, 0.0))} ago"


def quoted(path: Any) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def counted(count: int, thing: str) -> str:
    """`1 line`, `12,345 lines`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
