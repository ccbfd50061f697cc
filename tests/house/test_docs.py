"""The pages name exactly the settings, commands and errors there are, and their links lead on."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from types import ModuleType

import click
import pytest
from pydantic import SecretStr

from manylora import errors
from manylora.cli.main import COMMANDS, LazyCommand, cli
from manylora.settings import Settings
from tests.house.sources import ROOT

DOCS = ROOT / "docs"


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every table, backquotes taken off; headers and rules left out."""
    before = ""
    for line in text.splitlines():
        if line.startswith("|") and before.startswith("|") and not line.startswith("| ---"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            yield [c.strip().strip("`").replace("\\|", "|") for c in cells]
        before = line


def test_the_settings_page_is_the_settings() -> None:
    want = []
    for name, field in Settings.model_fields.items():
        value = field.default
        value = value.get_secret_value() if isinstance(value, SecretStr) else value
        default = "" if value is None else str(value)
        assert field.description, name
        want.append(
            [name, f"MANYLORA_{name}".upper(), default, " ".join(field.description.split())]
        )
    assert list(rows(page("settings.md"))) == want


def test_the_errors_page_is_the_tree() -> None:
    tree = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.ManyloraError)
    ]
    want = sorted(
        [k.__name__, k.code, str(k.http_status), str(k.exit_code), k.default_hint] for k in tree
    )
    told = sorted([*row[:4], row[5]] for row in rows(page("errors.md")))
    assert told == want
    hints = [kind.default_hint for kind in tree]
    assert len(set(hints)) == len(hints), "each error has a hint of its own"


def test_the_tree_drawn_in_errors_is_the_tree() -> None:
    drawn = re.findall(
        r"^[│├└─ ]*(\w+Error)\b.*?(?:exit (\d+))?(?: +(\d+))?$", errors.__doc__ or "", re.MULTILINE
    )
    told = {name: (exit_, http) for name, exit_, http in drawn}
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.ManyloraError):
            exit_, http = told.pop(name)
            assert exit_ in ("", str(kind.exit_code)), name
            assert http in ("", str(kind.http_status)), name
    assert told == {}


def _tree() -> Iterator[tuple[str, click.Command]]:
    for table in COMMANDS.values():
        for name in table:
            lazy = cli.commands[name]
            assert isinstance(lazy, LazyCommand)
            command = lazy.load()
            yield name, command
            if isinstance(command, click.Group):
                yield from ((f"{name} {verb}", below) for verb, below in command.commands.items())


def test_the_commands_page_is_the_command_line() -> None:
    told: dict[str, list[str]] = {}
    for part in page("commands.md").split("### `manylora ")[1:]:
        usage = part.partition("`")[0]
        path = " ".join(word for word in usage.split() if re.fullmatch(r"[a-z]+", word))
        told[path] = [row[0].replace("`", "") for row in rows(part)]
    want = {
        path: [", ".join(p.opts) for p in command.params if isinstance(p, click.Option)]
        for path, command in _tree()
    }
    assert told == want
    assert set(cli.commands) == {path for path in told if " " not in path}


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_make_docs_writes_is_fresh() -> None:
    generator = _generator()
    for name in {page for page, _ in generator.BLOCKS.values()}:
        _, text, wanted = generator.fresh(name)
        assert text == wanted, f"docs/{name} is not fresh: make docs"


def _pages() -> list[str]:
    found = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *ROOT.glob("*/README.md")]
    return sorted({path.relative_to(ROOT).as_posix() for path in found})


@pytest.mark.parametrize("name", _pages())
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("name", _pages())
def test_pages_name_only_variables_and_commands_that_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    known = {f"MANYLORA_{field}".upper() for field in Settings.model_fields}
    assert set(re.findall(r"MANYLORA_[A-Z0-9_]*[A-Z0-9]\b", text)) <= known
    commands = {path for path, _ in _tree()}
    groups = {path.split()[0] for path in commands if " " in path}
    for line in re.findall(r"`(?:\$ )?manylora ([^`]+)`", text):
        words = re.findall(r"^[a-z]+(?: [a-z]+)?", line)
        if words:
            first, _, second = words[0].partition(" ")
            assert first in commands, line
            if first in groups and second:
                assert words[0] in commands, line
