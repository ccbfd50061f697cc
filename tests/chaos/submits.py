"""Many clients that submit at once, over connections that stay open, and ask again by the same key
until they are answered: `python -m tests.chaos.submits --jobs 2000` tells how many a second.

Nobody trains: what is measured is the way from a request to a row that is there for good.
"""

import argparse
import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.stack import Stack
from tests.conftest import write_tiny_model


@dataclass
class Seen:
    """What the clients saw: key -> acknowledged id, the seconds of each answer, and of all."""

    ids: dict[str, str] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)
    again: int = 0
    seconds: float = 0.0

    @property
    def rate(self):
        return len(self.ids) / self.seconds

    def percentile(self, share):
        return sorted(self.latencies)[
            min(len(self.latencies) - 1, int(share * len(self.latencies)))
        ]


class Client:
    """One client and its connection."""

    def __init__(self, stack, file):
        self.stack = stack
        self.body = {"model": stack.card.name, "training_file": file, "seed": 7,
                     "hyperparameters": {"n_epochs": 1, "batch_size": 4, "lora_r": 4}}  # fmt: skip
        self.connection = None

    def submit(self, key):
        """The job's id, or None where there was no answer."""
        headers = {"Authorization": f"Bearer {self.stack.key}", "Idempotency-Key": key,
                   "Content-Type": "application/json"}  # fmt: skip
        try:
            if self.connection is None:
                port = self.stack.ports["api"]
                self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            self.connection.request("POST", "/v1/fine_tuning/jobs", json.dumps(self.body), headers)
            answer = self.connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            self.close()
            return None
        if answer.status >= 500:
            return None
        assert answer.status == 200, text
        return json.loads(text)["id"]

    def close(self):
        if self.connection is not None:
            self.connection.close()
        self.connection = None


def storm(stack, file, *, clients, each, midway=lambda: None):
    """Submit `each` jobs from every client; call `midway` when half of all are acknowledged."""
    seen, lock, errors = Seen(), threading.Lock(), []
    half = threading.Event()

    def run(number):
        client = Client(stack, file)
        try:
            for job in range(each):
                key, began = f"{number}-{job}-{file}", time.perf_counter()
                deadline = time.monotonic() + 120
                while (made := client.submit(key)) is None:
                    assert time.monotonic() < deadline, "no answer for two minutes"
                    with lock:
                        seen.again += 1
                    threading.Event().wait(0.05)
                with lock:
                    seen.ids[key] = made
                    seen.latencies.append(time.perf_counter() - began)
                    if len(seen.ids) * 2 >= clients * each:
                        half.set()
        except BaseException as error:
            errors.append(error)
            half.set()
        finally:
            client.close()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    half.wait()
    midway()
    for thread in threads:
        thread.join()
    seen.seconds = time.perf_counter() - began
    if errors:
        raise errors[0]
    return seen


def main():
    """The command."""
    from worker.bases.register import prepare

    parser = argparse.ArgumentParser(prog="python -m tests.chaos.submits", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=8)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="manylora-submits-") as folder:
        home = Path(folder)
        model = write_tiny_model(home / "model")
        base = prepare("tiny", str(model), home / "bases", dtype="float32", progress=lambda _: None)
        stack = Stack(home / "stack", base, workers=0)
        try:
            stack.start()
            file = stack.upload(1, 20)
            storm(stack, file, clients=asked.clients, each=10)
            file = stack.upload(2, 20)
            seen = storm(stack, file, clients=asked.clients, each=asked.jobs // asked.clients)
        finally:
            stack.stop()
    print(
        f"{len(seen.ids)} jobs from {asked.clients} clients in {seen.seconds:.1f} s: "
        f"{seen.rate:.0f} a second; median {statistics.median(seen.latencies) * 1e3:.0f} ms, "
        f"p99 {seen.percentile(0.99) * 1e3:.0f} ms, "
        f"longest {max(seen.latencies) * 1e3:.0f} ms"
    )


if __name__ == "__main__":
    sys.exit(main())
