"""Start a program that cannot outlive its parent: `python -m manylora.local.tether PARENT USER …`.

Becomes USER ("-" stays who it is), asks the kernel for SIGKILL when the parent dies, and execs.
A change of user clears Linux's PR_SET_PDEATHSIG, so that is set after it; a parent that died
before is noticed by asking for it last.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import sys

_PR_SET_PDEATHSIG = 1


def command(argv: list[str], user: str | None = None) -> list[str]:
    """`argv`, tethered to this process. It ends with the very thread that starts it."""
    return [sys.executable, "-m", "manylora.local.tether", str(os.getpid()), user or "-", *argv]


def main() -> None:
    """Never returns."""
    parent, user, *argv = sys.argv[1:]
    if user != "-":
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
        os.environ["HOME"] = entry.pw_dir
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):
        sys.exit(1)
    try:
        os.execvp(argv[0], argv)  # noqa: S606
    except OSError as error:
        sys.exit(f"{argv[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
