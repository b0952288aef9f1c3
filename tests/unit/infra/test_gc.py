"""What is garbage and what is not, over any graph of records; storage is a dictionary with a clock here."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from infra import settings
from infra.errors import ConfigurationError
from infra.gc import delete, find
from infra.gc.policy import DAY_S, Policy
from infra.store import storage
from infra.store.artifacts import DELETED, ArtifactRef, FileEntry, Record, Workspace, read_record
from infra.store.storage import Listed

KINDS = ("rows", "model", "report")
BUCKET = f"s3://{settings.bucket()}/"
NOW = 1e9


@dataclass
class Store:
    """Objects by address: bytes and when they were written."""

    objects: dict[str, tuple[bytes, float]] = field(default_factory=dict)

    def write(self, uri: str, data: bytes, age_days: float = 0.0) -> None:
        self.objects[uri] = (data, NOW - age_days * DAY_S)

    def put(
        self, uri: str, data: bytes, *, only_if_absent: bool = False, only_if_match: str | None = None
    ) -> str | None:
        if only_if_absent and uri in self.objects:
            return None
        if only_if_match and (uri not in self.objects or _tag(self.objects[uri][0]) != only_if_match):
            return None
        self.write(uri, data)
        return _tag(data)

    def now(self) -> float:
        return NOW

    def get(self, uri: str) -> bytes | None:
        return self.objects[uri][0] if uri in self.objects else None

    def get_with_etag(self, uri: str) -> tuple[bytes, str] | None:
        return (self.objects[uri][0], _tag(self.objects[uri][0])) if uri in self.objects else None

    def get_with_age(self, uri: str) -> tuple[bytes, str, float] | None:
        found = self.get_with_etag(uri)
        return (*found, NOW - self.objects[uri][1]) if found else None

    def listed(self, prefix: str) -> Iterator[Listed]:
        for uri in sorted(self.objects):
            if uri.startswith(prefix) and uri in self.objects:
                data, modified = self.objects[uri]
                yield Listed(uri.removeprefix(prefix), len(data), modified, _tag(data))

    def folders(self, prefix: str) -> Iterator[str]:
        names = (one.name for one in self.listed(prefix))
        yield from dict.fromkeys(name.partition("/")[0] for name in names if "/" in name)

    def delete(self, uri: str) -> None:
        self.objects.pop(uri, None)

    def keys(self, prefix: str) -> Iterator[str]:
        return (one.name for one in self.listed(prefix))

    def head(self, uri: str) -> None:
        return None

    def delete_all(self, prefix: str, names: Iterable[str]) -> int:
        return len([self.objects.pop(prefix + name) for name in list(names)])


def _tag(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Store:
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path))
    store = Store()
    names = ("put", "now", "get", "get_with_etag", "get_with_age", "listed", "folders", "delete", "delete_all")
    for name in (*names, "keys", "head"):
        monkeypatch.setattr(storage, name, functools.partial(_call, store, name))
    return store


def _call(store: Store, name: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(store, name)(*args, **kwargs)


def _artifact(
    store: Store,
    kind: str,
    name: int,
    age_days: float,
    inputs: Iterable[ArtifactRef] = (),
    models: Iterable[ArtifactRef] = (),
) -> ArtifactRef:
    """A finished artifact with one listed file and one leftover."""
    fingerprint = f"{name:032x}"
    uri = f"{BUCKET}{kind}/{fingerprint}/"
    data = str(name).encode()
    files = [FileEntry(name="data/0", size=len(data), sha256=hashlib.sha256(data).hexdigest())]
    record = Record(
        kind=kind,
        fingerprint=fingerprint,
        spec={"models": [{"of": f"artifact:{ref.sha256}"} for ref in models]},
        inputs={str(place): ref for place, ref in enumerate(inputs)},
        files=files,
    )
    store.write(uri + "data/0", data, age_days)
    store.write(uri + "checkpoint/latest.json", b"{}", age_days)
    store.write(uri + "record.json", record.model_dump_json().encode(), age_days)
    return ArtifactRef(kind=kind, uri=uri, sha256=record.manifest_sha256(), fingerprint=fingerprint)


def _claim(host: str) -> bytes:
    return json.dumps({"host": host, "pid": 1, "born": 0.0, "id": "", "beat": ""}).encode()


def _policy(**what: Any) -> Policy:
    return Policy(**{"kinds": KINDS, "roots": ("report",), "keep_last": 0, **what})


def _garbage(policy: Policy) -> dict[str, str]:
    return {one.uri: one.what for one in find.plan(policy).garbage if one.what != "leftovers"}


def test_what_lies_beside_a_finished_artifact_is_named(store: Store) -> None:
    ref = _artifact(store, "report", 1, age_days=12.0)
    store.write(ref.uri + "notes.txt", b"mine", age_days=20.0)
    (one,) = find.plan(_policy(keep_last=1)).garbage
    assert one.objects == 2
    assert one.why.startswith("checkpoint/ and files beside a finished artifact, which its record does not list; the ")
    assert one.why.endswith("the newest is 12.0 days old")
    for number in range(9):
        store.write(f"{ref.uri}{number}/x", b"mine", age_days=20.0)
    (one,) = find.plan(_policy(keep_last=1)).garbage
    assert one.why.startswith("0/ and 1/ and 2/ and others beside a finished artifact")


@dataclass(frozen=True)
class Node:
    kind: str
    age_days: float
    inputs: frozenset[int]
    models: frozenset[int]


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    nodes: list[Node] = []
    for number in range(draw(st.integers(1, 12))):
        earlier = st.frozensets(st.integers(0, number - 1), max_size=3) if number else st.just(frozenset())
        kind = draw(st.sampled_from([*KINDS, "of_a_newer_version"]))
        nodes.append(Node(kind, draw(st.integers(0, 60)), draw(earlier), draw(earlier)))
    return nodes


@given(graph=graphs(), keep_last=st.integers(0, 3), keep_days=st.integers(0, 60), grace_days=st.integers(0, 60))
@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_is_exactly_what_no_root_reaches_and_all_else_outlives_the_deletion(
    store: Store, graph: list[Node], keep_last: int, keep_days: int, grace_days: int
) -> None:
    store.objects.clear()
    refs: list[ArtifactRef] = []
    for number, node in enumerate(graph):
        inputs, models = [refs[i] for i in node.inputs], [refs[i] for i in node.models]
        refs.append(_artifact(store, node.kind, number, node.age_days, inputs, models))

    reports = [n for n, node in enumerate(graph) if node.kind == "report"]
    newest = sorted(reports, key=lambda n: (graph[n].age_days, n))[:keep_last]
    reached: set[int] = set()

    def reach(number: int) -> None:
        if number not in reached:
            reached.add(number)
            for other in graph[number].inputs | graph[number].models:
                reach(other)

    for number, node in enumerate(graph):
        recent = node.kind == "report" and node.age_days < keep_days
        if number in newest or recent or node.age_days < grace_days or node.kind not in KINDS:
            reach(number)

    policy = _policy(keep_last=keep_last, keep_days=keep_days, grace_days=grace_days)
    expected = {refs[n].uri for n in range(len(graph)) if n not in reached}
    found = find.plan(policy)
    assert {one.uri for one in found.garbage if one.what == "unreachable"} == expected
    assert not [one for one in found.garbage if one.what not in ("unreachable", "leftovers")]

    assert delete.delete(found, policy).spared == []
    left = {uri for uri in store.objects if uri.endswith(("/record.json", "/data/0"))}
    assert left == {refs[n].uri + name for n in reached for name in ("record.json", "data/0")}
    assert find.plan(policy).garbage == []


def test_old_reports_are_kept_while_they_are_among_the_newest_or_named(store: Store) -> None:
    rows = _artifact(store, "rows", 1, 90)
    old, older = (_artifact(store, "report", n, 50 + n, [rows]) for n in (2, 3))
    assert set(_garbage(_policy())) == {rows.uri, old.uri, older.uri}
    assert set(_garbage(_policy(keep_last=1))) == {older.uri}
    assert set(_garbage(_policy(keep=(older.uri,)))) == {old.uri}
    assert set(_garbage(_policy(keep_days=53))) == {older.uri}
    with pytest.raises(ConfigurationError, match=r"no finished artifact at s3://distilflow/rows/nothing/"):
        find.plan(_policy(keep=(f"{BUCKET}rows/nothing/",)))


def test_what_a_run_made_or_used_lately_keeps_what_it_was_made_from_also_the_model(store: Store) -> None:
    rows, model = _artifact(store, "rows", 1, 90), _artifact(store, "model", 2, 90)
    other = _artifact(store, "model", 3, 90)
    _artifact(store, "model", 4, 1, [rows], [model])
    assert set(_garbage(_policy())) == {other.uri}


def test_objects_of_others_are_never_garbage(store: Store) -> None:
    foreign = [
        "seeds.jsonl",
        f"datasets/{7:032x}/part-0",  # looks like a workspace, of a kind that is not ours
        f"datasets/{8:032x}/record.json",
        "rows/notes.txt",
        "rows/my-own-folder/x.parquet",
        f"rows/{9:032x}",  # an object, no folder
        "answers/notes.txt",
        "dispatched/notes.json",
    ]
    for name in foreign:
        store.write(BUCKET + name, b"{}", 900)
    assert find.plan(_policy(answers_days=0)).garbage == []


def test_an_unfinished_workspace_goes_when_it_is_untouched_and_unclaimed(store: Store) -> None:
    uri = f"{BUCKET}model/{1:032x}/"
    store.write(uri + "checkpoint/step-1/a", b"x", 20)
    assert _garbage(_policy()) == {uri: "unfinished"}
    store.write(uri + "claims/whole", _claim("elsewhere"), 9 / 1440)
    assert _garbage(_policy()) == {}
    store.write(uri + "claims/whole", _claim("elsewhere"), 11 / 1440)  # silent for too long
    assert _garbage(_policy()) == {uri: "unfinished"}
    store.write(uri + "checkpoint/step-2/a", b"x", 6.9)
    assert _garbage(_policy()) == {}


def test_paid_answers_go_only_when_that_is_asked(store: Store) -> None:
    store.write(f"{BUCKET}answers/{1:032x}.parquet", b"old", 400)
    store.write(f"{BUCKET}answers/{2:032x}.parquet", b"new", 40)
    store.write(f"{BUCKET}batches/{3:032x}.json", b"paid, and not read yet", 400)
    assert _garbage(_policy(grace_days=0, keep_days=0)) == {}
    policy = _policy(answers_days=100)
    assert [one.objects for one in find.plan(policy).garbage] == [1, 1]
    assert delete.delete(find.plan(policy), policy).objects == 2
    assert list(store.objects) == [f"{BUCKET}answers/{2:032x}.parquet"]


def test_small_results_of_dispatched_stages_go_after_the_grace_age(store: Store) -> None:
    store.write(f"{BUCKET}dispatched/0b7c4a52-0b7c-4a52-8b7c-0b7c4a520b7c.json", b"{}", 8)
    store.write(f"{BUCKET}dispatched/1b7c4a52-0b7c-4a52-8b7c-0b7c4a520b7c.json", b"{}", 6)
    store.write(f"{BUCKET}dispatched/2b7c4a52-0b7c-4a52-8b7c-0b7c4a520b7c.claim", b"{}", 8)
    store.write(f"{BUCKET}dispatched/3b7c4a52-0b7c-4a52-8b7c-0b7c4a520b7c.claim", b"{}", 0)
    [one] = find.plan(_policy()).garbage
    assert (one.what, one.objects) == ("expired", 2)
    [one] = find.plan(_policy(grace_days=0)).garbage
    assert one.objects == 3  # a run that lives keeps its claim


def test_a_record_that_cannot_be_read_stops_everything(store: Store) -> None:
    ref = _artifact(store, "report", 1, 90)
    store.write(ref.uri + "record.json", b"{", 90)
    with pytest.raises(ConfigurationError, match=rf"{ref.uri}record.json is no record"):
        find.plan(_policy())


def test_what_changed_since_the_plan_is_spared(store: Store) -> None:
    """Used, referred to by a record that appeared, finished, touched, claimed: each by a run that goes on meanwhile."""
    names = ("used", "referred", "gone")
    used, referred, gone = (_artifact(store, "rows", n, 90) for n, _ in enumerate(names))
    unfinished = {what: f"{BUCKET}model/{n:032x}/" for n, what in enumerate(("finished", "touched", "claimed"), 10)}
    for uri in unfinished.values():
        store.write(uri + "checkpoint/latest.json", b"{}", 90)
    planned = find.plan(_policy())
    assert len(planned.garbage) == 6

    store.write(used.uri + "record.json", store.objects[used.uri + "record.json"][0], 0)
    _artifact(store, "report", 20, 0, [referred])
    store.delete(gone.uri + "record.json")
    _artifact(store, "model", 10, 0)
    store.write(unfinished["touched"] + "checkpoint/step-9/a", b"x")
    store.write(unfinished["claimed"] + "claims/part-1", _claim("elsewhere"))
    before = set(store.objects)
    spared = {one.uri: reason for one, reason in delete.delete(planned, _policy()).spared}
    assert spared == {
        used.uri: "a run used it meanwhile",
        referred.uri: "a kept artifact refers to it now",
        gone.uri: "its record is gone",
        unfinished["finished"]: "a run finished it meanwhile",
        unfinished["touched"]: "a run touched it meanwhile",
        unfinished["claimed"]: "a run is at work on it",
    }
    assert set(store.objects) == before


def test_an_artifact_that_a_run_finds_in_the_moment_of_its_deletion_is_spared(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between gc's last look and the deletion: the run has written the record anew, and relies on the artifact."""
    ref = _artifact(store, "rows", 1, 90)
    planned, look = find.plan(_policy()), delete._changed

    def a_run_finds_it_after_the_look(*args: Any) -> Any:
        seen = look(*args)
        work = Workspace("rows", 1, {}, {})
        work.uri = ref.uri
        assert work.find() is not None
        return seen

    monkeypatch.setattr(delete, "_changed", a_run_finds_it_after_the_look)
    deleted = delete.delete(planned, _policy())
    assert [reason for _one, reason in deleted.spared] == ["a run used it meanwhile"]
    assert read_record(ref.uri) is not None
    assert ref.uri + "data/0" in store.objects


def test_a_deletion_that_was_killed_leaves_nothing_believed_and_nothing_in_the_way(store: Store) -> None:
    ref = _artifact(store, "rows", 1, 90)
    store.write(ref.uri + "record.json", DELETED, 90)  # killed after the mark
    work = Workspace("rows", 1, {}, {})
    work.uri = ref.uri
    assert work.find() is None
    assert read_record(ref.uri) is None
    assert _garbage(_policy()) == {ref.uri: "unfinished"}
    assert work.publish((), {}, {}).kind == "rows"
    assert read_record(ref.uri) is not None
    store.write(ref.uri + "record.json", DELETED, 90)
    delete.delete(find.plan(_policy()), _policy())
    assert not [uri for uri in store.objects if uri.startswith(ref.uri)]
