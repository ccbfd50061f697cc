"""The real base, end to end: registered, trained on for a few steps, fetched, loaded by PEFT."""

import json

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_core import load_adapter
from tests.e2e.conftest import ROOT, Cli
from worker.bases.card import find

BASES = ROOT / "build" / "bases"  # shared with the demo: Gemma is converted once

pytestmark = pytest.mark.gemma


def test_an_adapter_of_gemma_through_the_service_is_the_same_in_peft(tmp_path):
    cli = Cli(tmp_path, MANYLORA_BASE_CACHE=str(BASES))
    lines = (ROOT / "examples/pirate-tours/train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "few.jsonl").write_text("".join(lines[:6]))
    try:
        cli("up", "-d", "--slots", "1")
        cli("base", "add", "gemma-3-270m")
        flags = ["--base", "gemma-3-270m", "--rank", "4", "--epochs", "1", "--batch-size", "2"]
        job = cli.json("submit", "few.jsonl", *flags, "--seed", "5", "--suffix", "few", "-d")
        cli("wait", job["id"])
        assert cli.json("show", job["id"])["x"]["step"] == 3
        cli("fetch", "few", "-o", "out")
        assert cli.json("verify", "out")["ok"]
    finally:
        cli.down()
    base, out = find(BASES, "gemma-3-270m"), tmp_path / "out"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["base"]["fingerprint"] == base.name
    ids = AutoTokenizer.from_pretrained(base)("Question: When do you open?", return_tensors="pt")

    def logits(load):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        with torch.no_grad():
            return load(model.eval())(**ids).logits

    def ours(model):
        load_adapter(model, out)
        return model

    bare = logits(lambda model: model)
    trained = logits(ours)
    theirs = logits(lambda model: peft.PeftModel.from_pretrained(model, out).eval())
    torch.testing.assert_close(trained, theirs, rtol=0, atol=1e-4)
    assert (trained - bare).abs().max() > 1e-3
