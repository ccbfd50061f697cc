"""The supervising side of the trainer child: start it, talk to it, notice its death.

One JSON object a line over a socket pair. To the child: {op: join|checkpoint|leave|stop, …}.
From it: {ev: ready|joined|step|checkpoint|unsaved|epoch|finished|failed|left|broken, …}; all but
`ready` and `broken` carry the job's key. When the child dies every job is told {ev: crashed}.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import structlog

from manylora.errors import UnavailableError
from worker.quarantine import Quarantine
from worker.trainer.memory_events import oom_kills

log = structlog.get_logger(__name__)
Message = dict[str, Any]
#: Threads that spin for long while they wait make a step ten times slower beside a busy neighbour;
#: threads that do not spin at all make it a third slower alone.
CHILD_ENV = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "GOMP_SPINCOUNT": "10000",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "4096",
    # What a step frees the next one takes: giving it back to the system costs a fault a page.
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
}
_KEPT_ENV = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "TMPDIR")


class TrainerLink:
    """One trainer child, restarted when it dies. Thread-safe."""

    def __init__(
        self,
        base: Path,
        *,
        slots: int,
        device: str,
        threads: int | None,
        note: Path | None,
        token_budget: int = 2048,
        memory_limit: int | None = None,
        kernels: Path | None = None,
        factories: str = "",
        log: tuple[str, str] = ("info", "json"),
    ) -> None:
        """`log` is the level and the form of the child's log, which goes where ours goes."""
        self._log = log
        self._argv = [sys.executable, "-m", "worker.trainer.child"]
        self._order = {
            "base": str(base),
            "slots": slots,
            "device": device,
            "threads": threads,
            "token_budget": token_budget,
            "memory_limit": memory_limit,
            "kernels": str(kernels) if kernels is not None else None,
            "factories": factories,
            "parent": os.getpid(),
        }
        self._note = note
        self._lock = Lock()
        self._listeners: dict[str, queue.Queue[Message]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._oom_kills: int | None = None
        self._closing = Event()
        self._starting = Lock()
        self.ready = Event()
        self.numerics: dict[str, Any] = {}
        self.restarts = 0
        #: how often in a row it died before it was ready
        self._stillborn = 0
        self.quarantine = Quarantine()
        self.failure: str | None = None

    def start(self) -> None:
        """Start the child, unless `stop` was called; `ready` is set once it holds the base."""
        with self._starting:
            if self._closing.is_set():
                return
            ours, theirs = socket.socketpair()
            self._oom_kills = oom_kills()
            env = {k: os.environ[k] for k in _KEPT_ENV if k in os.environ}
            env |= CHILD_ENV
            self._process = subprocess.Popen(
                [*self._argv, str(theirs.fileno()), *self._log],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
                start_new_session=True,
                env=env,
            )
            theirs.close()
            self._socket = ours
            self._write_note("starting")
            reader = Thread(
                target=self._read,
                args=(ours, self._process),
                name=f"trainer-{self._process.pid}",
                daemon=True,
            )
            reader.start()
        try:
            self._send(self._order)
        except UnavailableError:
            log.warning("trainer.died_at_once")  # its reader starts the next one

    def listen(self, key: str) -> queue.Queue[Message]:
        """The mailbox of one job."""
        with self._lock:
            return self._listeners.setdefault(key, queue.Queue())

    def forget(self, key: str) -> None:
        """Close a job's mailbox."""
        with self._lock:
            self._listeners.pop(key, None)

    def send(self, message: Message) -> None:
        """Tell the child something. Raises: UnavailableError while it is down."""
        if not self.ready.is_set():
            raise UnavailableError("the trainer is not ready")
        self._send(message)

    def kill(self, restarts: int | None = None) -> None:
        """End a child that hangs; it is started again. With `restarts`, only the one that was
        started after so many: somebody else may have been faster."""
        with self._starting:
            process = self._process
            if restarts is not None and restarts != self.restarts:
                return
            if process is not None and process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    def stop(self, timeout: float = 20.0) -> None:
        """End the child for good: no other one is started after this."""
        self._closing.set()
        with self._starting:
            process, ours = self._process, self._socket
        if process is None or ours is None:
            return
        with contextlib.suppress(OSError):
            # Not close(): the reader's file holds the socket open, and the child would not hear.
            ours.shutdown(socket.SHUT_RDWR)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            process.wait()
        self._write_note("stopped")

    @property
    def pid(self) -> int | None:
        """The child's pid."""
        return self._process.pid if self._process else None

    def _send(self, message: Message) -> None:
        line = json.dumps(message).encode() + b"\n"
        try:
            with self._lock:
                if self._socket is None:
                    raise OSError("no trainer")
                self._socket.sendall(line)
        except OSError as error:
            raise UnavailableError("the trainer is gone; it is being restarted") from error

    def _read(self, ours: socket.socket, process: subprocess.Popen[bytes]) -> None:
        try:
            with ours.makefile("rb") as lines:
                for line in lines:
                    self._deliver(json.loads(line))
        except (OSError, ValueError) as error:
            if not self._closing.is_set():
                log.warning("trainer.link_broken", error=str(error))
        code = process.wait()
        self.ready.clear()
        ours.close()
        if self._closing.is_set():
            return
        kills = oom_kills()
        memory = code == -signal.SIGKILL and kills is not None and kills != self._oom_kills
        with self._starting:
            self.restarts += 1
        self._stillborn += 1
        log.error("trainer.died", code=code, memory=memory, restarts=self.restarts)
        self.quarantine.crash(memory=memory)
        told = {"ev": "crashed", "code": code, "memory": memory, "restarts": self.restarts}
        with self._lock:
            for mailbox in self._listeners.values():
                mailbox.put(told)
        # A child that never got ready backs off, at most 5 s, so that a broken base does not spin.
        if not self._closing.wait(min(5.0, 0.2 * self._stillborn)):
            self.start()

    def _deliver(self, message: Message) -> None:
        event = message.get("ev")
        if event == "ready":
            self.numerics = message["numerics"]
            self.failure = None
            self._stillborn = 0
            self._write_note("running")
            self.ready.set()
        elif event == "broken":
            self.failure = message["message"]
            log.error("trainer.broken", message=self.failure)
        else:
            with self._lock:
                mailbox = self._listeners.get(message.get("key", ""))
            if mailbox is not None:
                mailbox.put(message)

    def _write_note(self, state: str) -> None:
        if self._note is None or self._process is None:
            return
        self._note.parent.mkdir(parents=True, exist_ok=True)
        part = self._note.with_suffix(".part")
        facts = {
            "name": "trainer",
            "pid": self._process.pid,
            "state": state,
            "restarts": self.restarts,
        }
        part.write_text(json.dumps(facts), encoding="utf-8")
        os.replace(part, self._note)
