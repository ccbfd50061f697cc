"""`python -m tests.chaos --faults 100 --jobs 20 --seed 1`: the nemesis at length. Prints a table;
an invariant that does not hold ends it with the assertion, the logs stay below --home."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chaos.nemesis import STALL, rage
from tests.chaos.stack import Stack
from tests.conftest import write_tiny_model


def main():
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--home", type=Path, help="where logs stay; default: a new folder")
    asked = parser.parse_args()
    home = asked.home or Path(tempfile.mkdtemp(prefix="manylora-chaos-"))
    say = lambda line: print(line, flush=True)  # noqa: E731
    say(f"seed {asked.seed}; home and logs: {home}")
    stack = make(home)
    try:
        report = rage(stack.start(), faults=asked.faults, jobs=asked.jobs, seed=asked.seed, say=say)
    finally:
        stack.stop()
    say(report.table())


def make(home):
    """A stack for the nemesis: its failures are many, so that a job's budget is large."""
    from worker.bases.register import prepare

    model = write_tiny_model(home / "model")
    base = prepare("tiny", str(model), home / "converted", dtype="float32", progress=lambda _: None)
    return Stack(home / "stack", base, **settings())


def settings():
    """What differs from the service's own settings."""
    return dict(
        workers=2,
        slots=3,
        stall_seconds=STALL,
        most_failures_lost=1000,
        most_failures_infra=1000,
        patience_seconds=120.0,
        s3_multipart_bytes=4096,
    )


if __name__ == "__main__":
    sys.exit(main())
