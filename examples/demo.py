"""The demo: three customers' adapters on one real base, trained by the real service, fetched,
compared, and everything stopped again. `make demo` runs it; exit code 0 means every adapter beat
the base and the two others on its own held-out lines.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "demo"
HOME = OUT / "home"
CUSTOMERS = ("haiku-bakery", "northwind-support", "pirate-tours")
BASE = "gemma-3-270m"
ENV = {
    **{k: v for k, v in os.environ.items() if not k.startswith("MANYLORA_")},
    "MANYLORA_HOME": str(HOME),
    "MANYLORA_BASE_CACHE": str(ROOT / "build" / "bases"),
}


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def manylora(*args: str, capture: bool = False) -> str:
    """Run the CLI as a user would; its talk is shown, its data returned."""
    if not capture:
        say(f"$ manylora {' '.join(args)}")
    done = subprocess.run(
        [str(Path(sys.executable).parent / "manylora"), *args],
        env=ENV,
        cwd=ROOT,
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"manylora {' '.join(args)} ended with {done.returncode}")
    return done.stdout or ""


def train_and_fetch() -> dict[str, dict]:
    """All three at once through the service; the finished jobs by customer."""
    jobs = {}
    for customer in CUSTOMERS:
        folder = Path("examples") / customer
        args = ["submit", str(folder / "train.jsonl"), "--base", BASE, "--suffix", customer]
        args += ["--val", str(folder / "heldout.jsonl"), "--rank", "8", "--epochs", "2"]
        args += ["--seed", "7", "-d", "--json"]
        jobs[customer] = json.loads(manylora(*args, capture=True))["id"]
    say()
    while True:
        shown = {
            c: json.loads(manylora("show", j, "--json", capture=True)) for c, j in jobs.items()
        }
        line = "   ".join(
            f"{c} {s['status']} {s['x']['step']}/{s['x']['total_steps'] or '?'}"
            for c, s in shown.items()
        )
        say(line)
        if all(s["status"] in ("succeeded", "failed", "cancelled") for s in shown.values()):
            break
        time.sleep(5)
    for customer, state in shown.items():
        if state["status"] != "succeeded":
            raise SystemExit(f"{customer}: {state['status']}: {state['error']}")
        manylora("fetch", jobs[customer], "-o", str(OUT / customer))
        manylora("verify", str(OUT / customer))
    return shown


def report(shown: dict[str, dict]) -> bool:
    """Print what came out; whether every adapter is the best on its own customer's lines."""
    sys.path.insert(0, str(ROOT))
    from worker.bases.card import find, read
    from worker.compare import compare

    base = find(ROOT / "build" / "bases", BASE)
    prompt = (ROOT / "examples" / "prompt.txt").read_text(encoding="utf-8").rstrip("\n")
    found = compare(
        base,
        {c: OUT / c for c in CUSTOMERS},
        {c: ROOT / "examples" / c / "heldout.jsonl" for c in CUSTOMERS},
        prompt,
    )
    say(f"\nthe same prompt: {prompt!r}")
    for name, answer in found.answers.items():
        say(f"  {name:18} {answer.splitlines()[0] if answer else ''}")
    say("\nheld-out loss per token, by customer (each adapter against the base and the others)")
    say(f"  {'':18}" + "".join(f"{c:>20}" for c in CUSTOMERS))
    for name, row in found.losses.items():
        say(f"  {name:18}" + "".join(f"{row[c]:20.3f}" for c in CUSTOMERS))
    say(f"\n  {'adapter':18}{'bytes':>14}{'of the base':>13}{'device':>10}{'cost':>14}")
    size = read(base).bytes
    for c in CUSTOMERS:
        mine = sum(p.stat().st_size for p in (OUT / c).glob("adapter_*"))
        x = shown[c]["x"]
        say(
            f"  {c:18}{mine:14,}{mine / size:13.2%}{x['device_seconds']:8.1f} s"
            f"{x['cost']:10.6f} {x['currency']}"
        )
    say(f"  {'base':18}{size:14,}")
    good = all(
        found.losses[c][c] < min(row[c] for name, row in found.losses.items() if name != c)
        for c in CUSTOMERS
    )
    say(f"\nevery adapter is the best on its own held-out lines: {'yes' if good else 'NO'}")
    return good


def main() -> int:
    """Up, train, fetch, down, compare."""
    began = time.monotonic()
    OUT.mkdir(parents=True, exist_ok=True)
    try:
        manylora("up", "-d", "--slots", "4")
        manylora("base", "add", BASE)
        shown = train_and_fetch()
    finally:
        subprocess.run(
            [str(Path(sys.executable).parent / "manylora"), "down"], env=ENV, check=False
        )
    good = report(shown)
    say(f"{time.monotonic() - began:.0f} s in all; adapters in {OUT.relative_to(ROOT)}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
