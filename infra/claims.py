"""Who works on which piece: leases in storage, so that any number of workers share a stage with no coordinator.

A claim is an object beside the pieces, written only where there is none, and renewed while its owner lives. It
is taken over where its owner is a dead process of this machine, or was seen not to renew for a while; the
watcher's own clock decides, never a comparison of two machines' clocks. Pieces are idempotent, so a claim saves
work and is not what keeps results right.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import psutil

from infra import settings, storage
from infra.artifacts import ArtifactRef, Workspace
from infra.errors import TransientError

_SURELY_DEAD_S = 600.0
_RENEW_S = 10.0
_STALE_S = 45.0
_WHOLE = "claims/whole"


class Pauses:
    """Pauses between two looks at pieces that others have: a twentieth of what was waited so far, 1 to 15 s.

    Sixty-four workers that wait for the last hundred pieces would otherwise ask the store 20,000 times a second.
    """

    def __init__(self) -> None:
        self._waited_s = 0.0

    def next(self) -> float:
        """Seconds to sleep now."""
        pause = min(max(self._waited_s / 20, 1.0), 15.0)
        self._waited_s += pause
        return pause


def owner_lives(claim: bytes, silent_s: float) -> bool:
    """Whether the owner of a claim that was renewed `silent_s` ago by the storage's clock may still be at work.

    A process of this machine is looked up; another machine's is given ten minutes, since there is no hurry.
    """
    owner: dict[str, Any] = json.loads(claim)
    if owner["host"] == socket.gethostname():
        return _born(owner["pid"]) == owner["born"]
    return silent_s < _SURELY_DEAD_S


class Claims:
    """The claims of one worker under an s3:// prefix; use it in a `with`, which gives back what is still held."""

    def __init__(self, prefix: str, *, stale_s: float = _STALE_S):
        self._prefix = prefix
        self._stale_s = stale_s
        self._me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "born": _born(os.getpid()),
            "id": uuid.uuid4().hex,
        }
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[str, float, float]] = {}  # claim → version, since when, when we last looked
        self._over = threading.Event()
        self._renewer = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Claims:
        self._renewer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._renewer.join(timeout=5)
        for name in list(self._held):
            self.release(name)

    def take(self, name: str, *, dead: str | None = None) -> bool:
        """Whether the piece is ours to do now (or already was). `dead` is the tag of a claim whose owner is dead."""
        if name in self._held:
            return True
        uri = self._prefix + name
        if storage.put(uri, self._beat(), only_if_absent=True):
            return self._hold(name)
        found = storage.get_with_etag(uri)
        if found is None:
            return False  # released at this moment: the next round takes it
        data, etag = found
        if (etag == dead or self._is_stale(name, data, etag)) and storage.put(uri, self._beat(), only_if_match=etag):
            return self._hold(name)
        return False

    def seize(self, name: str) -> None:
        """Take the piece from whoever had it: for an owner who knows that the last one is gone."""
        storage.put(self._prefix + name, self._beat())
        self._hold(name)

    def release(self, name: str) -> None:
        """Give a piece back; finished pieces are known by their results, not by claims."""
        with self._lock:
            self._held.discard(name)
        storage.delete(self._prefix + name)

    def abandoned(self, name: str) -> bool:
        """Whether the piece's owner is gone and has not given it back. Ask again: a silent one takes time to tell."""
        found = storage.get_with_etag(self._prefix + name)
        return found is not None and self._is_stale(name, *found)

    def _hold(self, name: str) -> bool:
        with self._lock:
            self._held.add(name)
        return True

    def _beat(self) -> bytes:
        return json.dumps({**self._me, "beat": uuid.uuid4().hex}).encode()

    def _is_stale(self, name: str, data: bytes, etag: str) -> bool:
        owner: dict[str, Any] = json.loads(data)
        if owner["host"] == self._me["host"] and _born(owner["pid"]) != owner["born"]:
            return True
        now = time.monotonic()
        seen, since, looked = self._seen.get(name, ("", now, now))
        if seen != etag or now - looked > self._stale_s / 2:  # while storage was away nobody could renew
            since = now
        self._seen[name] = (etag, since, now)
        return now - since > self._stale_s

    def _renew(self) -> None:
        while not self._over.wait(min(_RENEW_S, self._stale_s / 4)):
            with self._lock:
                held = list(self._held)
            for name in held:
                try:
                    if name in self._held:
                        storage.put(self._prefix + name, self._beat())
                except TransientError:  # storage is away for a while: the claim goes stale or does not
                    break


def made_once(
    works: dict[str, Workspace],
    make: Callable[[dict[str, Workspace]], dict[str, ArtifactRef]],
    waiting: Callable[[str], None],
) -> dict[str, ArtifactRef]:
    """The finished artifacts of `works`: found, made by `make` from those that are missing, or awaited.

    Of any number of runs that want the same artifact at a time one makes it; the others wait, say so once by
    `waiting`, and take over where the maker dies.
    """
    found: dict[str, ArtifactRef] = {}
    told, pauses = False, Pauses()
    with Claims(f"s3://{settings.bucket()}/") as claims:
        while True:
            found |= {name: ref for name, work in works.items() if name not in found and (ref := work.find())}
            missing = {name: work for name, work in works.items() if name not in found}
            if not missing:
                return {name: found[name] for name in works}
            mine = {name: work for name, work in missing.items() if claims.take(_claim(work))}
            # one that was finished between our look and our claim needs no making
            found |= {name: ref for name, work in mine.items() if (ref := work.find())}
            if to_make := {name: work for name, work in mine.items() if name not in found}:
                found |= make(to_make)
            for work in mine.values():
                claims.release(_claim(work))
            if not mine:
                if not told:
                    waiting(f"another run is at {', '.join(missing)}: its result is waited for")
                    told = True
                time.sleep(pauses.next())


def _claim(work: Workspace) -> str:
    return f"{work.kind}/{work.fingerprint}/{_WHOLE}"


def _born(pid: int) -> float | None:
    """When a process of this machine started; None where there is none."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None
