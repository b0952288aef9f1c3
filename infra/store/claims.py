"""Who works on which piece: leases in storage, so that any number of workers share a stage with no coordinator.

A claim is an object beside the pieces, written only where there is none, and renewed while its owner lives. It
is taken over where its owner is a dead process of this machine, or was seen not to renew for a while; the
watcher's own clock decides, never a comparison of two machines' clocks. Pieces are idempotent, so a claim saves
work and is not what keeps results right; where one does count (paying, deleting), `check_leases` comes before.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from infra import settings
from infra.errors import TransientError
from infra.store import storage
from infra.store.artifacts import ArtifactRef, Workspace
from infra.store.birth import place, started

RUNS = "dispatched/"  # what runs of flows leave in the bucket: a claim while they live, their result or error
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


class LeaseLost(TransientError):
    """Another has taken over what this worker was at: it must not publish, pay or delete under that claim."""


def owner_may_be_alive(claim: bytes, silent_s: float) -> bool:
    """Whether the owner of a claim that was renewed `silent_s` ago by the storage's clock may still be at work.

    A process that we can see is looked up; another machine's is given ten minutes, since there is no hurry.
    """
    owner: dict[str, Any] = json.loads(claim)
    if owner.get("place") == place():
        return started(owner["pid"]) == owner["started"]
    return silent_s < _SURELY_DEAD_S


def claim_of_run(run_id: str) -> str:
    """The claim that a flow's run holds while it lives, below `RUNS`."""
    return f"{run_id}.claim"


def run_is_dead(run_id: str) -> bool:
    """Whether a flow's run has left its claim behind, whatever Prefect shows; False where nothing is known of it."""
    found = storage.get_with_age(f"s3://{settings.bucket()}/{RUNS}{claim_of_run(run_id)}")
    return found is not None and not owner_may_be_alive(found[0], found[2])


class Claims:
    """The claims of one worker under an s3:// prefix; use it in a `with`, which gives back what is still held.

    A claim is renewed and given back only while it is what this worker wrote last. One that was silent for too long
    (stopped, swapped out, cut off) may find it taken over: `check` raises `LeaseLost` then.
    """

    def __init__(self, prefix: str, *, stale_s: float = _STALE_S):
        self._prefix = prefix
        self._stale_s = stale_s
        pid = os.getpid()
        self._me = {"place": place(), "pid": pid, "started": started(pid), "id": uuid.uuid4().hex}
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[str, float, float]] = {}  # claim → version, since when, when we last looked
        self._over = threading.Event()
        self._renewer = threading.Thread(target=self._renew_all, daemon=True)

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
        began = _now()
        if tag := storage.put(uri, self._beat(), only_if_absent=True):
            return self._hold(name, tag, began)
        found = storage.get_with_etag(uri)
        if found is None:
            return False  # released at this moment: the next round takes it
        data, etag = found
        if json.loads(data)["id"] == self._me["id"]:  # a write of ours whose answer was lost on the way
            return self._hold(name, etag, began)
        began = _now()
        if (etag == dead or self._is_stale(name, data, etag)) and (
            tag := storage.put(uri, self._beat(), only_if_match=etag)
        ):
            return self._hold(name, tag, began)
        return False

    def seize(self, name: str) -> None:
        """Take the piece from whoever had it: for an owner who knows that the last one is gone."""
        began = _now()
        self._hold(name, storage.put(self._prefix + name, self._beat()) or "", began)

    def release(self, name: str) -> None:
        """Give a piece back where it still is ours; finished pieces are known by their results, not by claims."""
        with self._lock:
            held = self._held.pop(name, None)
        if held is None:
            return
        with held.lock:
            found = storage.get_with_etag(self._prefix + name)
            if found is not None and json.loads(found[0])["id"] == self._me["id"]:
                storage.delete(self._prefix + name)

    def check(self, name: str) -> None:
        """Raise LeaseLost where the piece is not ours any more. Asks the store only where the last renewal is old."""
        held = self._held.get(name)
        if held is not None and _now() - held.renewed > self._stale_s / 2:
            self._renew(name, held)
            held = self._held.get(name)
        if held is None:
            raise LeaseLost(f"another worker has taken over {self._prefix}{name}, after this one was silent for long")

    def abandoned(self, name: str) -> bool:
        """Whether the piece's owner is gone and has not given it back. Ask again: a silent one takes time to tell."""
        found = storage.get_with_etag(self._prefix + name)
        return found is not None and self._is_stale(name, *found)

    def _hold(self, name: str, tag: str, began: float) -> bool:
        with self._lock:
            self._held[name] = _Held(tag, began)
        return True

    def _beat(self) -> bytes:
        return json.dumps({**self._me, "beat": uuid.uuid4().hex}).encode()

    def _is_stale(self, name: str, data: bytes, etag: str) -> bool:
        owner: dict[str, Any] = json.loads(data)
        if owner.get("place") == self._me["place"] and started(owner["pid"]) != owner["started"]:
            return True
        now = time.monotonic()
        seen, since, looked = self._seen.get(name, ("", now, now))
        if seen != etag or now - looked > self._stale_s / 2:  # while storage was away nobody could renew
            since = now
        self._seen[name] = (etag, since, now)
        return now - since > self._stale_s

    def _renew_all(self) -> None:
        while not self._over.wait(min(_RENEW_S, self._stale_s / 4)):
            with self._lock:
                held = list(self._held.items())
            for name, one in held:
                try:
                    self._renew(name, one)
                except TransientError:  # storage is away for a while: the claim goes stale or does not
                    break

    def _renew(self, name: str, held: _Held) -> None:
        """Write the claim anew over our own last write, or drop it where that is not what is there."""
        uri = self._prefix + name
        with held.lock:
            if self._held.get(name) is not held:
                return
            began = _now()
            tag = storage.put(uri, self._beat(), only_if_match=held.tag)
            if tag is None and (found := storage.get_with_etag(uri)) is not None:  # perhaps ours, its answer lost
                tag = found[1] if json.loads(found[0])["id"] == self._me["id"] else None
            if tag is not None:
                held.tag, held.renewed = tag, began
                return
        with self._lock:
            if self._held.get(name) is held:
                del self._held[name]


@dataclass
class _Held:
    """A claim of ours: the tag of our last write, and when that began."""

    tag: str
    renewed: float
    lock: threading.Lock = field(default_factory=threading.Lock)


_working_under: contextvars.ContextVar[tuple[tuple[Claims, str], ...]] = contextvars.ContextVar("leases", default=())


@contextlib.contextmanager
def working_under(claims: Claims, *names: str) -> Iterator[None]:
    """What runs in the `with` is done under these claims: `check_leases` in it looks after them."""
    token = _working_under.set(_working_under.get() + tuple((claims, name) for name in names))
    try:
        yield
    finally:
        _working_under.reset(token)


def check_leases() -> None:
    """Raise LeaseLost where this is done under a claim that another took over. Cheap: call it before what counts."""
    for claims, name in _working_under.get():
        claims.check(name)


def _now() -> float:
    """Seconds that count on while the machine is asleep, where the system has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


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
    has_said, pauses = False, Pauses()
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
                with working_under(claims, *map(_claim, to_make.values())):
                    found |= make(to_make)
            for work in mine.values():
                claims.release(_claim(work))
            if not mine:
                if not has_said:
                    waiting(f"another run is at {', '.join(missing)}: its result is waited for")
                    has_said = True
                time.sleep(pauses.next())


def _claim(work: Workspace) -> str:
    return f"{work.kind}/{work.fingerprint}/{_WHOLE}"
