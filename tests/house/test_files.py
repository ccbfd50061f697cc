"""A file is one noun or one verb, says what lives in it, and is short; so is the Makefile."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from tests.house.sources import REVISIONS, ROOT, packaged, sources

MOST_LINES = 400
NO_NAMES = {"run", "runs", "runner", "manager", "managers", "util", "utils", "common", "helper"}
NO_NAMES |= {"helpers", "misc"}
#: click calls these by their own names, and they do what click says there
OVERRIDES = {"make_context"}


def test_there_is_something_to_look_at() -> None:
    names = {source.name for source in sources()}
    assert len(names) > 100
    assert {"manylora/settings.py", "worker/main.py", "tests/house/test_files.py"} <= names


def test_no_file_is_longer_than_400_lines() -> None:
    long = {
        source.name: lines
        for source in sources()
        if (lines := len(source.text.splitlines())) > MOST_LINES
        and not source.name.startswith(REVISIONS)
    }
    assert not long, str(long)


def test_no_module_has_a_name_that_says_nothing() -> None:
    bad = []
    for source in sources():
        path = PurePosixPath(source.name)
        if {part.lower().strip("_") for part in (*path.parent.parts, path.stem)} & NO_NAMES:
            bad.append(source.name)
    assert not bad, "\n".join(bad)


def test_every_file_says_first_what_lives_in_it() -> None:
    silent = [
        source.name
        for source in packaged()
        if source.text.strip() and not ast.get_docstring(source.tree)
    ]
    assert not silent, "\n".join(silent)


def _undocumented(body: list[ast.stmt], inside: str) -> Iterator[str]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_") or node.name in OVERRIDES:
            continue
        if not ast.get_docstring(node):
            yield f"{inside}{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from _undocumented(node.body, f"{inside}{node.name}.")


def test_whatever_is_public_has_a_docstring() -> None:
    missing = [
        name
        for source in packaged()
        if not source.name.startswith(REVISIONS)
        for name in _undocumented(source.tree.body, f"{source.name}: ")
    ]
    assert not missing, "\n".join(missing)


def test_every_target_of_the_makefile_says_what_it_does() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    rules = re.findall(r"^([a-z][a-z-]*):(?!=)(.*)$", text, flags=re.MULTILINE)
    assert {"help", "setup", "demo", "test", "docs"} <= {name for name, _ in rules}
    assert [name for name, rest in rules if not re.search(r"  ## \S", rest)] == []
    phony = re.findall(r"^\.PHONY:(.*)$", text, flags=re.MULTILINE)
    assert sorted(" ".join(phony).split()) == sorted(name for name, _ in rules)
