"""A bucket in a dictionary in place of `infra.store.storage`, which can be away: for tests of who writes what when."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from infra.store import storage
from infra.store.storage import StoredObject


class MemoryStore:
    """Objects by their address; `error` is what the store answers to every upload while it is set."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, str]] = {}
        self.error: Exception | None = None
        self._versions = itertools.count(1)
        self._writing = threading.Lock()

    def replace(self, patch: pytest.MonkeyPatch) -> MemoryStore:
        """Be the storage until the test is over."""
        names = (
            "put",
            "get",
            "get_with_etag",
            "get_with_age",
            "head",
            "digest",
            "upload",
            "download",
            "keys",
            "folders",
            "delete",
        )
        for name in (*names, "delete_all"):
            patch.setattr(storage, name, getattr(self, name))
        return self

    def names(self) -> list[str]:
        return sorted(self.objects)

    def put(
        self, uri: str, data: bytes, *, only_if_absent: bool = False, only_if_match: str | None = None
    ) -> str | None:
        with self._writing:
            tag = self.objects[uri][1] if uri in self.objects else None
            if (only_if_absent and tag) or (only_if_match and tag != only_if_match):
                return None
            written = f'"{next(self._versions)}"'
            self.objects[uri] = (data, written)
            return written

    def get(self, uri: str) -> bytes | None:
        return self.objects[uri][0] if uri in self.objects else None

    def get_with_etag(self, uri: str) -> tuple[bytes, str] | None:
        return self.objects.get(uri)

    def get_with_age(self, uri: str) -> tuple[bytes, str, float] | None:
        """All of them were written just now."""
        found = self.objects.get(uri)
        return None if found is None else (*found, 0.0)

    def head(self, uri: str) -> StoredObject | None:
        data = self.get(uri)
        return None if data is None else StoredObject(uri, len(data), self.digest(uri))

    def digest(self, uri: str) -> str:
        return hashlib.sha256(self.objects[uri][0]).hexdigest()

    def upload(self, path: Path, uri: str) -> None:
        if self.error:
            raise self.error
        self.put(uri, path.read_bytes())

    def download(self, uri: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.objects[uri][0])

    def keys(self, prefix: str) -> Iterator[str]:
        return iter([uri.removeprefix(prefix) for uri in self.names() if uri.startswith(prefix)])

    def folders(self, prefix: str) -> Iterator[str]:
        return iter(sorted({name.partition("/")[0] for name in self.keys(prefix) if "/" in name}))

    def delete(self, uri: str) -> None:
        self.objects.pop(uri, None)

    def delete_all(self, prefix: str, names: Iterable[str]) -> int:
        gone = [self.objects.pop(prefix + name, None) for name in names]
        return len(gone)
