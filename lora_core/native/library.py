"""Compile the kernels for this machine, once, and load them.

The compiler is the machine's own `cc`. The library is kept under a name made of its sources, the
compiler and the flags, so another version never meets an old file. Threads are OpenMP's of torch
itself: the library leaves its symbols open, and the loader finds them in the process.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import torch

from lora_core.errors import LoraError
from lora_core.native.kernels import Kernels

_SOURCES = (
    *("amx.h", "product.c", "adapters.c", "attention.c", "head.c", "rows.c", "optim.c"),
    "quantized.c",
)
_FLAGS = (
    *("-O2", "-fPIC", "-shared", "-fopenmp", "-nostartfiles", "-Wl,--as-needed"),
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mfma"),
    *("-mamx-tile", "-mamx-bf16"),
)
_NEEDED = {"amx_tile", "amx_bf16", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}
#: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA): a process asks before it uses tiles
_SYS_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18


class NativeError(LoraError):
    """This machine has no native kernels; the message says why."""


def load(folder: Path | str) -> Kernels:
    """The kernels, compiled into `folder` unless they lie there already.

    What lies there is executed, so a folder that others may write to is refused. Raises:
    NativeError where the processor lacks AMX bf16 or AVX-512, the system refuses it, or no
    compiler is found.
    """
    _check_processor()
    _check_folder(Path(folder))
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NativeError("no C compiler (cc) is installed")
    return Kernels(_open(_compiled(Path(folder), compiler)), _name(compiler))


def _check_processor() -> None:
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "AMD64"):
        raise NativeError("the kernels are for x86-64 and Linux")
    flags: set[str] = set()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            flags = set(line.partition(":")[2].split())
            break
    missing = sorted(_NEEDED - flags)
    if missing:
        raise NativeError(f"the processor lacks {', '.join(missing)}")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_SYS_ARCH_PRCTL, _REQUEST, _TILE_DATA) != 0:
        raise NativeError("the system does not let this process use AMX")


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
    except OSError as error:
        raise NativeError(f"the kernels have no folder: {error}") from error
    if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NativeError(f"{folder} may be written to by others: kernels from there are not run")


def _name(compiler: str) -> str:
    """12 hex digits of all that decides the machine code."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for source in _SOURCES:
        digest.update((here / source).read_bytes())
    digest.update(repr((_FLAGS, _run([compiler, "--version"]).stdout)).encode())
    return digest.hexdigest()[:12]


def _compiled(folder: Path, compiler: str) -> Path:
    library = folder / f"kernels-{_name(compiler)}.so"
    if library.exists():
        return library
    part = library.with_suffix(f".{os.getpid()}.part")
    here = Path(__file__).parent
    sources = [str(here / name) for name in _SOURCES if name.endswith(".c")]
    # Without -lgomp: the symbols stay open, and torch's own threads serve.
    made = _run([compiler, *_FLAGS, "-nostdlib", "-o", str(part), *sources])
    if made.returncode != 0:
        part.unlink(missing_ok=True)
        raise NativeError(f"{compiler} could not compile the kernels: {made.stderr[-500:]}")
    os.replace(part, library)
    return library


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        raise NativeError(f"{command[0]} cannot be run: {error}") from error


def _open(library: Path) -> ctypes.CDLL:
    torch.get_num_threads()  # torch is there, and its OpenMP with it
    try:
        return ctypes.CDLL(str(library), mode=os.RTLD_NOW)
    except OSError as error:
        raise NativeError(f"the kernels cannot be loaded: {error}") from error
