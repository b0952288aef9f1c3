"""Where data lie: a file, a folder, a pattern, a prefix of storage, a data set of the hub; several, by commas.

All become addresses of files: paths, `s3://bucket/key`, or `hub:OWNER/DATASET@COMMIT/FILE`.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import settings
from infra.errors import ConfigurationError, TransientError
from infra.files import scratch
from infra.store import storage
from infra.store.artifacts import digest_of

HUB = "hub:"
_PACKED = (".gz", ".zst", ".bz2", ".xz")
_DATA = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
_PATTERN = re.compile(r"[*?\[]")
_SPLITS = frozenset({"train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation"})
_WORDS = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class SourceFiles:
    """A source's files in order, and what lies beside them in a folder that is no data."""

    files: tuple[str, ...]
    others: tuple[str, ...] = ()


def find(source: str, what: str) -> SourceFiles:
    """The files of a source; `what` it holds is for the error.

    Raises ConfigurationError where there is none, or one that cannot be read; TransientError where the hub is away.
    """
    found = [_find(part, what) for part in _parts(source, what)]
    files = dict.fromkeys(file for one in found for file in one.files)
    return SourceFiles(tuple(files), tuple(other for one in found for other in one.others))


def digest(source: str, what: str) -> str:
    """sha256 of what a source's files hold, wherever they lie. Raises as `find` does."""
    return together([_digest(file, what) for file in find(source, what).files])


def together(digests: list[str]) -> str:
    """The digest of several files; that of one is its own."""
    return digests[0] if len(digests) == 1 else digest_of(digests)


@contextlib.contextmanager
def local(address: str, what: str) -> Iterator[Path]:
    """A file, or a copy of what lies elsewhere for the length of the `with`."""
    if address.startswith("s3://"):
        with scratch(settings.work_dir(), "data") as folder:
            with _storage_errors(what):
                storage.download(address, path := folder / "file")
            yield path
    elif address.startswith(HUB):
        yield _downloaded(address, what)
    else:
        yield Path(address).expanduser()


def plain_name(address: str) -> str:
    """A file's name without what says how it is packed."""
    return next((address.removesuffix(end) for end in _PACKED if address.endswith(end)), address)


def is_data(name: str) -> bool:
    """Whether a file's name is one of data."""
    return plain_name(name.lower()).endswith(_DATA)


def _parts(source: str, what: str) -> list[str]:
    """Commas stand between several sources, unless they are in the name of what is there."""
    if "," not in source or _is_there(source, what):
        return [source]
    return [part.strip() for part in source.split(",") if part.strip()]


def _is_there(source: str, what: str) -> bool:
    """Whether there is a file or a folder, an object or a prefix of that name."""
    if not source.startswith("s3://"):
        return Path(source).expanduser().exists()
    with _storage_errors(what):
        return storage.head(source) is not None or any(storage.keys(f"{source.rstrip('/')}/"))


def _find(source: str, what: str) -> SourceFiles:
    if source.startswith("s3://"):
        return _in_storage(source, what)
    if source.startswith(HUB):
        return _on_hub(source, what)
    path = Path(source).expanduser()
    try:
        if path.is_file():
            path.open("rb").close()
            return SourceFiles((source,))
        if path.is_dir():
            files = [str(file) for file in sorted(path.rglob("*")) if file.is_file() and not _is_hidden(file, path)]
            return _data_of(files, what, f"the folder {source!r}")
        if _PATTERN.search(source):
            matching = sorted(file for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
            if not matching:
                raise ConfigurationError(f"{what}: no file is like {source!r}")
            for file in matching:
                Path(file).open("rb").close()
            return SourceFiles(tuple(matching))
    except OSError as error:
        raise ConfigurationError(f"{what}: {source!r} cannot be read ({error.strerror})") from error
    raise ConfigurationError(f"{what}: there is no file {source!r}")


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _data_of(files: list[str], what: str, where: str) -> SourceFiles:
    """Those that are data, by their names."""
    data = tuple(file for file in files if is_data(file))
    if not data:
        there = ", ".join(Path(file).name for file in files[:3]) + " …" * (len(files) > 3)
        holds = f"it holds {there}" if files else "it is empty"
        raise ConfigurationError(f"{what}: {where} has no {', '.join(_DATA)} file in it ({holds})")
    return SourceFiles(data, tuple(file for file in files if file not in set(data)))


def _in_storage(source: str, what: str) -> SourceFiles:
    with _storage_errors(what):
        if not source.endswith("/") and storage.head(source) is not None:
            return SourceFiles((source,))
        pattern = _PATTERN.search(source)
        prefix = source[: pattern.start()].rpartition("/")[0] if pattern else source.rstrip("/")
        keys = sorted(f"{prefix}/{name}" for name in storage.keys(f"{prefix}/"))
    if pattern:
        keys = [key for key in keys if fnmatch.fnmatchcase(key, source)]
    if not keys:
        raise ConfigurationError(f"{what}: {source} does not exist")
    return SourceFiles(tuple(keys)) if pattern else _data_of(keys, what, source)


@contextlib.contextmanager
def _storage_errors(what: str) -> Iterator[None]:
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"{what}: {error}") from error


def _digest(address: str, what: str) -> str:
    if address.startswith("s3://"):
        return storage.digest(address)
    with local(address, what) as path:
        return storage.file_digest(path)


def _on_hub(source: str, what: str) -> SourceFiles:
    """`hub:OWNER/DATASET`, `/FILE` or `/FOLDER` of it, `:split` (train): its files as the hub tells splits apart."""
    name, _, split = source.removeprefix(HUB).partition(":")
    owner, _, rest = name.partition("/")
    dataset, _, below = rest.partition("/")
    if not owner or not dataset:
        raise ConfigurationError(f"{what}: {source!r} names no data set: expected hub:OWNER/DATASET or …/FILE")
    if "@" in dataset:
        return SourceFiles((source,))
    commit, files = _listed(f"{owner}/{dataset}", source, what)
    at = f"{HUB}{owner}/{dataset}@{commit}/"
    if below in files:
        return SourceFiles((at + below,))
    data = [file for file in files if is_data(file) and file.startswith(f"{below}/" if below else "")]
    wanted = _of_split(data, (split or "train").lower())
    if not wanted:
        there = ", ".join(data[:5]) + " …" * (len(data) > 5) if data else "no file that can be read"
        raise ConfigurationError(f"{what}: {source} has no file of the split {split or 'train'!r} (it has {there})")
    return SourceFiles(tuple(at + file for file in wanted))


def _of_split(files: list[str], split: str) -> list[str]:
    """Files are of the split that a word of their path names, and of `train` where none does."""
    named = {file: set(_WORDS.split(file.lower())) for file in files}
    if of_it := [file for file, words in named.items() if split in words]:
        return of_it
    return [file for file, words in named.items() if words.isdisjoint(_SPLITS)] if split == "train" else []


@functools.lru_cache(maxsize=32)  # a stage asks for the same again and again
def _listed(dataset: str, source: str, what: str) -> tuple[str, tuple[str, ...]]:
    """A data set's newest commit and its files."""
    from huggingface_hub import HfApi

    with _hub_errors(source, what):
        info = HfApi().dataset_info(dataset)
        return str(info.sha), tuple(sorted(sibling.rfilename for sibling in info.siblings or ()))


def _downloaded(address: str, what: str) -> Path:
    from huggingface_hub import hf_hub_download

    dataset, _, rest = address.removeprefix(HUB).partition("@")
    commit, _, file = rest.partition("/")
    with _hub_errors(address, what):
        return Path(hf_hub_download(dataset, file, repo_type="dataset", revision=commit))


@contextlib.contextmanager
def _hub_errors(source: str, what: str) -> Iterator[None]:
    import httpx
    from huggingface_hub import errors

    missing: Any = (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.RevisionNotFoundError)
    try:
        yield
    except errors.HFValidationError as error:
        raise ConfigurationError(f"{what}: {source!r} is no name of a data set") from error
    except (*missing, errors.LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        if isinstance(error, missing) and not isinstance(error, errors.LocalEntryNotFoundError):
            raise ConfigurationError(f"{what}: {source} does not exist on the hub (or needs HF_TOKEN)") from error
        raise TransientError(
            f"{what}: the hub cannot be reached for {source}: download it and name the file"
        ) from error
