"""The demo: three customers' adapters on one real base, trained by the real service, fetched,
compared, and everything stopped again. `make demo` runs it; exit code 0 means every adapter beat
the base and the two others on its own held-out lines.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from threading import Event
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from manylora.cli import output  # noqa: E402
from manylora.client import Client  # noqa: E402
from manylora.errors import ManyloraError  # noqa: E402
from manylora.settings import load_settings  # noqa: E402

OUT = Path("build") / "demo"
BASES = Path("build") / "bases"
CUSTOMERS = ("haiku-bakery", "northwind-support", "pirate-tours")
WIDTH = max(map(len, CUSTOMERS))
BASE = "gemma-3-270m"
TRAINING = ["--rank", "8", "--epochs", "2", "--seed", "7"]
ENV = {
    **{k: v for k, v in os.environ.items() if not k.startswith("MANYLORA_")},
    "MANYLORA_HOME": str(ROOT / OUT / "home"),
    "MANYLORA_BASE_CACHE": str(ROOT / BASES),
}
FINAL = ("succeeded", "failed", "cancelled")
Json = dict[str, Any]


def title(text: str) -> None:
    """A heading."""
    output.data("")
    output.data(output.paint(text, output.ACCENT, sys.stdout))


def manylora(*args: str, quiet: bool = False) -> str:
    """Run the CLI as a user would. Raises: SystemExit when it fails."""
    if not quiet:
        output.talk(output.paint(f"$ manylora {' '.join(args)}", output.DIM))
    done = subprocess.run(
        [str(Path(sys.executable).parent / "manylora"), *args],
        env=ENV,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if quiet else None,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        output.error(f"manylora {' '.join(args)} ended with {done.returncode}", done.stderr)
        raise SystemExit(1)
    return done.stdout.strip()


def submit_all(client: Client) -> dict[str, str]:
    """The three jobs, one right after the other; their ids by customer."""
    for left in client.jobs():
        if left["status"] not in FINAL:  # of a demo that was interrupted
            client.cancel(left["id"])
    jobs = {}
    for customer in CUSTOMERS:
        folder = Path("examples") / customer
        args = ["submit", str(folder / "train.jsonl"), "--base", BASE, "--suffix", customer]
        output.talk(output.paint(f"$ manylora {' '.join(args)} …", output.DIM))
        args += ["--val", str(folder / "heldout.jsonl"), *TRAINING, "-d"]
        jobs[customer] = manylora(*args, quiet=True)
    return jobs


def follow(client: Client, jobs: dict[str, str]) -> dict[str, Json]:
    """Show all three until they have ended: three lines drawn again and again on a terminal, else
    three lines now and then. Raises: SystemExit unless all succeed.
    """
    losses: dict[str, list[Json]] = {customer: [] for customer in jobs}
    drawn, pause = 0, 1.0 if output.live() else 10.0
    while True:
        shown = {c: client.ride_out(60, lambda i=i: client.job(i)) for c, i in jobs.items()}
        for customer, job in jobs.items():
            points = losses[customer]
            points += client.metrics(job, points[-1]["step"] if points else 0)
        if drawn and output.live():
            sys.stderr.write(f"\x1b[{drawn}A")
        for customer, job in shown.items():
            clear = "\x1b[2K" if output.live() else ""
            output.talk(clear + progress_line(customer, job, losses[customer]))
        drawn = len(shown)
        if all(job["status"] in FINAL for job in shown.values()):
            break
        if not output.live():
            output.talk("")
        Event().wait(pause)
    for customer, job in shown.items():
        if job["status"] != "succeeded":
            output.error(f"{customer}: {job['status']}: {job['error']}")
            raise SystemExit(1)
    return shown


def progress_line(customer: str, job: Json, points: list[Json]) -> str:
    """Where one job stands."""
    step, total = job["x"]["step"], job["x"]["total_steps"]
    line = f"  {customer:{WIDTH}}  {job['status']:<9}"
    if not total:
        return line
    share = output.paint(output.bar(step / total), output.ACCENT)
    line += f"  {share}  step {step:>2} of {total}"
    trained = [p["train_loss"] for p in points if p.get("train_loss") is not None]
    return f"{line}   loss {trained[0]:.2f} → {trained[-1]:.2f}" if trained else line


def fetch_all(jobs: dict[str, str]) -> None:
    """Every adapter in its customer's folder, checked twice: while fetched, and offline."""
    for customer, job in jobs.items():
        target = OUT / customer
        shutil.rmtree(ROOT / target, ignore_errors=True)
        manylora("fetch", job, "-o", str(target), quiet=True)
        checked = manylora("verify", str(target), quiet=True).splitlines()
        output.data(f"  {target}   {output.counted(len(checked), 'file')}, sha256 verified")


def report(shown: dict[str, Json]) -> bool:
    """Print what came out; whether every adapter is the best on its own customer's lines."""
    from worker.bases.card import find, read
    from worker.compare import compare

    base = find(ROOT / BASES, BASE)
    prompt = (ROOT / "examples" / "prompt.txt").read_text(encoding="utf-8").rstrip("\n")
    found = compare(
        base,
        {c: ROOT / OUT / c for c in CUSTOMERS},
        {c: ROOT / "examples" / c / "heldout.jsonl" for c in CUSTOMERS},
        prompt,
    )
    title("The same prompt, answered by the base and by each adapter")
    for line in prompt.splitlines():
        output.data(output.paint(f"  {line}", output.DIM, sys.stdout))
    for name, answer in found.answers.items():
        output.data(f"  {name:{WIDTH}}   {textwrap.shorten(answer, 76, placeholder=' …')}")

    title("Loss per token on each customer's held-out lines, before and after")
    rows, good = [], True
    for c in CUSTOMERS:
        before, after = found.losses["base"][c], found.losses[c][c]
        others = min(found.losses[other][c] for other in CUSTOMERS if other != c)
        best = after < min(before, others)
        good &= best
        verdict = "best of all" if best else "NOT the best"
        rows.append((c, f"{before:.3f}", f"{after:.3f}", f"{others:.3f}", verdict))
    output.table(("customer", "base", "own adapter", "best of the others", ""), rows)

    title("What it takes")
    size = read(base).bytes
    rows = [("base, shared by all", f"{size:,}", "100.00 %", "", "")]
    for c in CUSTOMERS:
        mine = sum(p.stat().st_size for p in (ROOT / OUT / c).glob("adapter_*"))
        x = shown[c]["x"]
        cost = f"{x['cost']:.6f} {x['currency']}"
        rows.append(
            (c, f"{mine:,}", f"{100 * mine / size:.2f} %", f"{x['device_seconds']:.1f} s", cost)
        )
    output.table(("", "bytes", "of the base", "device", "cost"), rows)
    price = load_settings(home=ROOT / OUT / "home")
    output.talk(
        "cost = seconds of the device this job took x "
        f"{price.device_hour_price:.2f} {price.currency} an hour (MANYLORA_DEVICE_HOUR_PRICE)"
    )
    return good


def train_and_compare() -> bool:
    """Up, train, fetch, compare, down; whether every adapter is the best for its customer."""
    try:
        manylora("up", "-d", "--slots", "4")
        manylora("base", "add", BASE)
        made = load_settings(home=ROOT / OUT / "home")
        assert made.api_key is not None
        client = Client(made.api_url, made.api_key.get_secret_value())
        title("Three customers, one base, trained together")
        jobs = submit_all(client)
        shown = follow(client, jobs)
        title("Fetched from the object store")
        fetch_all(jobs)
        return report(shown)
    finally:
        output.data("")
        manylora("down")


def main() -> int:
    """The exit code: 0 when every adapter is the best on its own customer's lines."""
    began = time.monotonic()
    os.chdir(ROOT)
    OUT.mkdir(parents=True, exist_ok=True)
    try:
        good = train_and_compare()
    except KeyboardInterrupt:
        return 130
    except ManyloraError as error:
        output.error(error.message, error.hint)
        return 1
    took = output.span(time.monotonic() - began)
    if not good:
        output.error("an adapter is not the best on its own customer's lines", took)
        return 1
    output.data(f"every adapter is the best on its own customer's lines; {took} in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
