"""Delete what `infra.gc.find` found while runs may be going on; a kill at any time leaves nothing half believed.

The roots are looked up again before deleting and every minute of it, and each artifact is looked at once more
when its turn comes: what was used, finished, touched or claimed since the plan was made is spared. Meanwhile we
hold the claim that a run takes before it makes an artifact, so that a run that wants it waits, then makes it anew.
What makes others believe goes first: the record, then all JSON (stages write it last), then the rest.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from infra import settings
from infra.gc.find import CLAIMS, expired_files, finished, live_claim, names_in_record, needed
from infra.gc.policy import Garbage, GarbagePlan, Policy
from infra.store import storage
from infra.store.artifacts import DELETED, RECORD
from infra.store.claims import Claims, LeaseLost
from infra.store.storage import Listed

_RECHECK_S = 60.0
_USED = "a run used it meanwhile"
_WHOLE = CLAIMS + "whole"  # the claim on making an artifact, see infra.store.claims
OnProgress = Callable[[int, int], None]  # done, of how many entries of the plan


@dataclass
class Deleted:
    """What went; and what was planned and spared, with the reason."""

    objects: int = 0
    bytes: int = 0
    spared: list[tuple[Garbage, str]] = field(default_factory=list)

    def counted(self, objects: Iterable[Listed]) -> Iterator[str]:
        """The names of objects that are about to go."""
        for one in objects:
            self.objects += 1
            self.bytes += one.size
            yield one.name


def delete(plan: GarbagePlan, policy: Policy, on_progress: OnProgress = lambda done, total: None) -> Deleted:
    """Delete the plan's garbage that still is garbage. Run again after a kill: that finishes what was begun."""
    deleted = Deleted()
    roots = _Roots(policy)
    with Claims(f"s3://{settings.bucket()}/") as claims:
        for done, one in enumerate(plan.garbage):
            on_progress(done, len(plan.garbage))
            if one.what == "local copy":
                shutil.rmtree(one.uri, ignore_errors=True)  # another process may do the same
            elif one.what == "expired":
                goes = expired_files(one.kind, policy, storage.now())
                storage.delete_all(one.uri, deleted.counted(filter(goes, storage.listed(one.uri))))
            elif reason := _artifact(one, policy, roots, claims, deleted):
                deleted.spared.append((one, reason))
    on_progress(len(plan.garbage), len(plan.garbage))
    return deleted


class _Roots:
    """What kept roots reach, as it was at most a minute ago."""

    def __init__(self, policy: Policy):
        self._policy = policy
        self._needed: set[str] = set()
        self._looked: float | None = None

    def reach(self, uri: str) -> bool:
        if self._looked is None or time.monotonic() - self._looked > _RECHECK_S:
            self._looked = time.monotonic()
            self._needed = needed(finished(self._policy), self._policy)
        return uri in self._needed


def _artifact(one: Garbage, policy: Policy, roots: _Roots, claims: Claims, deleted: Deleted) -> str | None:
    """Delete an artifact, a workspace, or what lies beside an artifact; the reason where it is spared."""
    now = storage.now()
    held = [replace(claim, name=CLAIMS + claim.name) for claim in storage.listed(one.uri + CLAIMS)]
    whole = one.uri.removeprefix(f"s3://{settings.bucket()}/") + _WHOLE
    dead = next((claim.etag for claim in held if claim.name == _WHOLE), None)
    if live_claim(one.uri, held, now) or not claims.take(whole, dead=dead):
        return "a run is at work on it"
    try:
        before = now - policy.grace_s
        reason, seen = _changed(one, roots, now, before)
        if reason:
            return reason
        kept = {_WHOLE} if one.what == "unfinished" else {RECORD, _WHOLE}
        if one.what == "leftovers":
            kept |= names_in_record(one.uri) or set()
        elif one.what == "unreachable":
            claims.check(whole)
            # marked under the condition that nobody has written it since we looked: to delete there is none
            if not storage.put(one.uri + RECORD, DELETED, only_if_match=seen):
                return _USED
            storage.delete(one.uri + RECORD)
            deleted.objects += 1
        for suffix in (".json", ""):
            objects = (
                found
                for found in storage.listed(one.uri)
                if found.name not in kept and found.modified <= before and found.name.endswith(suffix)
            )
            storage.delete_all(one.uri, deleted.counted(_while_ours(objects, claims, whole)))
    except LeaseLost:
        return "a run took it over meanwhile"
    finally:
        claims.release(whole)
    return None


def _while_ours(objects: Iterable[Listed], claims: Claims, whole: str) -> Iterator[Listed]:
    for one in objects:
        claims.check(whole)
        yield one


def _changed(one: Garbage, roots: _Roots, now: float, before: float) -> tuple[str | None, str | None]:
    """Why it is no garbage any more, None where it still is; and the tag of its record, where it has one."""
    record = storage.get_with_age(one.uri + RECORD)
    if record is not None and record[0] == DELETED:
        record = None
    seen = record and record[1]
    if one.what == "unfinished":
        if record is not None:
            return "a run finished it meanwhile", seen
        objects = storage.listed(one.uri)
        if any(found.modified > before and not found.name.startswith(CLAIMS) for found in objects):
            return "a run touched it meanwhile", seen
    elif record is None:
        return "its record is gone", seen
    elif one.what == "unreachable":
        _data, _etag, age_s = record
        if age_s < now - before:
            return _USED, seen
        if roots.reach(one.uri):
            return "a kept artifact refers to it now", seen
    return None, seen
