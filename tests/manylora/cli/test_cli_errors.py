"""Exit codes and messages of what goes wrong before, or without, a service."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Shell = Callable[..., "subprocess.CompletedProcess[str]"]
NOBODY = {"MANYLORA_API_KEY": "k", "MANYLORA_API_URL": "http://127.0.0.1:9"}
GOOD = '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n'


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["jobs", "--nosuch"], 2, "No such option '--nosuch'"),
        (["nosuch"], 2, "No such command 'nosuch'"),
        (["show"], 2, "Missing argument"),
        (["submit", "nosuch.jsonl", "--base", "b"], 2, "does not exist"),
        (["jobs", "--status", "asleep"], 2, "asleep: not a status"),
        (["worker", "--base", "b", "--device", "tpu"], 2, "'tpu' is not auto, all, cpu, cuda"),
        (["generate", "hello"], 2, "nothing to generate with"),
        (["db", "upgrade"], 2, "MANYLORA_DATABASE_OWNER_URL is not set"),
        (["jobs"], 4, "no API key"),
        (["fetch", "a", "-o", "out"], 4, "no API key"),
        (["verify", "nosuch"], 2, "cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_exit_code_and_message(shell: Shell, words: list[str], code: int, said: str) -> None:
    done = shell(*words)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr

    as_json = shell(*words, "--json") if words[0] not in {"nosuch", "worker"} else done
    if as_json is not done:
        told = json.loads(as_json.stdout)["error"]
        assert said in told["message"]
        assert told["exit_code"] == as_json.returncode == code


def test_no_api_is_6(shell: Shell) -> None:
    done = shell("jobs", **NOBODY)
    assert done.returncode == 6
    assert "http://127.0.0.1:9 cannot be reached" in done.stderr
    assert "MANYLORA_API_URL" in done.stderr


@pytest.mark.parametrize("url", ["nonsense", "http://[", "http://127.0.0.1:99999999"])
def test_a_bad_address_is_told(shell: Shell, url: str) -> None:
    done = shell("jobs", MANYLORA_API_KEY="k", MANYLORA_API_URL=url)
    assert done.returncode in {2, 6}
    assert "Traceback" not in done.stderr


def test_a_bad_setting_is_2_and_names_its_variable(shell: Shell) -> None:
    done = shell("jobs", MANYLORA_TICK_SECONDS="soon")
    assert done.returncode == 2
    assert "MANYLORA_TICK_SECONDS" in done.stderr


def test_bad_hyperparameters_are_found_before_anything_is_sent(
    shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "d.jsonl").write_text(GOOD)
    done = shell("submit", "d.jsonl", "--base", "b", "--rank", "0", **NOBODY)
    assert done.returncode == 2
    assert "--rank" in done.stderr
    assert "0 is not in the range" in done.stderr


def test_version(shell: Shell) -> None:
    done = shell("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("manylora ")


def test_a_missing_extra_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from manylora.cli import context
    from manylora.errors import UsageError

    with pytest.raises(UsageError) as caught:
        context.load("nosuchpackage.main:serve", extra="worker")
    assert caught.value.hint == "pip install 'manylora[worker]'"


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    from manylora.cli import context, main

    def interrupted() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(context, "connect", interrupted)
    assert main.run(["jobs"]) == 130


def test_a_ctrl_c_that_a_library_makes_another_error_of_is_130(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from manylora.cli import context, main
def importing():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    except KeyboardInterrupt as error:
        raise ImportError("could not import") from error
context.connect = importing
sys.argv = ["manylora", "jobs"]
main.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


def test_a_reader_that_goes_away_is_no_traceback(shell: Shell, tmp_path: Path) -> None:
    import os
    import sys

    code = "from manylora.cli.main import main; main()"
    read, write = os.pipe()
    os.close(read)
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", code, "config", "show"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN),
    ) as process:
        os.close(write)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said == ""


# -- verify -------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    files = []
    for name, content in (("adapter_config.json", b"{}"), ("adapter_model.safetensors", b"ab" * 9)):
        (folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        files.append({"name": name, "sha256": digest, "bytes": len(content)})
    (folder / "manifest.json").write_text(json.dumps({"files": files}))
    return folder


def test_verify_good(shell: Shell, adapter: Path) -> None:
    done = shell("verify", str(adapter))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sha256 verified") == 2
    assert json.loads(shell("verify", str(adapter), "--json").stdout)["ok"] is True


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p: p.write_bytes(b"ba" * 9), "sha256 is"),
        (lambda p: p.write_bytes(b"ab"), "2 bytes, the manifest says 18"),
        (lambda p: p.unlink(), "missing"),
    ],
    ids=["changed", "cut", "gone"],
)
def test_verify_tampered(
    shell: Shell, adapter: Path, spoil: Callable[[Path], Any], said: str
) -> None:
    spoil(adapter / "adapter_model.safetensors")
    done = shell("verify", str(adapter))
    assert done.returncode == 1
    assert said in done.stdout
    assert "1 file of 2 not as published" in done.stderr
    as_json = shell("verify", str(adapter), "--json")
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)["ok"] is False


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", "{}", '{"files":[{"name":"../x","sha256":"0","bytes":1}]}'],
    ids=["empty", "list", "no files", "outside"],
)
def test_verify_nonsense_manifest(shell: Shell, adapter: Path, manifest: str) -> None:
    (adapter / "manifest.json").write_text(manifest)
    done = shell("verify", str(adapter))
    assert done.returncode == 1
    assert "is not a manifest" in done.stderr
