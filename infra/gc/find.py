"""What in the bucket nobody needs any more: found by following the records from the reports that are kept.

A record names what its artifact was made from: inputs by address, models by the digest of their artifact. What
can be reached from a kept root is kept; `needed` says which are the roots. An artifact's age is the time since
a run made it or found it again (`Workspace.find` renews the record's time), told by the storage's clock alone.

Only what is ours is ever garbage: artifacts and workspaces of the kinds given, and files that expire by name. A
kind that this version does not know is a root, so that an old `gc` does no harm to what a newer version made.
`infra.gc.delete` deletes.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from pydantic import ValidationError

from infra import settings
from infra.errors import ConfigurationError
from infra.gc.policy import DAY_S, FOLDERS_NAMED, Garbage, GarbagePlan, MadeArtifact, Policy, Tally, Total, What
from infra.store import storage
from infra.store.artifacts import DELETED, RECORD, Record
from infra.store.claims import owner_may_be_alive
from infra.store.storage import Listed

CLAIMS = "claims/"
EXPIRING = {
    "answers": re.compile(r"[0-9a-f]{32}\.parquet"),  # were paid for: only where a person asks for it
    "batches": re.compile(r"[0-9a-f]{32}\.json"),  # where more such answers are waited for
    "dispatched": re.compile(r"[0-9a-f-]{36}\.(json|claim)"),
}
_FINGERPRINT = re.compile(r"[0-9a-f]{32}")
_MODEL = re.compile(r"artifact:([0-9a-f]{64})")
_LOG = "log.txt"
_AT_ONCE = 8
_DISPATCHED_DAYS = 1.0


def plan(policy: Policy) -> GarbagePlan:
    """Look at the bucket and the local cache; nothing is changed.

    Memory grows with the number of artifacts and not of objects. Raises ConfigurationError where a record cannot
    be read (what it refers to would be unknown), or where `policy.keep` names no finished artifact.
    """
    now = storage.now()
    made = finished(policy)
    keep = needed(made, policy)
    found = GarbagePlan()
    for kind in policy.kinds:
        for uri, objects in _by_artifact(kind):
            _judge(found, policy, now, uri, kind, made.get(uri), uri in keep, objects)
    for folder in EXPIRING:
        _expired(found, policy, now, folder)
    going = {one.uri for one in found.garbage if one.what == "unreachable"}
    staying = {one.digest for one in made.values() if one.uri not in going}
    found.garbage.extend(_local_copies(staying, policy.grace_s))
    return found


def finished(policy: Policy) -> dict[str, MadeArtifact]:
    """Every finished artifact of the bucket, by address."""
    bucket = f"s3://{settings.bucket()}/"
    kinds = [kind for kind in storage.folders(bucket) if kind not in EXPIRING]
    places = ((kind, name) for kind in kinds for name in storage.folders(f"{bucket}{kind}/"))
    ours = ((kind, name) for kind, name in places if _FINGERPRINT.fullmatch(name))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        read = pool.map(lambda place: _read(place[0], place[1], policy), ours)
        return {one.uri: one for one in read if one is not None}


def needed(made: Mapping[str, MadeArtifact], policy: Policy) -> set[str]:
    """Addresses of all artifacts that a kept root reaches, the roots with them.

    Roots are the reports (and other `policy.roots`) used within `keep_days` and the `keep_last` newest of each
    kind, what `keep` names, what was used within the grace age, and whatever is of a kind unknown here.
    """
    for uri in policy.keep:
        if uri not in made:
            raise ConfigurationError(f"--keep: there is no finished artifact at {uri}")
    reached = set(policy.keep)
    for kind in policy.roots:
        of_kind = sorted((one for one in made.values() if one.kind == kind), key=lambda one: (one.age_s, one.uri))
        reached |= {one.uri for one in of_kind[: policy.keep_last]}
        reached |= {one.uri for one in of_kind if one.age_s < policy.keep_days * DAY_S}
    reached |= {one.uri for one in made.values() if one.age_s < policy.grace_s or one.kind not in policy.kinds}
    with_digest: dict[str, set[str]] = {}
    for one in made.values():
        with_digest.setdefault(one.digest, set()).add(one.uri)
    ahead = list(reached)
    while ahead:
        links = made[ahead.pop()].links
        targets = {link for link in links if link in made}.union(*(with_digest.get(link, set()) for link in links))
        ahead.extend(targets - reached)
        reached |= targets
    return reached


def tally(objects: Iterable[Listed], before: float, listed: Collection[str] | None) -> Tally:
    """Add up one artifact's objects. `listed` are the names in its record, where what lies beside them matters."""
    seen = Tally()
    for one in objects:
        seen.objects += 1
        seen.bytes += one.size
        if one.name.startswith(CLAIMS):
            seen.claims.append(one)
        else:
            seen.touched = max(seen.touched, one.modified)
        if one.name == RECORD:
            seen.finished = one.size > len(DELETED)
        elif listed is not None and one.name not in listed and one.modified <= before:
            seen.unlisted += 1
            seen.unlisted_bytes += one.size
            seen.unlisted_newest = max(seen.unlisted_newest, one.modified)
            folder, inside, _ = one.name.partition("/")
            seen.unlisted_in.add(folder + inside if inside else "files")
            if len(seen.unlisted_in) > FOLDERS_NAMED:
                seen.unlisted_in.remove(max(seen.unlisted_in))
                seen.unlisted_more = True
    if seen.objects == len(seen.claims):
        seen.touched = max((one.modified for one in seen.claims), default=0.0)
    return seen


def live_claim(uri: str, claims: Iterable[Listed], now: float) -> bool:
    """Whether a run may be at work on the artifact."""
    held = ((one, storage.get(uri + one.name)) for one in claims)
    return any(data is not None and owner_may_be_alive(data, now - one.modified) for one, data in held)


def names_in_record(uri: str) -> set[str] | None:
    """What belongs to an artifact: the files that its record lists, and its log, which the UI links to.

    None where there is no record.
    """
    data = storage.get(uri + RECORD)
    return None if data is None or data == DELETED else {_LOG} | {entry.name for entry in _parsed(uri, data).files}


def expired_files(folder: str, policy: Policy, now: float) -> Callable[[Listed], bool]:
    """Whether an object of an expiring folder goes: ours by its name, and older than the policy's limit."""
    # what a dispatched stage answered, and its claim while it lives, may be waited for whatever the policy
    days = policy.answers_days if folder in ("answers", "batches") else max(policy.grace_days, _DISPATCHED_DAYS)
    before = -math.inf if days is None else now - days * DAY_S
    return lambda one: bool(EXPIRING[folder].fullmatch(one.name)) and one.modified <= before


def _by_artifact(kind: str) -> Iterator[tuple[str, Iterator[Listed]]]:
    """The objects of each artifact of a kind, named from the artifact's address on, as the listing passes by."""
    place = f"s3://{settings.bucket()}/{kind}/"
    inside = (one for one in storage.listed(place) if "/" in one.name)
    for name, objects in itertools.groupby(inside, key=lambda one: one.name.partition("/")[0]):
        if _FINGERPRINT.fullmatch(name):
            cut = len(name) + 1
            yield f"{place}{name}/", (Listed(o.name[cut:], o.size, o.modified, o.etag) for o in objects)


def _judge(
    found: GarbagePlan,
    policy: Policy,
    now: float,
    uri: str,
    kind: str,
    made: MadeArtifact | None,
    keep: bool,
    objects: Iterator[Listed],
) -> None:
    """Put one artifact or workspace into the plan."""
    listed = names_in_record(uri) if keep else None
    seen = tally(objects, now - policy.grace_s, listed)
    idle_s = now - seen.touched
    unreachable = made is not None and seen.finished and not keep
    unfinished = not seen.finished and idle_s >= policy.grace_s
    if not (unreachable or unfinished or seen.unlisted) or live_claim(uri, seen.claims, now):
        found.keeps(kind, int(seen.finished), seen.objects, seen.bytes)
    elif unreachable or unfinished:
        what: What = "unreachable" if unreachable else "unfinished"
        age_s = made.age_s if unreachable and made else idle_s
        found.garbage.append(Garbage(what, kind, uri, seen.objects, seen.bytes, age_s))
    else:
        found.keeps(kind, 1, seen.objects - seen.unlisted, seen.bytes - seen.unlisted_bytes)
        age_s, of = (
            now - seen.unlisted_newest,
            " and ".join([*sorted(seen.unlisted_in), *["others"] * seen.unlisted_more]),
        )
        found.garbage.append(Garbage("leftovers", kind, uri, seen.unlisted, seen.unlisted_bytes, age_s, of))


def _expired(found: GarbagePlan, policy: Policy, now: float, folder: str) -> None:
    place = f"s3://{settings.bucket()}/{folder}/"
    goes = expired_files(folder, policy, now)
    stay, go, newest = Total(), Total(), 0.0
    for one in storage.listed(place):
        if EXPIRING[folder].fullmatch(one.name):
            total = go if goes(one) else stay
            total.objects += 1
            total.bytes += one.size
            newest = max(newest, one.modified if total is go else 0.0)
    if stay.objects:
        found.keeps(folder, 0, stay.objects, stay.bytes)
    if go.objects:
        found.garbage.append(Garbage("expired", folder, place, go.objects, go.bytes, now - newest))


def _read(kind: str, name: str, policy: Policy) -> MadeArtifact | None:
    uri = f"s3://{settings.bucket()}/{kind}/{name}/"
    stored = storage.get_with_age(uri + RECORD)
    if stored is None or stored[0] == DELETED:
        return None
    data, _etag, age_s = stored
    if kind in policy.kinds:
        record = _parsed(uri, data)
    else:
        try:
            record = Record.model_validate_json(data)
        except ValidationError:
            return None  # another program's file of this name
        if (record.kind, record.fingerprint) != (kind, name):
            return None
    models = _MODEL.findall(json.dumps(record.spec))
    links = frozenset([ref.uri for ref in record.inputs.values()] + models)
    return MadeArtifact(uri, kind, age_s, record.manifest_sha256(), links)


def _parsed(uri: str, data: bytes) -> Record:
    try:
        return Record.model_validate_json(data)
    except ValidationError as error:
        raise ConfigurationError(
            f"{uri}{RECORD} is no record, so what it refers to is unknown and nothing was deleted: "
            "delete it if the artifact is not needed, and run again"
        ) from error


def _local_copies(staying: set[str], grace_s: float) -> Iterator[Garbage]:
    """Copies of artifacts that are in the bucket no more, by this machine's clock."""
    clock = time.time()
    for folder in sorted((settings.cache_dir() / "artifacts").glob("*")):
        states = [path.stat() for path in folder.rglob("*") if path.is_file()]
        age_s = clock - max((state.st_mtime for state in states), default=folder.stat().st_mtime)
        if folder.is_dir() and folder.name not in staying and age_s >= grace_s:
            size = sum(state.st_size for state in states)
            yield Garbage("local copy", "local copies", str(folder), len(states), size, age_s)
