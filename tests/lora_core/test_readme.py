"""The README's twenty lines do what they say."""

import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import write_tiny_model

README = Path(__file__).parents[2] / "lora_core" / "README.md"


def test_the_twenty_lines(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) <= 25
    write_tiny_model(tmp_path / "model")
    lines = code.replace("path/to/a/causal-lm", "model")
    (tmp_path / "use.py").write_text(lines)
    done = subprocess.run(
        [sys.executable, "use.py"], cwd=tmp_path, text=True, capture_output=True, check=True
    )
    steps = done.stdout.splitlines()
    assert len(steps) == 6
    assert all("('first', " in step and "('second', " in step for step in steps)
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
