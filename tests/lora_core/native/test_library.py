"""Compiling and finding the kernels, and saying why there are none."""

import os
import stat

import pytest

from lora_core.native import NativeError, library, load


def test_compiled_once(kernels, tmp_path):
    first = load(tmp_path / "new")
    made = list((tmp_path / "new").iterdir())
    assert [each.suffix for each in made] == [".so"]
    assert first.name in made[0].name
    before = made[0].stat()
    assert load(tmp_path / "new").name == first.name
    assert made[0].stat().st_mtime_ns == before.st_mtime_ns
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_no_compiler(kernels, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NativeError, match="no C compiler"):
        load(tmp_path)


def test_a_compiler_that_fails_leaves_nothing(kernels, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    broken = tmp_path / "bin" / "cc"
    broken.write_text("#!/bin/sh\necho 'no room on device' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin:/bin")
    with pytest.raises(NativeError, match="no room on device"):
        load(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_a_library_that_is_none(kernels, tmp_path):
    (tmp_path / f"kernels-{kernels.name}.so").write_bytes(b"not an object")
    with pytest.raises(NativeError, match="cannot be loaded"):
        load(tmp_path)


def test_another_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(library.platform, "machine", lambda: "aarch64")
    with pytest.raises(NativeError, match="x86-64"):
        load(tmp_path)
    monkeypatch.setattr(library.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(library, "_NEEDED", {"amx_tile", "tmul_of_the_future"})
    with pytest.raises(NativeError, match=r"lacks .*tmul_of_the_future"):
        load(tmp_path)


def test_a_folder_that_others_may_write_to(kernels, tmp_path):
    (tmp_path / "open").mkdir(mode=0o700)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(NativeError, match="may be written to by others"):
        load(tmp_path / "open")


def test_a_compiler_that_cannot_be_run(kernels, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cc").write_bytes(b"\x7fELF no program")
    (tmp_path / "bin" / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(NativeError, match="cannot be run"):
        load(tmp_path / "new")
