"""Ports on the loopback address: finding free ones, refusing taken ones."""

from __future__ import annotations

import socket

from manylora.errors import StackError

LOOPBACK = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on right now, all different."""
    held: list[socket.socket] = []
    try:
        for _ in range(count):
            one = socket.socket()
            held.append(one)
            one.bind((LOOPBACK, 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def is_free(port: int) -> bool:
    """Whether one could listen on it."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def require_free(port: int) -> int:
    """The port itself. Raises: StackError when it is taken."""
    if not is_free(port):
        raise StackError(f"port {port} is taken", hint="stop what listens there, or choose another")
    return port
