"""The three real servers: reads and writes with the credentials, none without, data that stays."""

import json
import os
import shutil
import signal
import socket
import stat

import boto3
import psutil
import psycopg
import pytest
import redis
from botocore.client import Config
from botocore.exceptions import ClientError

from manylora.errors import StackError
from manylora.local import credentials, notes, ports, system_user
from manylora.local.servers import Servers, servers
from manylora.local.supervise import Supervisor

from .conftest import await_true


def s3(urls, secret=None):
    return boto3.session.Session().client(
        "s3",
        endpoint_url=urls.s3_endpoint,
        region_name="us-east-1",
        aws_access_key_id=urls.s3_access_key,
        aws_secret_access_key=secret or urls.s3_secret_key,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 3}),
    )


def wrong(url, password):
    """A URL with another password."""
    assert password in url
    return url.replace(password, "wrong")


@pytest.fixture(scope="module")
def up(open_home):
    """(servers, supervisor) of a stack without its service, in its second life."""
    open_home.mkdir()
    words, numbers = credentials.secrets_of(open_home), credentials.ports_of(open_home, 0)
    first = Supervisor(open_home)
    try:
        three = Servers(open_home, words, numbers)
        three.start(first)
        with psycopg.connect(three.urls().database_owner_url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        client, bucket = s3(three.urls()), three.urls().s3_bucket
        client.put_object(Bucket=bucket, Key="kept", Body=b"42")
        for number in range(100):  # acknowledged a moment before it is told to stop
            client.put_object(Bucket=bucket, Key=f"late/{number}", Body=b"%d" % number)
    finally:
        first.stop()
    pids = [one.process.pid for one in first.children]
    assert [pid for pid in pids if notes.is_alive(pid)] == []
    assert credentials.secrets_of(open_home) == words
    assert credentials.ports_of(open_home, 0) == numbers
    # As after a restart of the machine: the pid file is there, its number is somebody else's.
    lines = [str(os.getppid()), str(three.postgres.data), "1", "1", "", "", "1 1", "ready"]
    pidfile = three.postgres.data / "postmaster.pid"
    pidfile.write_text("\n".join(lines) + "\n")
    if three.postgres.user:
        shutil.chown(pidfile, three.postgres.user)
    second = Supervisor(open_home)
    try:
        three = Servers(open_home, words, numbers)
        three.start(second)
        yield three, second
    finally:
        second.stop()


def test_data_of_the_life_before_is_there(up):
    urls = up[0].urls()
    with psycopg.connect(urls.database_owner_url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    assert s3(urls).get_object(Bucket=urls.s3_bucket, Key="kept")["Body"].read() == b"42"


def test_what_was_acknowledged_just_before_the_stop_is_there(up):
    client, bucket = s3(up[0].urls()), up[0].urls().s3_bucket
    for number in range(100):
        got = client.get_object(Bucket=bucket, Key=f"late/{number}")["Body"].read()
        assert got == b"%d" % number


def test_data_lives_in_a_home_that_can_be_reached(up, open_home):
    assert up[0].postgres.data == open_home / "postgres"
    assert not (open_home / "postgres.path").exists()


def test_the_database_belongs_to_the_owner_role_and_takes_no_wrong_password(up):
    urls = up[0].urls()
    with psycopg.connect(urls.database_url) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("manylora_app",)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("CREATE TABLE mine (x int)")
    words = up[0].postgres._passwords
    both = {"manylora_app": urls.database_url, "manylora_owner": urls.database_owner_url}
    for role, url in both.items():
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(wrong(url, words[role]))


def test_the_broker_takes_no_wrong_password(up):
    urls = up[0].urls()
    client = redis.Redis.from_url(urls.broker_url)
    client.set("probe", "42")
    assert client.get("probe") == b"42"
    assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
    bare = redis.Redis.from_url(f"redis://{urls.broker_url.partition('@')[2]}")
    with pytest.raises(redis.AuthenticationError):
        bare.get("probe")


def test_the_store_takes_no_wrong_key(up):
    urls = up[0].urls()
    with pytest.raises(ClientError) as caught:
        s3(urls, "wrong").get_object(Bucket=urls.s3_bucket, Key="kept")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


@pytest.mark.parametrize("name", ["postgres", "valkey", "seaweed"])
def test_a_killed_server_comes_back_with_what_it_kept(up, name):
    three, supervisor = up
    child = next(one for one in supervisor.children if one.name == name)
    before, restarts = child.process.pid, child.restarts
    os.kill(before, signal.SIGKILL)

    def back():
        supervisor.look_after()
        return child.restarts > restarts and child.state == "running"

    await_true(back, 90, f"{name} being back")
    assert child.process.pid != before
    urls = three.urls()
    with psycopg.connect(urls.database_owner_url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    redis.Redis.from_url(urls.broker_url).ping()
    assert s3(urls).get_object(Bucket=urls.s3_bucket, Key="kept")["Body"].read() == b"42"


def test_no_secret_is_in_a_command_line_or_a_log(up, open_home):
    words = credentials.secrets_of(open_home).values()
    every = " ".join(
        " ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])
    )
    logs = "".join(path.read_text(errors="replace") for path in (open_home / "logs").iterdir())
    assert [word for word in words if word in every or word in logs] == []


def test_files_with_secrets_are_closed(up, open_home):
    for name in ("credentials.json", "valkey/valkey.conf", "seaweed/s3.json"):
        assert stat.S_IMODE((open_home / name).stat().st_mode) == 0o600, name
    for name in ("logs", "run", "valkey", "seaweed", "postgres"):
        assert stat.S_IMODE((open_home / name).stat().st_mode) == 0o700, name


def test_servers_listen_on_the_loopback_and_on_their_own_ports_only(up, open_home):
    known = json.loads((open_home / "ports.json").read_text())
    chosen = {known["postgres"], known["valkey"], *known["seaweed"]}
    for child in up[1].children:
        listening = [
            one.laddr
            for one in psutil.Process(child.process.pid).net_connections("inet")
            if one.status == psutil.CONN_LISTEN
        ]
        assert listening, child.name
        assert {address.ip for address in listening} == {"127.0.0.1"}
        assert {address.port for address in listening} <= chosen, child.name


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")
def test_a_home_that_cannot_be_reached_has_its_database_elsewhere(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    home = closed / "home"
    with servers(home) as urls:  # beside the other stack: no port is shared
        data = system_user.data_for("nobody", home)
        assert data.parent == system_user.SHARED
        psycopg.connect(urls.database_url).close()
    assert not data.exists()


def test_a_database_that_was_lost_is_not_silently_replaced(tmp_path):
    (tmp_path / "postgres.path").write_text(str(tmp_path / "gone"))
    with pytest.raises(StackError, match="is gone"):
        system_user.data_for("nobody", tmp_path)


def test_ports_are_remembered_and_taken_ones_replaced(tmp_path):
    first = credentials.ports_of(tmp_path, 0)
    assert credentials.ports_of(tmp_path, first["api"]) == first
    with socket.socket() as taker:
        taker.bind((ports.LOOPBACK, first["valkey"]))
        taker.listen()
        second = credentials.ports_of(tmp_path, first["api"])
        assert second == first | {"valkey": second["valkey"]}
        assert second["valkey"] != first["valkey"]
        with pytest.raises(StackError, match=f"port {first['valkey']} is taken"):
            credentials.ports_of(tmp_path, first["valkey"])
