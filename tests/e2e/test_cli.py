"""The CLI as a user types it, against the whole embedded stack in a home with a space."""

import json
import os
import signal
import stat
import time
from pathlib import Path

import peft
import torch
from transformers import AutoModelForCausalLM

from lora_core import load_adapter
from tests.conftest import WORDS


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_from_up_to_down(cli, tiny_model_folder, tmp_path):
    cli("down", code=1)
    cli("submit", "x.jsonl", "--base", "tiny", code=2)
    cli("up", "-d", "--slots", "2")
    again = cli("up", "-d", code=1)
    assert "already up" in again.stderr
    for name in ("client.env", "service.env", "credentials.json"):
        assert stat.S_IMODE((cli.home / name).stat().st_mode) == 0o600

    data = tmp_path / "train.jsonl"
    data.write_text(
        "".join(
            json.dumps({"prompt": f"{a} {b}", "completion": f" {b} {a}"}) + "\n"
            for a, b in zip(WORDS[:12], WORDS[6:18], strict=True)
        )
    )
    unknown = cli("submit", data, "--base", "tiny", code=2)
    assert 'no base is called "tiny"' in unknown.stderr
    cli("base", "add", "tiny", "--from", tiny_model_folder, "--dtype", "float32")
    flags = ["--base", "tiny", "--suffix", "mine", "--rank", "4", "--epochs", "2"]
    made = json.loads(cli("submit", data, *flags, "--seed", "3", "-d", "--json").stdout)
    cli("wait", made["id"])
    shown = json.loads(cli("show", made["id"], "--json").stdout)
    assert (shown["status"], shown["x"]["step"]) == ("succeeded", 6)
    cli("base", "remove", "nothing", code=1)
    few = ["base", "add", "few", "--from", tiny_model_folder, "--quantize"]
    refused = cli(*few, "nf4", "--group-size", "32", code=2)
    assert "a group size is for int4" in refused.stderr
    assert cli.json(*few, "int4", "--group-size", "16")["quantization"] == "int4-g16"
    assert "int4-g16" in cli("base", "list").stdout
    cli("base", "remove", "few")

    cli("fetch", "mine", "-o", tmp_path / "out")
    cli("verify", tmp_path / "out")
    alone = ["train", data, "--base", "tiny", "--rank", "4", "--epochs", "2", "--seed", "3"]
    cli(*alone, "-o", tmp_path / "alone")
    name = "adapter_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    ids = torch.arange(4, 12)[None]
    ours = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model_folder), tmp_path / "out"
    )
    load_adapter(ours, tmp_path / "out")
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-4)

    before = cli.processes()
    assert set(before) == {
        "postgres", "valkey", "seaweed", "api", "scheduler", "worker", "trainer",
    }  # fmt: skip
    os.kill(before["api"]["pid"], signal.SIGKILL)
    wait_until(lambda: cli.processes()["api"]["restarts"] == 1)
    wait_until(lambda: "ftjob-" in cli_quiet(cli))
    cli("down")
    assert not any(alive(p["pid"]) for p in before.values())
    cli("jobs", code=6)


def cli_quiet(cli):
    """`jobs`, which may not reach the API yet."""
    try:
        return cli("jobs").stdout
    except AssertionError:
        return ""
