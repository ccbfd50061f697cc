"""What may be done in one place only: read the environment, print, name things; and what nowhere.

Each exemption has its reason, and one that is no longer needed fails.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from manylora import keys
from tests.house.sources import Source, dotted, packaged, sources

ENVIRONMENT = {
    "manylora/settings.py": "the one place",
    "manylora/cli/output.py": "NO_COLOR, FORCE_COLOR and TERM are the terminal's, not ours",
    "manylora/cli/commands/config.py": "which variables are set, to say where a value is from",
    "manylora/local/servers.py": "what the servers inherit, less what is not theirs",
    "manylora/local/stack.py": "what the service's processes inherit",
    "manylora/local/tether.py": "HOME of the user a server becomes",
    "worker/main.py": "its own id, through an exec of itself",
    "worker/trainer/link.py": "the few variables the trainer inherits",
}
PRINTERS = {
    "manylora/cli/output.py": "the one place",
    "manylora/local/commands.py": "the detached supervisor, whose stdout is its log",
}
#: parts of the bucket's layout and of a queue's name
NAMES = re.compile(r"^[tb]/|/(files|j|a|ckpt|epoch|adapter)/|^(ckpt|epoch|adapter)/|^pool\.")
STORE_VERBS = {"put_bytes", "put_file", "get_bytes", "get_file", "presign_get", "presign_put"}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
DANGEROUS = {"torch.load", "os.system", "os.popen", "eval", "exec", "numpy.load", "np.load"}


def _environment(source: Source) -> bool:
    named = {"environ", "environb", "getenv", "putenv", "unsetenv"}
    used = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and dotted(node.value) == "os":
            used.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            used |= {alias.name for alias in node.names}
    return bool(named & used)


def test_only_settings_reads_the_environment() -> None:
    assert {s.name for s in packaged() if _environment(s)} == set(ENVIRONMENT)


def _prints(source: Source) -> bool:
    ways = {"print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write"}
    return any(dotted(call.func) in ways for call in source.calls())


def test_only_output_prints() -> None:
    assert {s.name for s in packaged() if _prints(s)} == set(PRINTERS)


def _literals(source: Source) -> Iterator[tuple[int, str]]:
    """Every piece of text in the code, docstrings left out."""
    documentation = {
        id(node.value)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(source.tree):
        text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if text and id(node) not in documentation:
            yield node.lineno, node.value


def test_only_keys_makes_object_keys_and_names_of_queues_and_tasks() -> None:
    made = [
        f"{source.name}:{line} {text!r}"
        for source in packaged()
        if source.name != "manylora/keys.py"
        for line, text in _literals(source)
        if NAMES.search(text) or text == keys.TASK_TRAIN or text.startswith(keys.BROKER_PREFIX)
    ]
    assert not made, "\n".join(made)


def test_queues_and_tasks_are_never_named_by_a_literal() -> None:
    bad = []
    for source in packaged():
        for call in source.calls():
            called = dotted(call.func).rpartition(".")[2]
            if called not in ("Queue", "send_task", "task"):
                continue
            given = [*call.args[:1], *(k.value for k in call.keywords if k.arg == "name")]
            if any(isinstance(one, ast.Constant | ast.JoinedStr) for one in given):
                bad.append(f"{source.name}:{call.lineno}")
    assert not bad, "\n".join(bad)


def test_what_goes_to_the_store_is_a_key_or_a_prefix_and_a_file() -> None:
    """A key is made by `keys`, or is a prefix made there and one file's name."""
    bad, seen = [], 0
    for source in packaged():
        if source.name == "manylora/storage/store.py":
            continue
        for call in source.calls():
            if not isinstance(call.func, ast.Attribute) or call.func.attr not in STORE_VERBS:
                continue
            seen += 1
            key = call.args[0]
            starts = key.values[0] if isinstance(key, ast.JoinedStr) else key
            if isinstance(starts, ast.Constant) or isinstance(key, ast.BinOp):
                bad.append(f"{source.name}:{call.lineno}")
    assert not bad, "\n".join(bad)
    assert seen > 5


def test_nothing_unpickles_runs_a_shell_or_trusts_code_that_comes_with_a_model() -> None:
    bad = []
    for source in sources():
        for node in ast.walk(source.tree):
            imported: list[str] = []
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                imported = [node.module or ""]
            if {name.split(".")[0] for name in imported} & PICKLES:
                bad.append(f"{source.name}:{node.lineno} {imported}")
        for call in source.calls():
            if dotted(call.func) in DANGEROUS:
                bad.append(f"{source.name}:{call.lineno} {dotted(call.func)}")
            for word in call.keywords:
                off = isinstance(word.value, ast.Constant) and word.value.value is False
                if word.arg in ("shell", "trust_remote_code", "allow_pickle") and not off:
                    bad.append(f"{source.name}:{call.lineno} {word.arg}")
    assert not bad, "\n".join(bad)
