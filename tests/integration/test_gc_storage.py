"""Garbage on a real S3 server: what is reached stays, the rest goes, and a kill leaves nothing half believed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.gc import delete, find
from infra.gc.policy import DAY_S, GarbagePlan, Policy
from infra.store import storage
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace, read_record
from infra.store.claims import Claims

pytestmark = pytest.mark.usefixtures("bucket")
POLICY = Policy(kinds=("rows", "model", "report"), roots=("report",), keep_last=1)


def _later(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """The storage's clock goes on by so many days."""
    real = storage._date
    monkeypatch.setattr(storage, "_date", lambda response: real(response) + days * DAY_S)


def _made(kind: str, number: int, *inputs: ArtifactRef) -> ArtifactRef:
    work = Workspace(kind, 1, {"number": number}, {str(place): ref for place, ref in enumerate(inputs)})
    work.put("data/a", b"alpha")
    work.put("data/b", b"beta")
    work.put("checkpoint/latest.json", b"{}")
    work.put("log.txt", b"it went well")
    return work.publish(("data/",), {}, {})


def _found(found: GarbagePlan) -> dict[str, str]:
    return {one.uri: one.what for one in found.garbage if one.what != "local copy"}


def _everything(bucket: str) -> set[str]:
    return set(storage.keys(f"s3://{bucket}/"))


def test_what_a_kept_report_reaches_stays_and_the_rest_is_listed_then_deleted(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = _made("rows", 1)
    report = _made("report", 1, _made("model", 1, rows))
    lost = [_made("rows", 2), _made("model", 2, _made("rows", 3))]
    half = Workspace("model", 1, {"number": 4}, {"rows": rows})
    half.put("checkpoint/latest.json", b"{}")
    foreign = {"seeds.jsonl", "datasets/0123456789abcdef0123456789abcdef/x", f"answers/{'0' * 32}.parquet"}
    for name in foreign:
        storage.put(f"s3://{bucket}/{name}", b"x")
    assert find.plan(POLICY).garbage == []  # all within the grace age

    _later(monkeypatch, 8)
    before = _everything(bucket)
    planned = find.plan(POLICY)
    gone = {ref.uri for ref in lost} | {ref.uri for one in lost for ref in _inputs(one)} | {half.uri}
    assert {uri for uri, what in _found(planned).items() if what != "leftovers"} == gone
    assert _everything(bucket) == before

    deleted = delete.delete(planned, POLICY)
    assert deleted.spared == []
    left = _everything(bucket)
    assert deleted.objects == len(before) - len(left)
    assert foreign <= left
    assert not [name for name in left if any(f"s3://{bucket}/{name}".startswith(uri) for uri in gone)]
    assert not [name for name in left if "checkpoint" in name or "claims" in name]
    for ref in (report, *_inputs(report), rows):
        assert ArtifactReader(ref).read("data/a") == b"alpha"
        assert storage.get(ref.uri + "log.txt") == b"it went well"
    assert _found(find.plan(POLICY)) == {}


def _inputs(ref: ArtifactRef) -> list[ArtifactRef]:
    return list(ArtifactReader(ref).record.inputs.values())


def test_an_artifact_that_a_run_finds_again_is_as_good_as_new(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used, unused = _made("rows", 1), _made("rows", 2)
    time.sleep(4)
    clock = storage._date
    monkeypatch.setattr("infra.store.artifacts._USED_AGAIN_S", 2.0)
    record = read_record(used.uri)
    found = Workspace("rows", 1, {"number": 1}, {}).find()
    assert found is not None
    assert found.uri == used.uri
    again = read_record(used.uri)
    assert again is not None
    assert again.used_at, "its bytes have to change, or a deletion under way does not see that it is used"
    assert again.model_copy(update={"used_at": ""}) == record
    monkeypatch.setattr(storage, "_date", lambda response: clock(response) + 2.0)
    policy = Policy(kinds=("rows",), roots=(), grace_days=4.5 / DAY_S)
    assert _found(find.plan(policy))[unused.uri] == "unreachable"
    assert _found(find.plan(policy)).get(used.uri) != "unreachable"


def test_an_artifact_that_goes_while_a_run_looks_is_made_anew(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = _made("rows", 1)
    _later(monkeypatch, 2)
    real = storage.get_with_age

    def then_it_is_deleted(uri: str) -> tuple[bytes, str, float] | None:
        found = real(uri)
        storage.delete(uri)
        return found

    monkeypatch.setattr(storage, "get_with_age", then_it_is_deleted)
    assert Workspace("rows", 1, {"number": 1}, {}).find() is None
    assert storage.head(ref.uri + "record.json") is None


def test_a_live_claim_protects_a_workspace_and_a_dead_one_does_not(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Workspace("model", 1, {}, {})
    work.put("checkpoint/step-1/a", b"x")
    _later(monkeypatch, 8)
    planned = find.plan(POLICY)
    with Claims(work.uri + "claims/") as claims:
        assert claims.take("part-1")
        assert _found(find.plan(POLICY)) == {}
        [(_, reason)] = delete.delete(planned, POLICY).spared
        assert reason == "a run is at work on it"
    dead = f"from infra.store.claims import Claims; Claims({work.uri!r} + 'claims/').take('whole')"
    subprocess.run([sys.executable, "-c", dead], check=True)
    assert work.has("claims/whole")
    assert _found(find.plan(POLICY)) == {work.uri: "unfinished"}
    assert delete.delete(find.plan(POLICY), POLICY).spared == []
    assert list(storage.keys(work.uri)) == []


_KILLED = """
import os, signal, sys
from infra.gc import delete as deletion, find
from infra.store import storage
from infra.gc.policy import DAY_S
from tests.integration.test_gc_storage import POLICY

real, delete = storage._date, storage.delete_all
storage._date = lambda response: real(response) + 8 * DAY_S
storage._DELETED_AT_ONCE = 3
real_client = storage.client
left = int(sys.argv[1])

class Counting:
    def __getattr__(self, name):
        return getattr(real_client(), name)

    def delete_objects(self, **what):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return real_client().delete_objects(**what)

storage.client = Counting
deletion.delete(find.plan(POLICY), POLICY)
"""


@pytest.mark.parametrize("requests", [0, 1, 2, 3])
def test_killed_in_mid_deletion_it_leaves_nothing_half_believed_and_the_next_one_finishes(
    bucket: str, monkeypatch: pytest.MonkeyPatch, requests: int
) -> None:
    work = Workspace("model", 1, {}, {})
    for number in range(8):
        work.put(f"data/{number}", b"x")
    for name in ("checkpoint/latest.json", "checkpoint/step-1/a", "written/00000-rows", "written/00000.json"):
        work.put(name, b"{}")
    work.publish(("data/",), {}, {})
    root = str(Path(__file__).parents[2])
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(requests)], cwd=root, env={**os.environ, "PYTHONPATH": root}
    )
    assert killed.returncode == -signal.SIGKILL
    assert work.find() is None  # a run would make it anew
    if requests > 0:
        # neither a checkpoint nor a batch is believed that may not be whole
        assert not work.has("checkpoint/latest.json")
        assert not work.has("written/00000.json")
    assert work.has("data/7")

    _later(monkeypatch, 8)
    assert _found(find.plan(POLICY)) == {work.uri: "unfinished"}
    assert delete.delete(find.plan(POLICY), POLICY).spared == []
    assert list(storage.keys(work.uri)) == []


def test_more_objects_than_one_request_takes_go_and_are_listed(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Workspace("model", 1, {}, {})
    for number in range(1_100):
        work.put(f"written/{number:05}", b"x")
    _later(monkeypatch, 8)
    [one] = find.plan(POLICY).garbage
    assert (one.objects, one.bytes) == (1_100, 1_100)
    assert delete.delete(find.plan(POLICY), POLICY).objects == 1_100
    assert list(storage.keys(f"s3://{bucket}/")) == []


def test_local_copies_of_what_is_gone_go_too(bucket: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILFLOW_HOME", str(home / bucket))
    report, lost = _made("report", 1), Workspace("rows", 1, {}, {})
    lost.put("data/a", b"gamma")
    folders = [ArtifactReader(ref).folder("data/") for ref in (report, lost.publish(("data/",), {}, {}))]
    for path in (home / bucket).rglob("*"):
        os.utime(path, (0, time.time() - 8 * DAY_S))
    storage.delete(lost.uri + "record.json")
    found = find.plan(POLICY)
    assert [(one.what, one.objects, one.bytes) for one in found.garbage] == [("local copy", 1, 5)]
    delete.delete(found, POLICY)
    assert [folder.exists() for folder in folders] == [True, False]


def test_the_servers_clock_tells_ages(bucket: str) -> None:
    storage.put(f"s3://{bucket}/x", b"x")
    found = storage.get_with_age(f"s3://{bucket}/x")
    assert found is not None
    assert found[0] == b"x"
    assert -2 < found[2] < 30
    [listed] = storage.listed(f"s3://{bucket}/")
    assert abs(storage.now() - listed.modified) < 30
    assert listed.etag == found[1]
