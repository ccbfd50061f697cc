"""Nothing happens at import, and only what trains imports torch.

A child process imports every module of every package under an audit hook. What a third party
does at its own import is its own affair: an event counts for the module whose body is running.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.sources import ROOT

PROBE = r"""
import importlib, json, os, pkgutil, sys, threading

root = sys.argv[1] + os.sep
happened, read = [], []
WATCHED = {"socket.__new__", "socket.bind", "socket.connect", "subprocess.Popen", "os.system",
           "os.mkdir", "os.rename", "os.fork", "os.posix_spawn", "tempfile.mkstemp", "thread"}


def module_body():
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    where = frame.f_code.co_filename if frame is not None else ""
    return "" if "site-packages" in where else where  # the venv may lie below the root


def hook(event, args):
    if event == "open":
        mode, flags = args[1] or "", args[2] if isinstance(args[2], int) else 0
        if not (set(mode) & set("wax+") or flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)):
            return
    elif event not in WATCHED:
        return
    where = module_body()
    if where.startswith(root):
        happened.append([event, where.removeprefix(root), str(args[:1])[:80]])


class Watched(type(os.environ)):
    def __getitem__(self, key):
        if str(key).startswith("MANYLORA_"):
            where = module_body()
            if where.startswith(root):
                read.append([key, where.removeprefix(root)])
        return super().__getitem__(key)


def threads(start):
    def started(*args, **kwargs):
        sys.audit("thread", str(args[0]))
        return start(*args, **kwargs)
    return started


# Python 3.11 has no audit event of its own for threads.
for name in ("_start_new_thread", "_start_joinable_thread"):
    if hasattr(threading, name):
        setattr(threading, name, threads(getattr(threading, name)))
os.environ.__class__ = Watched
sys.addaudithook(hook)
os.environ.get("MANYLORA_PROBE")  # from here, "-c": not below the root, so not counted


def every(package):
    found = [package]
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        found.append(module.name)
        importlib.import_module(module.name)
    return found


def heavy():
    return sorted({"torch", "transformers", "peft"} & set(sys.modules))


imported = every("manylora") + every("scheduler")
without = heavy()
for name in ("worker.main", "worker.tasks", "worker.supervise", "worker.publish", "worker.lease"):
    importlib.import_module(name)
celery = heavy()
imported += every("lora_core") + every("worker") + ["migrations"]
importlib.import_module("migrations")
json.dump({"imported": imported, "happened": happened, "read": read, "without": without,
           "celery": celery}, sys.stdout)
"""


def probe(root: Path, folder: Path, code: str = PROBE) -> dict[str, list[object]]:
    """Run the probe with an empty home and an empty working folder.

    The temporary folder is elsewhere: torch makes its caches there.
    """
    temporary = folder.with_name(f"{folder.name}-tmp")
    temporary.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith("MANYLORA_")}
    env |= {
        "HOME": str(folder),
        "TMPDIR": str(temporary),
        "MANYLORA_HOME": str(folder / "home"),
        "MANYLORA_PROBE": "1",
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[object]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    folder = tmp_path_factory.mktemp("nothing")
    result = probe(ROOT, folder)
    result["files"] = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    return result


def test_every_module_is_imported(found: dict[str, list[object]]) -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in ("lora_core", "manylora", "scheduler", "worker")
        for path in (ROOT / package).rglob("*.py")
    }
    assert modules - set(found["imported"]) == set()


def test_nothing_happens_at_import(found: dict[str, list[object]]) -> None:
    assert found["happened"] == []


def test_no_variable_of_ours_is_read_at_import(found: dict[str, list[object]]) -> None:
    assert found["read"] == []


def test_no_file_is_made_at_import(found: dict[str, list[object]]) -> None:
    assert found["files"] == []


def test_the_shared_floor_the_scheduler_and_the_celery_process_import_no_torch(
    found: dict[str, list[object]],
) -> None:
    assert found["without"] == []
    assert found["celery"] == []


def test_the_probe_sees_what_it_looks_for(tmp_path: Path) -> None:
    """A package that does all of it at import is caught at all of it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "bad.py").write_text(
        "import os, socket, threading\n"
        "socket.socket().close()\n"
        "threading.Thread(target=int).start()\n"
        "open('made', 'w').close()\n"
        "value = os.environ.get('MANYLORA_PROBE')\n"
    )
    start = PROBE.partition("def every")[0]
    code = f"{start}\nimport bad\njson.dump({{'happened': happened, 'read': read}}, sys.stdout)"
    result = probe(tmp_path, tmp_path / "home", code)
    seen = {str(event[0]) for event in result["happened"] if isinstance(event, list)}
    assert seen == {"socket.__new__", "open", "thread"}
    assert result["read"] == [["MANYLORA_PROBE", "bad.py"]]
