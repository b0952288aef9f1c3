"""Settings from the environment: the ecosystem's own variables where one exists, else `DISTILFLOW_*`.

Nothing here is secret and nothing here enters a fingerprint: where things lie never changes what they are.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from infra.errors import unusable_home


def home() -> Path:
    """The folder that holds all local state: embedded services, caches, the latest report."""
    return Path(os.environ.get("DISTILFLOW_HOME", ".distilflow")).absolute()


def made_home() -> Path:
    """The same, made for this user alone where it is not there: it holds databases, webhooks and passwords."""
    make_home(home())
    return home()


def make_home(folder: Path) -> None:
    """Make the folder where it is not there; ConfigurationError where nothing can be written in it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise unusable_home(folder, error) from error


def bucket() -> str:
    """The S3 bucket that artifacts live in."""
    return os.environ.get("DISTILFLOW_BUCKET", "distilflow")


def s3_endpoint() -> str | None:
    """The S3 endpoint in use, or None for AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def s3_addressing() -> str:
    """How buckets are addressed: in the `path`, which every store knows, or as a `virtual` host (AWS's own way)."""
    return os.environ.get("DISTILFLOW_S3_ADDRESSING") or ("path" if s3_endpoint() else "auto")


def cache_dir() -> Path:
    """Local copies of artifacts and paid-for LLM answers; safe to delete, costly to lose."""
    return home() / "cache"


def work_dir() -> Path:
    """Scratch folders of running stages."""
    return home() / "work"


def min_free_mib() -> int:
    """Free space under which a run refuses to start."""
    return int(os.environ.get("DISTILFLOW_MIN_FREE_MIB", "512"))


def retry_delays_s() -> list[float]:
    """How long to wait before a stage that failed in passing is tried again, a try each."""
    return [float(word) for word in os.environ.get("DISTILFLOW_RETRY_DELAYS_S", "5,30").split(",")]


def torch_extensions_dir() -> str:
    """Where DeepSpeed's compiled extensions lie: with the environment that they were built for."""
    return os.environ.get("TORCH_EXTENSIONS_DIR") or str(Path(sys.prefix) / "torch_extensions")
