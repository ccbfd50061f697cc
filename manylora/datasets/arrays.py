"""Datasets that are arrays: `.npz` or `.safetensors` with x [B, ...] and y [B, ...], for bases that
read arrays. What is wrong with one is told as for lines; no bytes make it raise. Needs no torch.

Nothing is unpickled, and nothing larger than the limit is unpacked: the sizes that a zip and its
headers declare are looked at first. B examples.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from manylora.datasets.limits import Limits
from manylora.datasets.problems import Problem, Report
from manylora.errors import DatasetError

Json = dict[str, Any]
Array = NDArray[Any]
SUFFIXES = (".npz", ".safetensors")
_NAMES = ("x", "y")
#: what a file that is none of these may raise on its way through zipfile and numpy
_BROKEN = (
    zipfile.BadZipFile, zlib.error, SafetensorError, OSError, ValueError, TypeError, KeyError,
    EOFError, RuntimeError, NotImplementedError, OverflowError, MemoryError,
)  # fmt: skip


class _BadError(Exception):
    """A problem of the file: code, message, fix."""


def is_arrays(filename: str) -> bool:
    """Whether a dataset of that name means to be arrays."""
    return filename.lower().endswith(SUFFIXES)


def reads_arrays(network: Json | None) -> bool:
    """Whether a base of that network (None: a causal LM) reads arrays."""
    return network is not None and network["task"] != "causal-lm"


def require_kind(filename: str, network: Json | None, param: str) -> None:
    """Raises: DatasetError for lines where the base reads arrays, or arrays where it reads text."""
    if reads_arrays(network) and not is_arrays(filename):
        raise DatasetError(
            f"{filename} is a file of lines, and the base reads arrays",
            hint="a .npz or .safetensors file with the arrays x and y",
            code="wrong_kind",
            param=param,
        )
    if is_arrays(filename) and not reads_arrays(network):
        raise DatasetError(
            f"{filename} is a file of arrays, and the base reads text",
            hint="a .jsonl file, one JSON object on each line",
            code="wrong_kind",
            param=param,
        )


def validate_arrays(path: Path, limits: Limits, network: Json | None = None) -> Report:
    """Everything wrong with a file of arrays; against what a base reads, where that is known."""
    return _read(path, limits, network)[0]


def load_arrays(path: Path, limits: Limits, network: Json) -> tuple[Array, Array]:
    """x (float32 or int64) and y (float32, or int64 class ids), ready to train on.

    Raises: DatasetError.
    """
    report, found = _read(path, limits, network)
    report.raise_if_bad(path.name)
    return found["x"], found["y"]


def _read(path: Path, limits: Limits, network: Json | None) -> tuple[Report, dict[str, Array]]:
    report = Report(kind="arrays")
    found: dict[str, Array] = {}
    try:
        if path.stat().st_size > limits.max_file_bytes:
            raise _too_large(limits)
        loaded = _zip(path, limits) if path.suffix.lower() == ".npz" else _tensors(path, limits)
        found = {name: _checked(name, loaded[name], network) for name in _NAMES}
        report.examples = _counted(found, limits)
    except _BadError as problem:
        _tell(report, *problem.args)
    except _BROKEN as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        _tell(report, "not_arrays", f"cannot be read: {said}", "save it with numpy.savez")
    return report, found


def _tell(report: Report, code: str, message: str, fix: str) -> None:
    report.problems.append(Problem(0, "$", code, f"the file {message}", fix))


def _zip(path: Path, limits: Limits) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        _names(set(entries))
        if sum(info.file_size for info in entries.values()) > limits.max_file_bytes:
            raise _too_large(limits)
        return {name: _entry(archive, entries[name]) for name in _NAMES}


def _entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    """One array; its header is believed only where the entry's size bears it out."""
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, by_columns, dtype = np.lib.format.read_array_header_2_0(stream)
        if dtype.hasobject:
            message = f"holds Python objects in {info.filename}, which are never unpickled"
            raise _BadError("object_array", message, "save arrays of numbers")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=1) < 0 or size != info.file_size - stream.tell():
            raise ValueError(f"the header of {info.filename} and its size differ")
        data = stream.read(size)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")


def _tensors(path: Path, limits: Limits) -> dict[str, Array]:
    with safe_open(str(path), framework="numpy") as held:
        _names(set(held.keys()))
        return {name: held.get_tensor(name) for name in _NAMES}


def _names(there: set[str]) -> None:
    lacking = [name for name in _NAMES if name not in there]
    if lacking:
        raise _BadError("missing_array", f"has no array {' and no '.join(lacking)}", "add it")
    other = sorted(there - set(_NAMES))
    if other:
        raise _BadError("unknown_array", f"holds an array {other[0][:40]!r}", "keep x and y only")


def _checked(name: str, array: Array, network: Json | None) -> Array:
    """One array in the dtype it is trained in. Raises: _BadError."""
    if array.dtype.kind not in "biuf":
        message = f"has {name} of dtype {array.dtype}"
        raise _BadError("bad_dtype", message, "make it numbers")
    if array.ndim == 0:
        raise _BadError("bad_shape", f"has {name} without a first axis", "examples are axis 0")
    ids, shape, below = _wanted(name, network)
    if shape is not None and array.shape[1:] != shape:
        message = f"has {name} of shape {_shape(array.shape[1:])} for each example, and the base"
        fix = f"make {name} [examples, {', '.join(map(str, shape))}]" if shape else "one number"
        raise _BadError("bad_shape", f"{message} wants {_shape(shape)}", fix)
    if ids:
        if array.dtype.kind == "f":
            message = f"has {name} of dtype {array.dtype}, and the base wants whole numbers"
            raise _BadError("bad_dtype", message, f"make {name} int64")
        low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
        if low < 0 or (below is not None and high >= below):
            what = "a class id" if name == "y" else "an id"
            message = f"has {what} {low if low < 0 else high} in {name}"
            most = "" if below is None else f" to {below - 1}"
            raise _BadError("out_of_range", message, f"ids run from 0{most}")
        return np.ascontiguousarray(array, dtype=np.int64)
    if network is None and array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):
        made = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(made).all():
        at = int(np.flatnonzero(~np.isfinite(made.reshape(len(made), -1)).all(1))[0])
        message = f"has a number in {name} that is not finite, in example {at}"
        raise _BadError("not_finite", message, "remove or mend the example")
    return made


def _wanted(name: str, network: Json | None) -> tuple[bool, tuple[int, ...] | None, int | None]:
    """Whether an array is ids, the shape of one example's, and what ids stay under."""
    if network is None:
        return False, None, None
    if name == "x":
        into = network["input"]
        return into["dtype"] == "int64", tuple(into["shape"]), into.get("below")
    output = tuple(network["output"])
    if network["task"] == "classification":
        return True, output[1:], output[0]
    return False, output, None


def _counted(found: dict[str, Array], limits: Limits) -> int:
    count, targets = len(found["x"]), len(found["y"])
    if count != targets:
        message = f"has {count} examples in x and {targets} in y"
        raise _BadError("counts_differ", message, "make them equal")
    if count < max(1, limits.min_examples):
        message = f"has {count} example(s), at least {max(1, limits.min_examples)} are needed"
        raise _BadError("too_few_examples", message, "add examples")
    if count > limits.max_examples:
        message = f"has more than {limits.max_examples} examples"
        raise _BadError("too_many_examples", message, "split it into several jobs")
    return count


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _too_large(limits: Limits) -> _BadError:
    message = f"is larger than {limits.max_file_bytes} bytes, unpacked"
    return _BadError("file_too_large", message, "split it into several jobs")
