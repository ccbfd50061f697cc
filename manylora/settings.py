"""The only file that reads the environment.

Order of precedence: flags > environment (`MANYLORA_*`) > `.env` in the working directory >
`$MANYLORA_HOME/client.env` and `$MANYLORA_HOME/service.env` (written by `manylora up`) > defaults.
Built once at a process's entry and handed down; nothing is read at import.
"""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

DEFAULT_HOME = "~/.manylora"


class Settings(BaseSettings):
    """Every setting, its unit and its default."""

    model_config = SettingsConfigDict(
        env_prefix="MANYLORA_", env_file_encoding="utf-8", extra="ignore", frozen=True
    )

    home: Path = Field(Path(DEFAULT_HOME), description="folder of the embedded stack and caches")
    base_cache: Path | None = Field(None, description="folder of base weights; default home/bases")
    scratch: Path | None = Field(None, description="folder for jobs in work; default home/scratch")
    run_dir: Path | None = Field(None, description="where a worker notes its trainer's pid")

    api_url: str = Field("http://127.0.0.1:8400", description="where the CLI finds the API")
    api_key: SecretStr | None = Field(None, description="the key the CLI sends")
    api_host: str = Field("127.0.0.1", description="address the API listens on")
    api_port: int = Field(8400, ge=0, le=65535, description="port the API listens on")

    database_url: SecretStr = Field(
        SecretStr("postgresql://manylora_app@127.0.0.1:5432/manylora"),
        description="PostgreSQL as the app role",
    )
    database_owner_url: SecretStr | None = Field(
        None, description="PostgreSQL as the owner role, for `db upgrade` only"
    )
    broker_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="Valkey or Redis; wake-ups only"
    )

    s3_endpoint: str | None = Field(None, description="S3 endpoint; none means AWS")
    s3_public_endpoint: str | None = Field(
        None, description="endpoint written into presigned URLs; default s3_endpoint"
    )
    s3_region: str = Field("us-east-1", description="S3 region")
    s3_bucket: str = Field("manylora", description="bucket of files, bases and adapters")
    s3_access_key: SecretStr | None = Field(None, description="S3 access key")
    s3_secret_key: SecretStr | None = Field(None, description="S3 secret key")

    s3_multipart_bytes: int = Field(
        8 * 2**20, gt=0, description="files larger than this go to the store in parts, bytes"
    )

    key_pepper: SecretStr = Field(
        SecretStr(""), description="server-side secret that API keys are hashed with"
    )

    tick_seconds: float = Field(1.0, gt=0, description="seconds between two scheduling rounds")
    dispatch_deadline_seconds: float = Field(
        45.0, gt=0, description="a job no worker took by then is queued again"
    )
    resend_seconds: float = Field(
        15.0, gt=0, description="a wake-up no worker took by then is sent again"
    )
    heartbeat_seconds: float = Field(10.0, gt=0, description="seconds between two lease renewals")
    lease_seconds: float = Field(60.0, gt=0, description="a lease not renewed for so long is lost")
    most_failures_lost: int = Field(
        3, ge=1, description="a job whose workers died so often is failed"
    )
    most_failures_oom: int = Field(
        2, ge=1, description="a job that ran out of memory so often is failed"
    )
    most_failures_infra: int = Field(
        5, ge=1, description="a job that store, disk or the like let down so often is failed"
    )
    most_preemptions: int = Field(
        50, ge=0, description="how often a job makes room for one of higher priority; 0: never"
    )
    share_half_life_seconds: float = Field(
        86_400.0, gt=0, description="after so long, half of what a tenant has used is forgotten"
    )
    max_queued: int = Field(
        100_000, ge=1, description="most jobs of a tenant that wait, unless its own quota says else"
    )
    checkpoint_seconds: float = Field(
        300.0, gt=0, description="most seconds between two checkpoints of a job"
    )
    failure_seconds: float = Field(
        14_400.0, gt=0, description="expected seconds between two failures of a worker"
    )
    patience_seconds: float = Field(
        1800.0, ge=0, description="how long a job sits out an outage of the store or the database"
    )
    exact_wait_seconds: float = Field(
        600.0,
        ge=0,
        description="how long a job waits for a worker of its checkpoint's numerics",
    )
    drain_seconds: float = Field(
        20.0, gt=0, description="a worker told to stop waits so long for its jobs' last step"
    )
    sweep_seconds: float = Field(
        600.0, gt=0, description="seconds between two sweeps of the bucket"
    )
    sweep_grace_seconds: float = Field(
        86_400.0, ge=0, description="what an ended job left in the bucket stays so long"
    )
    stall_seconds: float = Field(
        300.0, gt=0, description="a trainer that makes no progress for that long is restarted"
    )

    quality_seconds: float = Field(
        20.0,
        ge=0,
        description="most device time of a job's quality report, never billed; 0 means none",
    )

    max_webhooks: int = Field(10, ge=0, le=100, description="most webhook endpoints of a tenant")
    webhook_networks: str = Field(
        "",
        description="networks that webhooks may go to although they are not public, with commas: "
        "127.0.0.0/8,10.1.0.0/16",
    )

    device_hour_price: float = Field(0.10, ge=0, description="price of one device-hour")
    currency: str = Field("USD", description="currency of every price shown")

    max_file_bytes: int = Field(512 * 2**20, gt=0, description="largest dataset, bytes")
    max_examples: int = Field(1_000_000, gt=0, description="most examples in a dataset")
    max_line_bytes: int = Field(256 * 2**10, gt=0, description="longest line of a dataset, bytes")
    max_json_depth: int = Field(32, gt=0, description="deepest nesting of a dataset's line")
    min_examples: int = Field(1, gt=0, description="fewest examples of a training file")
    max_context_length: int = Field(4096, gt=0, description="longest max_length a job may ask for")
    presign_seconds: int = Field(300, gt=0, description="life of a presigned download, seconds")

    factories: str = Field(
        "", description="modules, by commas, whose functions a worker may call to build a base"
    )
    threads: int | None = Field(None, description="threads of the trainer; default all cores")
    token_budget: int = Field(
        2048, ge=256, description="rows of one forward of the base, of all slots together"
    )
    memory_limit: int | None = Field(
        None, gt=0, description="memory of a trainer, bytes; default nine tenths of the device's"
    )
    metrics_host: str = Field(
        "127.0.0.1", description="address a scheduler or a worker shows its metrics and health on"
    )
    metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="first of 32 ports of which each scheduler and worker takes a free one for its "
        "metrics and health; 0 means none",
    )
    crash_at: str | None = Field(
        None, description="for tests only: NAME:N ends the process at a point of the code"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="log level")
    log_format: Literal["json", "text"] = Field("json", description="form of the service's logs")

    @field_validator("webhook_networks")
    @classmethod
    def _networks(cls, value: str) -> str:
        ",".join(str(ip_network(part.strip())) for part in value.split(",") if part.strip())
        return value

    def secrets(self) -> frozenset[str]:
        """Every secret value, of addresses the password: what must be in no log."""
        found = set()
        for name, value in self:
            if not isinstance(value, SecretStr):
                continue
            text = value.get_secret_value()
            if name.endswith("_url"):
                text = text.rpartition("@")[0].rpartition("://")[2].partition(":")[2]
                found.add(unquote(text))
            found.add(text)
        return frozenset(found - {""})

    def folder(self, name: Literal["bases", "scratch", "run", "kernels"]) -> Path:
        """One of the folders under `home`, some of which a setting of its own may move."""
        moved = {"bases": self.base_cache, "scratch": self.scratch, "run": self.run_dir}
        chosen = moved.get(name)
        return chosen if chosen is not None else self.home / name


def load_settings(**flags: Any) -> Settings:
    """Read the environment and the files, with `flags` (those not None) on top.

    Raises: pydantic.ValidationError, turned by the faces into a UsageError.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    home = Path(str(given.get("home") or os.environ.get("MANYLORA_HOME") or DEFAULT_HOME))
    home = Path(os.path.abspath(home.expanduser()))
    given["home"] = home
    files = (home / "service.env", home / "client.env", Path(".env"))
    return Settings(_env_file=files, **given)  # later files win over earlier ones
