"""Start a program that cannot outlive its parent: `python -m manylora.local.tether PARENT USER …`.

Asks the kernel for SIGKILL when the parent dies, becomes USER ("-" stays who it is), and execs.
Linux's PR_SET_PDEATHSIG is cleared by a change of user, so it is set after it.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import sys

_PR_SET_PDEATHSIG = 1


def command(argv: list[str], user: str | None = None) -> list[str]:
    """`argv`, tethered to this process."""
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
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit(1)
    os.execv(argv[0], argv)  # noqa: S606


if __name__ == "__main__":
    main()
