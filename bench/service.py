"""Eight jobs through the warm service, as a customer sees it: `python -m bench.service [--quick]`.

`manylora up -d` in a home of its own, the base added, the worker ready; then, by the HTTP client
the CLI uses, every dataset is sent and every job created, until all adapters are published. When a
job was claimed and when its first step was in the books is read from the ledger, whose clock is
finer than the wire's. Before each round one of the jobs runs as a Trainer+PEFT process, the service
idle beside it. Everything is stopped at the end. Rows go to build/bench/service.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from bench import measure, rows, workload
from bench.measure import OUT, ROOT, Row
from manylora.client import Client
from manylora.settings import load_settings

HOME = OUT / "home"
_ENDS = ("succeeded", "failed", "cancelled")
_READY_SECONDS = 300.0
_DONE_SECONDS = 1800.0
_POLL = 0.2


def _env() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MANYLORA_")}
    return {**kept, "MANYLORA_HOME": str(HOME), "MANYLORA_BASE_CACHE": str(workload.BASES)}


def manylora(*args: str, check: bool = True) -> None:
    """The CLI, its talk shown."""
    command = [sys.executable, "-m", "manylora.cli.main", *args]
    done = subprocess.run(command, cwd=ROOT, env=_env(), stdout=sys.stderr, check=False)
    if check and done.returncode != 0:
        raise SystemExit(f"manylora {' '.join(args)} ended with {done.returncode}")


def connect() -> Client:
    """The service of this home."""
    settings = load_settings(home=HOME)
    key = settings.api_key.get_secret_value() if settings.api_key else ""
    return Client(settings.api_url, key)


def until_ready(client: Client, slots: int) -> None:
    """Wait until a worker holds the base and has that many slots."""
    deadline = time.monotonic() + _READY_SECONDS
    while client.status()["slots"] < slots:
        if time.monotonic() > deadline:
            raise SystemExit(f"no worker got ready within {_READY_SECONDS:.0f} s")
        time.sleep(_POLL)


def datasets(folder: Path, base: Path, jobs: int, examples: int) -> list[Path]:
    """The workload's texts as files a customer would send."""
    made = []
    for customer in range(jobs):
        path = folder / f"customer{customer}.jsonl"
        lines = workload.texts(base, customer)[:examples]
        path.write_text("".join(json.dumps({"text": t}) + "\n" for t in lines), encoding="utf-8")
        made.append(path)
    return made


def asked(file: str, customer: int) -> Row:
    """A job of the workload, as the API takes it."""
    hyper = {
        "n_epochs": 1,
        "batch_size": workload.BATCH,
        "learning_rate": workload.RATE,
        "warmup_ratio": 0.0,
        "lora_r": workload.RANK,
        "lora_alpha": workload.ALPHA,
        "target_modules": list(workload.TARGETS),
    }
    return {
        "model": workload.BASE,
        "training_file": file,
        "seed": customer,
        "suffix": f"customer{customer}",
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyper}},
    }


def through(client: Client, files: list[Path]) -> Row:
    """From the first byte sent to the last adapter published."""
    began = time.perf_counter()
    made = []
    for customer, path in enumerate(files):
        file = client.upload(path)["id"]
        made.append(client.create_job(asked(file, customer), str(uuid.uuid4()))["id"])
    sent = time.perf_counter() - began
    while True:
        shown = [client.job(job) for job in made]
        if all(job["status"] in _ENDS for job in shown):
            break
        if time.perf_counter() - began > _DONE_SECONDS:
            raise SystemExit("the jobs take too long")
        time.sleep(_POLL)
    wall = time.perf_counter() - began
    bad = [job for job in shown if job["status"] != "succeeded"]
    if bad:
        raise SystemExit(f"{bad[0]['id']}: {bad[0]['status']}: {bad[0]['error']}")
    return {
        "jobs": len(made),
        "wall_seconds": wall,
        "sent_seconds": sent,
        "tokens": sum(job["trained_tokens"] for job in shown),
        "device_seconds": sum(job["x"]["device_seconds"] for job in shown),
        **_history(made),
    }


def _history(made: list[str]) -> Row:
    """Seconds by the ledger's clock, job by job. The point of the first step is written as soon as
    the step is made."""
    from sqlalchemy import select

    from manylora.ledger.database import Database
    from manylora.ledger.tables import Event, Job, Metric

    database = Database(load_settings(home=HOME).database_url.get_secret_value(), pool_size=1)
    try:
        waited, first, published = [], [], []
        with database.transaction() as tx:
            for job in made:
                moves = (
                    select(Event.to_state, Event.created_at)
                    .where(Event.job_id == job, Event.to_state.is_not(None))
                    .order_by(Event.seq)
                )
                when = {str(to): at for to, at in tx.execute(moves)}
                created = tx.scalars(select(Job.created_at).where(Job.id == job)).one()
                step = tx.scalars(
                    select(Metric.created_at).where(Metric.job_id == job).order_by(Metric.step)
                ).first()
                assert step is not None
                waited.append((when["running"] - created).total_seconds())
                first.append((step - when["running"]).total_seconds())
                published.append((when["succeeded"] - when["running"]).total_seconds())
    finally:
        database.close()
    return {
        "created_to_claim_seconds": waited,
        "claim_to_first_step_seconds": first,
        "claim_to_published_seconds": published,
    }


def _peer(base: Path, examples: int) -> Row:
    """One of the same jobs as one Trainer+PEFT process; the service idles meanwhile."""
    return {
        "folder": str(base),
        "length": workload.LENGTH,
        "rank": workload.RANK,
        "batch": workload.BATCH,
        "steps": examples // workload.BATCH,
    }


def measured(jobs: int, examples: int, rounds: int) -> list[Row]:
    """The jobs through a service that is started for it and stopped again, so many times."""
    for name in [name for name in os.environ if name.startswith("MANYLORA_")]:
        del os.environ[name]  # a service of the caller's own is not meant
    base = rows.base()
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.parent.mkdir(parents=True, exist_ok=True)
    found: list[Row] = []
    try:
        manylora("up", "-d", "--slots", str(jobs))
        manylora("base", "add", workload.BASE)
        client = connect()
        until_ready(client, jobs)
        with tempfile.TemporaryDirectory() as folder:
            files = datasets(Path(folder), base, jobs, examples)
            for number in range(rounds):
                alone = measure.fresh("bench.alone", _peer(base, examples))["wall_seconds"]
                first = through(client, files[:1])  # nobody else is there
                row: dict[str, Any] = {
                    **through(client, files),
                    "alone_seconds": alone,
                    "first_step_alone_seconds": first["claim_to_first_step_seconds"][0],
                }
                found.append({"what": "service", "round": number, "examples": examples, **row})
    finally:
        manylora("down", check=False)
        shutil.rmtree(HOME, ignore_errors=True)
    return found


def main(argv: list[str]) -> int:
    """Measure and keep the rows."""
    wanted = argparse.ArgumentParser(prog="python -m bench.service", description=__doc__)
    wanted.add_argument("--quick", action="store_true", help="two tiny jobs: build/bench/quick")
    wanted.add_argument("--rounds", type=int, default=3)
    given = wanted.parse_args(argv)
    out = OUT / "quick" if given.quick else OUT
    jobs, examples = (2, 8) if given.quick else (workload.JOBS, workload.EXAMPLES)
    kept = rows.Rows(out / "service.json", " ".join(["python -m bench.service", *argv]))
    for row in measured(jobs, examples, 1 if given.quick else given.rounds):
        kept.add(row)
        worst = max(row["claim_to_first_step_seconds"])
        sys.stdout.write(
            f"{row['jobs']} jobs in {row['wall_seconds']:.1f} s, first step {worst:.1f} s after "
            f"its claim at the latest, {row['first_step_alone_seconds']:.1f} s alone; one "
            f"Trainer+PEFT process {row['alone_seconds']:.1f} s\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
