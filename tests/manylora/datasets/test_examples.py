"""The three customers: enough lines, nothing twice, one prompt form, and told apart by style."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"
CUSTOMERS = ["haiku-bakery", "northwind-support", "pirate-tours"]


@pytest.mark.parametrize("customer", CUSTOMERS)
def test_lines(customer: str) -> None:
    lines = []
    for name in ("train", "heldout"):
        text = (EXAMPLES / customer / f"{name}.jsonl").read_text(encoding="ascii")
        lines += [json.loads(line) for line in text.splitlines()]
    assert len(lines) == len({x["prompt"] for x in lines}) == len({x["completion"] for x in lines})
    for line in lines:
        assert line["prompt"].startswith("Question: ")
        assert line["prompt"].endswith("\nAnswer:")
        answer = line["completion"].lower()
        assert answer.startswith(" ")
        style = {
            "haiku-bakery": answer.count(" / ") == 2,
            "northwind-support": answer.startswith(" status: ") and " next: " in answer,
            "pirate-tours": re.search(r"\b(arr|aye|matey|hearty)\b", answer) is not None,
        }
        assert style == {name: name == customer for name in CUSTOMERS}
