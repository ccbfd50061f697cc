"""Every command helps with an example, and help costs no heavy import."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from manylora.cli.main import COMMANDS, LazyCommand, cli

HEAVY = [
    "torch",
    "transformers",
    "boto3",
    "botocore",
    "sqlalchemy",
    "alembic",
    "fastapi",
    "celery",
    "redis",
    "pydantic",
    "httpx2",
    "plotext",
    "numpy",
    "tokenizers",
    "manylora.client",
    "manylora.fetch",
    "manylora.settings",
    "manylora.ledger",
]


def _paths() -> Iterator[tuple[str, ...]]:
    for table in COMMANDS.values():
        for name in table:
            yield (name,)
            lazy = cli.commands[name]
            assert isinstance(lazy, LazyCommand)
            real = lazy.load()
            if isinstance(real, click.Group):
                yield from ((name, verb) for verb in real.commands)


PATHS = list(_paths())


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import io, json, sys
from contextlib import redirect_stdout
from manylora.cli.main import run
found = {{}}
for words in {[[], *map(list, PATHS)]!r}:
    with redirect_stdout(io.StringIO()):
        assert run([*words, "--help"]) == 0, words
    found[" ".join(words)] = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps(found))
"""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert {k: v for k, v in json.loads(done.stdout).items() if v} == {}


@pytest.mark.parametrize("words", PATHS, ids=" ".join)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_shows_an_example(
    words: tuple[str, ...], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, flag], prog_name="manylora", standalone_mode=False) == 0
    shown = capsys.readouterr().out
    assert "Examples:" in shown
    assert f"manylora {words[0]}" in shown.split("Examples:")[1]


@pytest.mark.parametrize("words", PATHS, ids=" ".join)
def test_every_command_that_answers_has_json(words: tuple[str, ...]) -> None:
    lazy = cli.commands[words[0]]
    assert isinstance(lazy, LazyCommand)
    real = lazy.load()
    for verb in words[1:]:
        assert isinstance(real, click.Group)
        real = real.commands[verb]
    if isinstance(real, click.Group) or words[0] in {"api", "scheduler", "worker"}:
        return
    assert any("--json" in param.opts for param in real.params)


def test_the_table_is_what_help_lists(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--help"], prog_name="manylora", standalone_mode=False)
    shown = capsys.readouterr().out
    for table in COMMANDS.values():
        for name, (_, short) in table.items():
            assert name in shown
            assert short.split("`")[0].split(";")[0] in shown
