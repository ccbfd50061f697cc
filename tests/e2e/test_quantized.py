"""QLoRA through the service: jobs on a base in NF4 are published with the bytes of training alone,
say so in their manifests, and load on the full-precision base by PEFT."""

import json
import uuid

import peft
import torch
from transformers import AutoModelForCausalLM

from manylora.ledger import adapters
from tests.e2e.test_bases import make_base, other
from tests.e2e.test_jobs import SCHEDULER, WORKER, alone, lines, processes, submit, wait_for

__all__ = ["other", "processes"]  # fixtures


def test_jobs_on_an_nf4_base(service, tiny_model_folder, processes, other, tmp_path):
    base, folder = make_base(
        service, "qwen2", other, tiny_model_folder, tmp_path, dtype="bfloat16", quantize="nf4"
    )
    assert (base.quantization, base.dtype) == ("nf4", "bfloat16")
    tenant, _ = service.tenant(f"t-{uuid.uuid4().hex[:8]}")
    data = [lines(1), lines(2)]
    wanted = [
        submit(service, tenant, base, service.upload(tenant, d), lora_dropout=rate)
        for d, rate in zip(data, (0.0, 0.2), strict=True)
    ]
    processes(SCHEDULER)
    processes(WORKER, "2")
    done = wait_for(service, [j.id for j in wanted], {"succeeded", "failed"})
    assert [(j.state, j.error_message) for j in done] == [("succeeded", None)] * 2
    for job, d in zip(done, data, strict=True):
        with service.database.transaction() as tx:
            adapter = adapters.find(tx, tenant.id, job.id)
        assert adapter.weights_sha256 == alone(job, d, folder, tmp_path)
        manifest = json.loads(service.store.get_bytes(adapter.manifest_key))
        assert manifest["base"] == {
            "name": other, "fingerprint": base.fingerprint, "quantization": "nf4",
        }  # fmt: skip
        assert manifest["numerics"]["fused"] is True
    out = tmp_path / f"alone-{done[0].id}" / "out"
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "source-qwen2", dtype=torch.float32)
    bare = plain(torch.arange(3, 12)[None]).logits
    loaded = peft.PeftModel.from_pretrained(plain, out)
    assert not torch.equal(loaded(torch.arange(3, 12)[None]).logits, bare)
