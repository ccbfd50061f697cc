"""Put a finished folder where it belongs: whole or not at all.

It is filled beside its place and renamed into it; what goes into it is the callers' business.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from manylora.errors import ManyloraError, UsageError


@contextlib.contextmanager
def placed(target: Path, *, last: str = "manifest.json", fresh: bool = False) -> Iterator[Path]:
    """A folder to fill; when the block ends well it is `target`, else nothing is left of it.

    Where `target` has files the new ones take their places one by one, `last` after all others;
    with `fresh` such a folder is refused. Raises: UsageError, ManyloraError (`cannot_write`) for
    an OSError of the block, too.
    """
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file, not a folder", param="output")
    folder = target.resolve()
    if fresh and folder.exists() and any(folder.iterdir()):
        raise UsageError(
            f"{target} is not empty",
            param="output",
            hint="choose another folder with -o; nothing in this one was touched",
        )
    work: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        whole = _replaceable(folder)
        place = folder.parent if whole else folder
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=place))
        yield work
        _move(work, folder, whole, last)
    except OSError as error:
        what = "no space left" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise ManyloraError(
            f"cannot write {target}: {what}",
            code="cannot_write",
            hint="nothing was left half-made; choose another folder with -o",
        ) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def _replaceable(folder: Path) -> bool:
    """Whether a finished folder may take this one's place by a rename."""
    if not folder.exists():
        return True
    fixed = os.path.ismount(folder) or folder == Path.cwd()
    return not fixed and not any(folder.iterdir()) and os.access(folder.parent, os.W_OK)


def _move(work: Path, folder: Path, whole: bool, last: str) -> None:
    """Put finished files where they belong: at one stroke, or file by file into a full folder."""
    if whole:
        mask = os.umask(0)
        os.umask(mask)
        work.chmod(0o777 & ~mask)
        os.rename(work, folder)
        return
    # `last` goes last: until then the folder does not claim to hold what it should.
    for path in sorted(work.iterdir(), key=lambda p: (p.name == last, p.name)):
        os.replace(path, folder / path.name)
