"""The quality report of a job, as it is published beside the adapter: what the trainer found,
turned into words and judged. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from manylora.datasets.tokenize import Tokenizer
from manylora.ledger import events
from manylora.ledger.database import Database
from manylora.ledger.tables import Job
from worker import prompts

FILE = "quality.json"
_PROMPTS = "prompts.json"
#: how much over its lowest the validation loss must end to count as risen
_RISEN = 1.02
_RULE = (
    "over-fitted when the last validation loss is more than 2 % over the lowest while the mean "
    "training loss since then is below that of as many steps before"
)
Json = dict[str, Any]


def overfitting(points: list[tuple[int, Json]]) -> Json | None:
    """The verdict by the rule, from metric points (step, data) in order; None with fewer than two
    validation losses."""
    valid = [(step, p["valid_loss"]) for step, p in points if p.get("valid_loss") is not None]
    if len(valid) < 2:
        return None
    best_step, best = min(valid, key=lambda each: (each[1], each[0]))
    last_step, last = valid[-1]
    train = [(step, p["train_loss"]) for step, p in points if p.get("train_loss") is not None]
    after = [loss for step, loss in train if step > best_step]
    before = [loss for step, loss in train if step <= best_step][-len(after) :] if after else []
    fell = bool(after and before) and fmean(after) < fmean(before)
    return {
        "flag": last > _RISEN * best and fell,
        "rule": _RULE,
        "best_step": best_step,
        "best_loss": best,
        "last_step": last_step,
        "last_loss": last,
        "training_loss_fell_since": fell,
    }


def compose(
    found: Json,
    asked: list[Json],
    points: list[tuple[int, Json]],
    rank: int,
    tokenizer: Tokenizer | None,
) -> Json:
    """The report. `found` is the trainer's: {facts, cut, seconds}. Without a tokenizer there were
    no prompts."""
    facts = found["facts"]
    answers = facts.get("answers", {})
    samples = []
    for number, prompt in enumerate(asked):
        told = {name: prompt[name] for name in ("line", "prompt", "expected")}
        for name in ("base", "adapter"):
            given = answers.get(name, [])
            told[name] = None
            if tokenizer is not None and number < len(given):
                told[name] = tokenizer.decode(given[number]).strip()
        samples.append(told)
    spectrum = facts.get("spectrum")
    if spectrum is not None:
        needed = spectrum["rank_needed"]
        spectrum = {"rank": rank, "hint": _hint(rank, needed, spectrum["share"]), **spectrum}
    return {
        "format": "manylora-quality/1",
        "heldout": facts.get("heldout"),
        "overfitting": overfitting(points),
        "samples": samples,
        "spectrum": spectrum,
        "seconds": round(found["seconds"], 3),
        "cut": found["cut"],
    }


def wanted(job: Job, seconds: float, tokenizer: Tokenizer | None, folder: Path) -> Json | None:
    """What the trainer needs for a report, if one is wished of the job; prompts only with a
    tokenizer. Raises: OSError."""
    if not (job.hyperparameters.get("quality_report") and seconds):
        return None
    source = folder / ("validation.jsonl" if job.validation_file else "train.jsonl")
    target = folder / _PROMPTS
    found = prompts.prompts(tokenizer, source) if tokenizer is not None else []
    target.write_text(json.dumps(found), encoding="utf-8")
    return {"prompts": str(target), "seconds": seconds}


def report(
    database: Database, job: Job, finished: Json, tokenizer: Tokenizer | None, folder: Path
) -> None:
    """Write the report beside the adapter's files; every metric point is in the books before.

    Raises: UnavailableError, OSError.
    """
    with database.transaction() as tx:
        points = [(row.step, row.data) for row in events.metrics(tx, job.id, limit=100_000)]
    asked = json.loads((folder / _PROMPTS).read_bytes())
    rank = int(job.hyperparameters["lora_r"])
    told = compose(finished["quality"], asked, points, rank, tokenizer)
    text = json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (Path(finished["folder"]) / FILE).write_text(text, encoding="utf-8")


def _hint(rank: int, needed: int, share: float) -> str:
    if needed < rank:
        return f"rank {needed} would keep {share:.0%} of what was learnt (it has {rank})"
    return f"all {rank} ranks are needed for {share:.0%} of what was learnt: more may help"
