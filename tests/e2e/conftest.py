"""The CLI as processes of a home of their own, and one stack that a module's tests share."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Cli:
    """Calls `manylora …` as a user in a working directory, with a home that has a space."""

    def __init__(self, folder, **env):
        self.folder = folder
        self.home = folder / "a home"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MANYLORA_", "OPENAI_"))}
        self.env = clean | {"MANYLORA_HOME": str(self.home), "MANYLORA_THREADS": "2"} | env

    def start(self, *args, **env):
        """The call as a process that goes on."""
        return subprocess.Popen(
            [sys.executable, "-m", "manylora.cli.main", *map(str, args)],
            env=self.env | env, cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, *args, code=0, **env):
        """The finished call, whose exit code must be `code`."""
        with self.start(*args, **env) as process:
            try:
                out, err = process.communicate(timeout=300)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        done = subprocess.CompletedProcess(args, process.returncode, out, err)
        assert done.returncode == code, (args, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    def json(self, *args, code=0):
        """The one document of a call with --json."""
        return json.loads(self(*args, "--json", code=code).stdout)

    def processes(self):
        """name -> what status tells of it."""
        return {p["name"]: p for p in self.json("status")["processes"]}

    def down(self):
        """Take down what is up."""
        if (self.home / "run" / "status.json").exists():
            self("down")


@pytest.fixture
def cli(tmp_path):
    """A Cli; whatever is up at the end is taken down."""
    one = Cli(tmp_path)
    yield one
    one.down()


@pytest.fixture(scope="module")
def stack(tmp_path_factory, tiny_model_folder):
    """A Cli whose stack is up, started by one of two `up -d` at once (`stack.ups`), with the base
    `tiny`."""
    one = Cli(tmp_path_factory.mktemp("a stack"))
    racing = [one.start("up", "-d", "--slots", "2") for _ in range(2)]
    try:
        one.ups = [(*process.communicate(timeout=300), process.returncode) for process in racing]
        one("base", "add", "tiny", "--from", tiny_model_folder, "--dtype", "float32")
        yield one
    finally:
        one.down()
