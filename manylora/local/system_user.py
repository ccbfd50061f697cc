"""PostgreSQL refuses to run as root: the user it runs as then, and where that user can reach it.

Program and data stay where they are when that user can get there. Below a closed folder such as
/root they cannot, and live under /var/lib/manylora: a copy of the program and one folder of data
for each home. No mode of a folder that is not ours is ever changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import pwd
import secrets
import shutil
import subprocess
from pathlib import Path

from manylora.errors import StackError
from manylora.local import tether

SHARED = Path("/var/lib/manylora")
_NAME = "manylora_postgres"


def system_user() -> str:
    """A user of our own; `nobody` where none can be made."""
    try:
        return pwd.getpwnam(_NAME).pw_name
    except KeyError:
        pass
    make = ["useradd", "--system", "--no-create-home", "--home-dir", "/", _NAME]
    try:
        subprocess.run(make, check=True, capture_output=True)
        return pwd.getpwnam(_NAME).pw_name
    except (OSError, subprocess.CalledProcessError, KeyError):
        return "nobody"


def run_as(argv: list[str], user: str | None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end as a user, without our groups."""
    return subprocess.run(
        tether.command(argv, user),
        stdin=subprocess.DEVNULL,
        cwd="/",
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def program_for(user: str, package: Path) -> Path:
    """The package's `pginstall`, or a copy of it that the user can run. Raises: StackError."""
    if _runs(package / "pginstall", user):
        return package / "pginstall"
    binary = (package / "pginstall/bin/postgres").stat()
    version = f"{package} {binary.st_size} {binary.st_mtime_ns}"
    copy = _shared() / f"program-{hashlib.sha256(version.encode()).hexdigest()[:12]}"
    program = copy / package.name / "pginstall"
    with copy.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (copy / "done").exists():
            shutil.rmtree(copy, ignore_errors=True)
            for folder in (package, package.with_name(f"{package.name}.libs")):
                if folder.is_dir():
                    shutil.copytree(folder, copy / folder.name, symlinks=True)
            subprocess.run(["chmod", "-R", "a+rX", str(copy)], check=True)
            (copy / "done").touch()
    if not _runs(program, user):
        raise StackError(
            f"the user {user} cannot run PostgreSQL from {program}",
            hint="run `manylora up` as an ordinary user",
        )
    return program


def data_for(user: str, home: Path) -> Path:
    """The home's data folder, which may not be there yet. Raises: StackError when it was lost."""
    inside, pointer = home / "postgres", home / "postgres.path"
    if pointer.exists():
        data = Path(pointer.read_text(encoding="utf-8"))
        if not data.is_dir():
            raise StackError(
                f"the database of {home} was in {data}, and that folder is gone",
                hint=f"put it back, or remove {pointer} to begin with an empty database",
            )
        return data
    if inside.is_dir() or _can_enter(home, user):
        return inside
    data = _shared() / f"data-{secrets.token_hex(4)}"
    data.mkdir(mode=0o700)
    shutil.chown(data, user)
    pointer.write_text(str(data), encoding="utf-8")
    return data


def _shared() -> Path:
    SHARED.mkdir(parents=True, exist_ok=True)
    SHARED.chmod(0o755)
    return SHARED


def _runs(program: Path, user: str) -> bool:
    return run_as([str(program / "bin/postgres"), "--version"], user).returncode == 0


def _can_enter(folder: Path, user: str) -> bool:
    return run_as(["test", "-x", str(folder)], user).returncode == 0
