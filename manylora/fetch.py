"""Fetch an adapter: download by presigned URLs, verify each byte, then rename into place.

The HTTP calls of the API are in client.py; what is printed about a download is the CLI's business.
Downloads go straight to the object store and never carry the API key.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx2

from manylora import keys
from manylora.errors import IntegrityError, ManyloraError, UnavailableError
from manylora.place import placed

Json = dict[str, Any]
#: told the file and how many bytes of how many have passed
Progress = Callable[[str, int, int], None]

_CHUNK = 1 << 20

#: what vLLM takes for --max-lora-rank
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_README = """\
# {name}

A LoRA adapter for the base `{base}` (fingerprint `{fingerprint}`), trained by job `{job}`.
Check the files at any time: `manylora verify .`

Below, `{base}` is the name the service knows the base by. Where that is no name on the hub, put the
base's own folder in its place: `bases/{fingerprint}` in the home of manylora (`~/.manylora`).
"""
_PEFT = """
## peft

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), ".")
```
"""
_OWN = """
## lora_core

PEFT puts QA-LoRA's adapters on GPTQ layers only, and vLLM knows none. On any base:

```python
from lora_core import load_adapter
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{base}")
load_adapter(model, ".")
```
"""
_VLLM = """
## vLLM

```
vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {short}=$PWD
```
"""
_NO_VLLM = """
## vLLM

vLLM refuses DoRA. Merge the adapter into a copy of the base and serve that:
`lora_core.load_adapter(model, ".")`, `lora_core.merge(model)`.
"""


class RideOut(Protocol):
    """Call something again and again while the service is unavailable."""

    def __call__(self, seconds: float, call: Callable[[], int]) -> int:
        """The call's answer. Raises: UnavailableError when time is up."""
        ...


@dataclass(frozen=True)
class Fetcher:
    """What a download needs of the service.

    `adapter` looks a reference up at the API; `store` asks the object store, without the API key.
    """

    adapter: Callable[[str], Json]
    ride_out: RideOut
    store: httpx2.Client

    def fetch(self, ref: str, target: Path, progress: Progress | None) -> Json:
        """Download an adapter into `target`, whole and checked, or not at all.

        Raises: IntegrityError when any byte is not what the manifest promises.
        """
        from_api = self.adapter(ref)
        with placed(target) as work:
            names = self._download(ref, from_api, work, progress)
        return {**from_api, "folder": str(target), "fetched": names}

    def _download(
        self, ref: str, from_api: Json, work: Path, progress: Progress | None
    ) -> list[str]:
        """Fill `work` with the adapter's files, its manifest and a README; return their names."""
        told = from_api["manifest"]
        if told["sha256"] != from_api["manifest_sha256"]:
            raise IntegrityError(f"{from_api['name']}: the API names two digests of one manifest")
        self._get(ref, "manifest.json", told["url"], work, told["sha256"], None, progress)
        try:
            manifest = json.loads((work / "manifest.json").read_bytes())
            wanted = [
                (keys.safe_file(f["name"]), str(f["sha256"]), int(f["bytes"]))
                for f in manifest["files"]
            ]
        except (ValueError, TypeError, KeyError) as error:
            raise IntegrityError(f"manifest.json cannot be read: {error}") from error
        urls = {f["name"]: f["url"] for f in from_api["files"]}
        for name, sha256, count in wanted:
            if name not in urls:
                raise IntegrityError(f"{name} is in the manifest, but the API does not offer it")
            self._get(ref, name, urls[name], work, sha256, count, progress)
        names = [name for name, _, _ in wanted] + ["manifest.json"]
        if "README.md" not in names:
            (work / "README.md").write_text(_readme(from_api, work), encoding="utf-8")
            names.append("README.md")
        return names

    def _get(
        self,
        ref: str,
        name: str,
        url: str,
        work: Path,
        sha256: str,
        count: int | None,
        progress: Progress | None,
    ) -> None:
        """One file by its presigned URL; a URL that ran out meanwhile is asked for once more."""
        link = url

        def once() -> int:
            return self._stream(link, work / name, progress)

        status = self.ride_out(60.0, once)
        if status in (401, 403, 410):
            fresh = self.adapter(ref)
            offered = {f["name"]: f["url"] for f in fresh["files"]}
            link = {**offered, "manifest.json": fresh["manifest"]["url"]}.get(name, url)
            status = self.ride_out(60.0, once)
        if status != 200:
            raise ManyloraError(f"the object store refused {name}: HTTP {status}")
        problem = check_file(work / name, sha256, count)
        if problem:
            raise IntegrityError(
                f"{name}: {problem}", hint="nothing was kept; try again, then tell the operator"
            )

    def _stream(self, url: str, path: Path, progress: Progress | None) -> int:
        try:
            with self.store.stream("GET", url) as response, path.open("wb") as out:
                if response.status_code >= 500:
                    raise UnavailableError(f"the object store answered {response.status_code}")
                total = int(response.headers.get("Content-Length") or 0)
                for chunk in response.iter_bytes(_CHUNK):
                    out.write(chunk)
                    if progress is not None:
                        progress(path.name, out.tell(), total)
                out.flush()
                os.fsync(out.fileno())
                return int(response.status_code)
        except httpx2.TransportError as error:
            raise store_down(error) from error


def check_file(path: Path, sha256: str, count: int | None = None) -> str | None:
    """What is wrong with a file that should have that digest and size; None if nothing is."""
    if not path.is_file():
        return "missing"
    if count is not None and path.stat().st_size != count:
        return f"{path.stat().st_size} bytes, the manifest says {count}"
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    return None if found == sha256 else f"sha256 is {found[:12]}…, should be {sha256[:12]}…"


def _readme(from_api: Json, work: Path) -> str:
    rank: Any = "<rank>"
    parts = [_README, _PEFT, _VLLM]
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        config = json.loads((work / "adapter_config.json").read_bytes())
        if config.get("use_dora"):
            parts = [_README, _PEFT, _NO_VLLM]
        elif config.get("use_qalora"):
            parts = [_README, _OWN]
        own = int(config.get("r"))
        rank = next((size for size in _VLLM_RANKS if size >= own), own)
    name = str(from_api["name"])
    return "".join(parts).format(
        name=name,
        base=from_api["base"],
        fingerprint=from_api["base_fingerprint"],
        job=from_api["job_id"],
        rank=rank,
        short=next((part for part in reversed(name.split(":")[3:4]) if part), "adapter"),
    )


def store_down(error: Exception) -> UnavailableError:
    """The object store does not answer."""
    return UnavailableError(
        f"the object store cannot be reached: {error or type(error).__name__}",
        hint="the service's presigned URLs must be reachable from here",
    )
