"""How long a job of a worker that is killed, and stays dead, waits until another runs it:
`python -m tests.chaos.rescue --lease 60`."""

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy import select

from manylora.ledger.tables import Attempt, Worker
from tests.chaos.stack import Stack, until
from tests.conftest import write_tiny_model


def rescued(stack, lease):
    """Seconds from the kill until the second attempt runs."""
    job_id = stack.submit(stack.upload(1, 2000), n_epochs=50)
    until(lambda: stack.job(job_id).step > 5, "the job to run")
    with stack.service.database.transaction() as tx:
        held = tx.scalars(select(Attempt.worker_id).where(Attempt.job_id == job_id)).one()
        pid = tx.get(Worker, held).facts["pid"]
    (child,) = [c for c in stack.supervisor.children if c.process.pid == pid]
    child.backoff = float("inf")
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    second = lambda job: (job.state, job.attempt) == ("running", 2)  # noqa: E731
    until(lambda: second(stack.job(job_id)), "another worker to run it", lease + 60)
    return time.monotonic() - began


def main():
    """The command."""
    from worker.bases.register import prepare

    parser = argparse.ArgumentParser(prog="python -m tests.chaos.rescue", description=__doc__)
    parser.add_argument("--lease", type=float, default=60.0, help="seconds")
    lease = parser.parse_args().lease
    with tempfile.TemporaryDirectory(prefix="manylora-rescue-") as folder:
        home = Path(folder)
        model = write_tiny_model(home / "model")
        base = prepare("tiny", str(model), home / "bases", dtype="float32", progress=lambda _: None)
        own = {"lease_seconds": lease, "heartbeat_seconds": lease / 6, "tick_seconds": 1.0}
        stack = Stack(home / "stack", base, workers=2, **own)
        try:
            seconds = rescued(stack.start(), lease)
        finally:
            stack.stop()
    print(f"a lease of {lease:.0f} s: running again {seconds:.1f} s after the kill")


if __name__ == "__main__":
    sys.exit(main())
