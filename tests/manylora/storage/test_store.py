"""The store against real SeaweedFS: bytes come back as they went, or not at all."""

import hashlib
import http.server
import threading
import uuid

import httpx2
import pytest

from manylora.errors import IntegrityError, NotFoundError, UnavailableError
from manylora.local.ports import free_ports
from manylora.settings import load_settings
from manylora.storage.store import Store, sha256_of

MEGABYTE = 1 << 20


@pytest.fixture
def store(service):
    return service.store


@pytest.fixture
def key():
    return f"test/{uuid.uuid4().hex}"


def sha(body):
    return hashlib.sha256(body).hexdigest()


def another(service, **changes):
    """A store like the service's, but for `changes`."""
    names = ("home", "s3_endpoint", "s3_access_key", "s3_secret_key", "s3_bucket")
    return Store(load_settings(**{**{n: getattr(service.settings, n) for n in names}, **changes}))


def test_bytes_come_back_as_they_went(store, key, tmp_path):
    body = bytes(range(256)) * 17
    assert store.put_bytes(key, body) == sha(body)
    assert store.get_bytes(key) == body
    assert store.size(key) == len(body)
    with store.open(key) as stream:
        assert stream.read(3) == body[:3]
        assert stream.read() == body[3:]
        assert stream.read() == b""
    store.get_file(key, tmp_path / "deep" / "file", sha(body))
    assert (tmp_path / "deep" / "file").read_bytes() == body
    assert sha256_of(tmp_path / "deep" / "file") == sha(body)
    store.put_bytes(key, b"other")  # a plain put replaces
    assert store.get_bytes(key) == b"other"
    store.delete(key)
    assert store.size(key) is None
    store.delete(key)  # nothing to delete is no error


def test_an_empty_object_is_an_object(store, key, tmp_path):
    store.put_bytes(key, b"")
    assert store.size(key) == 0
    store.get_file(key, tmp_path / "empty", sha(b""))
    assert (tmp_path / "empty").read_bytes() == b""


def test_lines_can_be_read_from_a_stream(store, key):
    store.put_bytes(key, b"one\ntwo\n" * 5000)
    with store.open(key) as stream:
        assert sum(1 for _ in stream) == 10_000


@pytest.mark.parametrize("verb", ["get_bytes", "open", "get_file"])
def test_what_is_not_there_is_not_found(store, key, tmp_path, verb):
    arguments = (tmp_path / "file", sha(b"")) if verb == "get_file" else ()
    with pytest.raises(NotFoundError):
        getattr(store, verb)(key, *arguments)
    assert store.size(key) is None
    assert list(tmp_path.glob("**/*file*")) == []


def test_other_bytes_than_promised_leave_no_file(store, key, tmp_path):
    store.put_bytes(key, b"what lies there")
    target = tmp_path / "file"
    target.write_bytes(b"what was here before")
    with pytest.raises(IntegrityError):
        store.get_file(key, target, sha(b"what was promised"))
    assert target.read_bytes() == b"what was here before"
    with pytest.raises(IntegrityError):
        store.get_file(key, tmp_path / "new", sha(b"what was promised"))
    assert {p.name for p in tmp_path.iterdir()} == {"file"}


def test_a_second_writer_of_other_bytes_is_refused(store, key):
    store.put_bytes(key, b"first", if_absent=True)
    with pytest.raises(IntegrityError):
        store.put_bytes(key, b"second", if_absent=True)
    assert store.get_bytes(key) == b"first"
    assert store.put_bytes(key, b"first", if_absent=True) == sha(b"first")  # its own retry


def test_of_writers_at_once_one_wins_and_the_others_know(store, key):
    outcomes, barrier = {}, threading.Barrier(6)

    def write(number):
        barrier.wait(20)
        try:
            store.put_bytes(key, f"writer {number}".encode(), if_absent=True)
            outcomes[number] = True
        except IntegrityError:
            outcomes[number] = False

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    winners = [n for n, won in outcomes.items() if won]
    assert (len(outcomes), len(winners)) == (6, 1)
    assert store.get_bytes(key) == f"writer {winners[0]}".encode()


def test_the_store_refuses_bytes_that_changed_on_their_way(store, key, monkeypatch):
    from manylora.storage import store as module

    monkeypatch.setattr(module, "_b64", lambda _: "A" * 43 + "=")
    with pytest.raises(IntegrityError):
        store.put_bytes(key, b"some bytes")
    assert store.size(key) is None


@pytest.mark.parametrize("size", [0, 9 * MEGABYTE, 65 * MEGABYTE])
def test_files_of_any_size_go_up_and_down_in_parts(store, key, tmp_path, size):
    """Below the multipart threshold of 8 MiB, one part, and more parts than one."""
    path = tmp_path / "large"
    with path.open("wb") as out:
        for number in range(size // MEGABYTE):
            out.write(number.to_bytes(4, "big") * (MEGABYTE // 4))
    store.put_file(key, path)
    assert store.size(key) == size
    store.get_file(key, tmp_path / "back", sha256_of(path))
    store.put_file(key, path)  # again, as after an interruption: the same object
    assert store.size(key) == size
    pending = store._client.list_multipart_uploads(Bucket=store.bucket, Prefix=key)
    assert "Uploads" not in pending
    store.delete(key)


def test_a_file_is_written_once_where_it_is_to_be_written_once(service, key, tmp_path):
    """In one piece and in parts: its own retry is no second writer, another one is refused."""
    for number, settings in enumerate(({}, {"s3_multipart_bytes": 1})):
        store = another(service, **settings)
        path, where = tmp_path / "file", f"{key}/{number}"
        path.write_bytes(b"first" * 1000)
        assert store.put_file(where, path, if_absent=True) == sha(b"first" * 1000)
        assert store.put_file(where, path, if_absent=True) == sha(b"first" * 1000)
        path.write_bytes(b"second" * 1000)
        with pytest.raises(IntegrityError):
            store.put_file(where, path, if_absent=True)
        assert store.digest(where) == sha(b"first" * 1000)
        assert store.unfinished(where) == []


def test_the_probe_sees_whether_the_store_keeps_conditions(store, monkeypatch):
    before = store.list("probe/")
    assert store.probe() is True
    assert store.list("probe/") == before
    real = store._client.put_object

    def careless(**how):
        how.pop("IfNoneMatch", None)
        return real(**how)

    monkeypatch.setattr(store._client, "put_object", careless)
    assert store.probe() is False
    assert store.list("probe/") == before


def test_without_conditions_a_put_is_a_plain_one(store, key):
    store.conditional = False
    store.put_bytes(key, b"first", if_absent=True)
    store.put_bytes(key, b"second", if_absent=True)
    assert store.get_bytes(key) == b"second"


def test_keys_are_listed_below_their_prefix(store, key):
    for name in ("b", "a", "c/d"):
        store.put_bytes(f"{key}/{name}", b"x")
    store.put_bytes(f"{key}x", b"x")
    assert sorted(store.list(f"{key}/")) == [f"{key}/a", f"{key}/b", f"{key}/c/d"]
    assert store.list(f"{key}/none") == []


def test_a_presigned_get_needs_no_key_and_names_the_file(store, key):
    store.put_bytes(key, b"the weights")
    url = store.presign_get(key, "adapter_model.safetensors")
    answer = httpx2.get(url)
    assert answer.content == b"the weights"
    assert answer.headers["content-disposition"] == (
        'attachment; filename="adapter_model.safetensors"'
    )
    assert httpx2.get(url.split("?")[0]).status_code == 403
    assert httpx2.get(url.replace(key, key[:-1])).status_code == 403


def test_a_presigned_get_ends(service, key):
    service.store.put_bytes(key, b"x")
    url = another(service, presign_seconds=1).presign_get(key, "f")
    assert "X-Amz-Expires=1&" in url


def test_a_presigned_put_takes_just_the_bytes_it_was_made_for(store, key):
    url, headers = store.presign_put(key, sha(b"the file"))
    assert httpx2.put(url, content=b"another", headers=headers).status_code in {400, 403}
    assert store.size(key) is None
    assert httpx2.put(url, content=b"the file", headers=headers).status_code == 200
    assert store.get_bytes(key) == b"the file"


def test_a_public_endpoint_stands_in_what_others_are_given(service, key):
    public = another(service, s3_public_endpoint="https://files.example.com")
    assert public.presign_get(key, "f").startswith("https://files.example.com/")
    assert public.presign_put(key, sha(b""))[0].startswith("https://files.example.com/")
    assert public.embedded
    assert public.uri("a/b") == f"s3://{public.bucket}/a/b"


def test_a_bucket_is_made_once(service):
    store = another(service, s3_bucket=f"b-{uuid.uuid4().hex[:8]}")
    with pytest.raises(NotFoundError):
        store.ping()
    store.ensure_bucket()
    store.ensure_bucket()
    store.ping()
    store._client.delete_bucket(Bucket=store.bucket)


VERBS = {
    "put_bytes": lambda store, path: store.put_bytes("k", b"x"),
    "put_file": lambda store, path: store.put_file("k", path),
    "get_bytes": lambda store, path: store.get_bytes("k"),
    "open": lambda store, path: store.open("k"),
    "get_file": lambda store, path: store.get_file("k", path.with_name("new"), sha(b"")),
    "size": lambda store, path: store.size("k"),
    "list": lambda store, path: store.list("k"),
    "delete": lambda store, path: store.delete("k"),
    "ping": lambda store, path: store.ping(),
}


@pytest.fixture
def some_file(tmp_path):
    path = tmp_path / "some"
    path.write_bytes(b"some bytes")
    return path


@pytest.fixture
def impatient(monkeypatch):
    """No pause between botocore's tries."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)


@pytest.mark.parametrize("verb", VERBS)
def test_a_store_that_is_down_is_unavailable(service, some_file, verb, impatient):
    (port,) = free_ports(1)
    down = another(service, s3_endpoint=f"http://127.0.0.1:{port}")
    with pytest.raises(UnavailableError) as told:
        VERBS[verb](down, some_file)
    assert told.value.hint
    assert {p.name for p in some_file.parent.iterdir()} == {"some"}


@pytest.mark.parametrize("verb", VERBS)
def test_a_store_that_refuses_us_is_unavailable(service, some_file, verb):
    with pytest.raises(UnavailableError, match=r"refused|403"):
        VERBS[verb](another(service, s3_secret_key="wrong"), some_file)


@pytest.fixture
def broken_off():
    """An endpoint that promises 100 bytes, sends 10 and hangs up."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"0123456789")
            self.close_connection = True

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join(10)
    server.server_close()


def test_a_stream_that_breaks_off_is_unavailable_not_short(
    service, broken_off, tmp_path, impatient
):
    store = another(service, s3_endpoint=broken_off)
    with pytest.raises(UnavailableError):
        store.get_bytes("k")
    with pytest.raises(UnavailableError):
        store.get_file("k", tmp_path / "f", sha(b"0123456789"))
    assert list(tmp_path.iterdir()) == []
    with store.open("k") as stream, pytest.raises(UnavailableError):
        stream.read()
