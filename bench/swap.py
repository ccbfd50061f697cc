"""Merge, unmerge and hot swap on the demo base: `python -m bench.swap [--quick]`.

Each way in a fresh process. Merging: every linear layer of Gemma 3 270M at rank 8, back from the
base's mapped files or from a kept copy; seconds, and what the process held over what it held with
base and adapter loaded (the kernel's mark, VmHWM, reset before). Hot swap: adapters in slots of one
base, `activate` of each in turn and the loading of a further one. Rows go to build/bench/swap.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bench import measure, rows, workload
from bench.measure import OUT, Row

_SLOTS = 8
_ROUNDS = 5


def point(order: Row) -> Row:
    """One way, measured in this process."""
    import torch

    from lora_core import AdapterSpec, activate, inject, load_adapter, merge, save_adapter, unmerge
    from lora_core import weights_digest as digest
    from lora_core.inject import layers
    from lora_core.memory import peak_of
    from worker.trainer.load import load_base

    folder = Path(order["folder"])
    began = time.perf_counter()
    model = load_base(folder, "cpu", None)
    row: Row = {"load_seconds": time.perf_counter() - began}
    for parameter in model.parameters():  # out of the mapped file, as any use of them does
        parameter.data = parameter.data.clone()
    spec = AdapterSpec(r=workload.RANK, alpha=float(workload.ALPHA))

    def fill(slot: str, seed: int) -> None:
        inject(model, spec, slot)
        draw = torch.Generator().manual_seed(seed)
        for layer in layers(model).values():
            layer.lora_B[slot].data.copy_(
                torch.randn(layer.lora_B[slot].shape, generator=draw) * 0.01
            )

    if order["what"] == "merge":
        fill("one", 1)
        before = digest(model)
        source = folder if order["way"] == "mapped" else None
        held = _resident()
        row["kept_bytes"] = sum(
            layer.weight.numel() * layer.weight.element_size() for layer in layers(model).values()
        )
        seconds: dict[str, list[float]] = {"merge": [], "unmerge": []}

        def there_and_back() -> None:
            for name, step in (("merge", merge_), ("unmerge", unmerge_)):
                began = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - began)

        def merge_() -> None:
            merge(model, "one", source=source)

        def unmerge_() -> None:
            unmerge(model, source=source)

        peak = peak_of(torch.device("cpu"), there_and_back)
        if peak is None:
            raise RuntimeError("this system tells no peak")
        row |= {"held_bytes": held, "over_bytes": peak - held}
        for _ in range(order["rounds"] - 1):
            there_and_back()
        row |= {f"{name}_seconds": median(found) for name, found in seconds.items()}
        row["exact"] = digest(model) == before
        return row
    for number in range(_SLOTS):
        fill(f"slot{number}", number)
    with tempfile.TemporaryDirectory() as scratch:
        save_adapter(model, scratch, slot="slot0")
        found = []
        for number in range(order["rounds"]):
            began = time.perf_counter()
            load_adapter(model, scratch, slot=f"more{number}")
            found.append(time.perf_counter() - began)
    row["load_adapter_seconds"] = median(found)
    found = []
    for number in [*range(_SLOTS)] * order["rounds"]:
        began = time.perf_counter()
        activate(model, f"slot{number}")
        found.append(time.perf_counter() - began)
    return row | {"activate_seconds": median(found), "slowest_activate_seconds": max(found)}


def _resident() -> int:
    """Bytes this process holds."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError("this system tells no VmRSS")


def main(argv: list[str]) -> int:
    """Take every way, and print what it gave."""
    asked = argparse.ArgumentParser(prog="python -m bench.swap", description=__doc__)
    asked.add_argument("--quick", action="store_true", help="one round: build/bench/quick")
    asked.add_argument("--base", type=Path, help="a converted base  [that of the bench]")
    given = asked.parse_args(argv)
    out = OUT / "quick" if given.quick else OUT
    folder = given.base or rows.base()
    found = rows.Rows(out / "swap.json", " ".join(["python -m bench.swap", *argv]))
    for order in (
        {"what": "merge", "way": "mapped"},
        {"what": "merge", "way": "kept copy"},
        {"what": "swap"},
    ):
        rounds = 1 if given.quick else _ROUNDS
        row = measure.fresh("bench.swap", {**order, "folder": str(folder), "rounds": rounds})
        row.pop("folder")
        found.add(row)
        sys.stdout.write(f"{told(row)}\n")
        sys.stdout.flush()
    return 0


def told(row: Row) -> str:
    """A way in a line."""
    if row["what"] == "merge":
        return (
            f"merge, back from the {row['way']}: {row['merge_seconds']:.2f} s there, "
            f"{row['unmerge_seconds']:.2f} s back, {row['over_bytes'] / 2**20:.0f} MiB over what "
            f"was held (a copy is {row['kept_bytes'] / 2**20:.0f}), "
            f"{'to the bit' if row['exact'] else 'NOT EXACT'}"
        )
    return (
        f"swap among {_SLOTS} adapters: {row['activate_seconds'] * 1e3:.2f} ms to activate "
        f"(slowest {row['slowest_activate_seconds'] * 1e3:.2f}), "
        f"{row['load_adapter_seconds'] * 1e3:.0f} ms to load a further one from disk"
    )


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        measure.answer(point(measure.order()))
    else:
        sys.exit(main(sys.argv[1:]))
