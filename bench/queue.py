"""A scheduling round over a long queue, on a real PostgreSQL: `python -m bench.queue [--quick]`.

Servers of its own; a crowd of tenants with one base; workers with 1,000 slots. At each length of
the queue: the round that fills every slot, rounds in which nothing changed, and rounds after so
many jobs ended and as many came. A round is `Scheduler.tick`; the part of it
that is wake-ups sent to the broker, after the commit, is told apart. Each length is
measured by a scheduler in a process of its own, so that its memory is only that.
Rows go to build/bench/queue.json; `--plot` also draws docs/scheduling-rounds.png.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import measure
from bench.crowd import Crowd
from bench.measure import OUT, ROOT, Row
from manylora.ledger import lines, schema
from manylora.ledger.database import Database
from manylora.local.servers import servers
from manylora.settings import Settings, load_settings

SLOTS = 1000
LENGTHS = (1_000, 10_000, 100_000, 1_000_000)
CHANGES = (1, 10, 100, 1000)
_TIMES = 3
PICTURE = ROOT / "docs" / "scheduling-rounds.png"


def _settings() -> Settings:
    """Where the servers are is in the environment, for a password is nothing for a command line."""
    return load_settings(
        lease_seconds=86_400.0, dispatch_deadline_seconds=86_400.0, resend_seconds=86_400.0
    )


def _measure(asked: Row) -> Row:
    """In a process of its own: the rounds at one length of the queue."""
    from scheduler import dispatch
    from scheduler.loop import Scheduler

    sending = [0.0]
    send = dispatch.wake

    def timed(*given: Any) -> None:
        began = time.perf_counter()
        send(*given)
        sending[0] += time.perf_counter() - began

    dispatch.wake = timed

    settings = _settings()
    owner = settings.database_owner_url
    assert owner is not None
    database = Database(owner.get_secret_value())
    crowd = Crowd(database, jobs=asked["made"], tenants=asked["tenants"], workers=SLOTS // 4)
    scheduler = Scheduler(settings)

    processor = [0.0]

    def round_() -> float:
        began, cpu = time.perf_counter(), time.process_time()
        scheduler.tick()
        processor[0] += time.process_time() - cpu
        return time.perf_counter() - began

    began = time.perf_counter()
    first = round_()
    rounds = 1
    while scheduler._more:
        round_()
        rounds += 1
    found: Row = {
        "first_seconds": first, "fill_seconds": time.perf_counter() - began, "fill_rounds": rounds,
        "idle_seconds": statistics.median(round_() for _ in range(_TIMES)),
    }  # fmt: skip
    crowd.claim()
    round_()
    with database.transaction() as tx:
        began = time.perf_counter()
        lines.summarise(tx)
        found["summary_seconds"] = time.perf_counter() - began
    found["busy_seconds"] = statistics.median(round_() for _ in range(_TIMES))
    for changes in CHANGES:
        took, sent, own = [], [], []
        for _ in range(_TIMES):
            crowd.end(changes)
            crowd.come(changes)
            sending[0] = processor[0] = 0.0
            took.append(round_())
            while scheduler._more:
                took[-1] += round_()
            sent.append(sending[0])
            own.append(processor[0])
            crowd.claim()
            round_()
        found[f"changed_{changes}_seconds"] = statistics.median(took)
        found[f"changed_{changes}_most"] = max(took)
        found[f"changed_{changes}_sending"] = statistics.median(sent)
        found[f"changed_{changes}_processor"] = statistics.median(own)
    crowd.end(SLOTS)
    scheduler.app.close()
    scheduler.database.close()
    database.close()
    return found | {"made_after": crowd.jobs}


def run(lengths: tuple[int, ...]) -> list[Row]:
    """The rows, one for each length of the queue."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, servers(Path(folder)) as up:
        schema.upgrade(up.database_owner_url)
        owner = Database(up.database_owner_url)
        os.environ |= {
            "MANYLORA_HOME": folder,
            "MANYLORA_DATABASE_URL": up.database_url,
            "MANYLORA_DATABASE_OWNER_URL": up.database_owner_url,
            "MANYLORA_BROKER_URL": up.broker_url,
            "MANYLORA_S3_ENDPOINT": up.s3_endpoint,
        }
        crowd = Crowd(owner)
        crowd.begin()
        crowd.staff(SLOTS)
        for length in lengths:
            crowd.grow(length + crowd.jobs - _waiting(owner), max(length // 10, 10))
            began = time.perf_counter()
            while _fold(owner):
                pass
            folded = time.perf_counter() - began
            crowd.analyse()
            row = measure.fresh(
                "bench.queue",
                {"jobs": length, "tenants": crowd.tenants, "made": crowd.jobs},
            )
            crowd.jobs = row["made_after"]
            rows.append({**row, "fold_seconds": folded, "slots": SLOTS})
            sys.stderr.write(json.dumps(rows[-1]) + "\n")
        owner.close()
    return rows


def _waiting(database: Database) -> int:
    with database.transaction() as tx:
        return lines.queued(tx)


def _fold(database: Database) -> bool:
    """The crowd came all at once; the scheduler would take as many rounds."""
    with database.transaction() as tx:
        return lines.fold(tx, 86_400.0).more


def draw(rows: list[Row], target: Path) -> None:
    """Seconds of a round against the length of the queue."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.2, 4.0), layout="constrained")
    across = [row["jobs"] for row in rows]
    named = [(f"changed_{n}_seconds", f"{n} ended, {n} came") for n in CHANGES]
    for key, label in [("busy_seconds", "nothing changed"), *named]:
        axis.plot(across, [row[key] for row in rows], marker="o", label=label)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("jobs queued (a tenth as many tenants)")
    axis.set_ylabel("seconds of a round")
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    figure.savefig(target, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def main() -> None:
    """Measure, write, draw."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--quick", action="store_true", help="short queues only")
    words.add_argument("--plot", action="store_true", help="draw the picture of the docs")
    given = words.parse_args()
    rows = run(LENGTHS[:2] if given.quick else LENGTHS)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "queue.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if given.plot:
        draw(rows, PICTURE)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        measure.answer(_measure(measure.order()))
    else:
        main()
