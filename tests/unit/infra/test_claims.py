"""Claims: of any number of workers one has a piece, and the pieces of the dead are taken over.

Storage is a dictionary here; that a real one keeps its conditions is tested where a real one runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import psutil
import pytest

from infra.errors import TransientError
from infra.store import claims as module
from infra.store.birth import place, started
from infra.store.claims import Claims, LeaseLost, Pauses, check_leases, working_under
from tests.support.wait import wait_for


class Store:
    """Conditional writes, as S3 has them."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, str]] = {}
        self.away = False
        self.answers_are_lost = False  # a write is repeated, and finds itself done
        self._lock = threading.Lock()
        self._versions = 0

    def put(
        self, uri: str, data: bytes, *, only_if_absent: bool = False, only_if_match: str | None = None
    ) -> str | None:
        with self._lock:
            if self.away:
                raise TransientError("storage is away")
            found = self.objects.get(uri)
            if (only_if_absent and found) or (only_if_match and (found is None or found[1] != only_if_match)):
                return None
            self._versions += 1
            self.objects[uri] = (data, str(self._versions))
            return None if self.answers_are_lost else str(self._versions)

    def get_with_etag(self, uri: str) -> tuple[bytes, str] | None:
        return self.objects.get(uri)

    def delete(self, uri: str) -> None:
        self.objects.pop(uri, None)

    def owner(self, uri: str) -> dict[str, Any]:
        return json.loads(self.objects[uri][0])


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    for name in ("put", "get_with_etag", "delete"):
        monkeypatch.setattr(module.storage, name, getattr(store, name))
    return store


def _claim_of(store: Store, **changes: Any) -> None:
    """A claim on `p` that somebody left."""
    mine = {"place": place(), "pid": os.getpid(), "started": "1", "id": "x", "beat": "y"}
    store.put("s3://b/p", json.dumps({**mine, **changes}).encode())


def _pid_of_the_dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_piece_has_one_owner_until_it_is_given_back(store: Store) -> None:
    with Claims("s3://b/") as one, Claims("s3://b/") as other:
        assert one.take("p")
        assert not other.take("p")
        assert other.take("q")
        one.release("p")
        assert other.take("p")


def test_of_many_that_want_a_piece_at_once_one_gets_it(store: Store) -> None:
    workers = [Claims("s3://b/") for _ in range(8)]
    start = threading.Barrier(8)
    got: list[bool] = []

    def want(worker: Claims) -> None:
        start.wait()
        got.append(worker.take("p"))

    threads = [threading.Thread(target=want, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]


def test_leaving_gives_back_what_is_held(store: Store) -> None:
    with Claims("s3://b/") as one:
        assert one.take("p")
        assert one.take("q")
        one.release("q")
        assert list(store.objects) == ["s3://b/p"]
    assert store.objects == {}


def test_the_claim_of_a_dead_process_of_this_machine_is_taken_over_at_once(store: Store) -> None:
    _claim_of(store, pid=_pid_of_the_dead())
    with Claims("s3://b/", stale_s=1_000) as one:
        assert one.take("p")
        assert store.owner("s3://b/p")["pid"] == os.getpid()


def test_a_process_that_got_the_dead_ones_number_is_not_taken_for_it(store: Store) -> None:
    _claim_of(store, pid=os.getpid(), started="1")
    with Claims("s3://b/", stale_s=1_000) as one:
        assert one.take("p")


def test_of_many_that_take_over_one_wins(store: Store) -> None:
    _claim_of(store, pid=_pid_of_the_dead())
    real = store.get_with_etag
    start = threading.Barrier(4)

    def all_look_before_one_writes(uri: str) -> tuple[bytes, str] | None:
        found = real(uri)
        start.wait()
        return found

    module.storage.get_with_etag = all_look_before_one_writes  # type: ignore[assignment]  # undone by the fixture
    got: list[bool] = []
    threads = [threading.Thread(target=lambda: got.append(Claims("s3://b/").take("p"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 3 + [True]


def test_a_silent_claim_of_another_machine_goes_stale_by_our_clock_alone(store: Store) -> None:
    _claim_of(store, place="elsewhere", pid=1, started="1e6")
    with Claims("s3://b/", stale_s=0.3) as one:
        seen = time.monotonic()
        assert not one.take("p")  # seen for the first time, however old it may be
        wait_for(lambda: one.take("p"))
        assert time.monotonic() - seen > 0.3


def test_a_claim_known_to_be_a_dead_owners_is_taken_over_unless_it_was_renewed_since(store: Store) -> None:
    _claim_of(store, place="elsewhere")
    _data, dead = store.objects["s3://b/p"]
    with Claims("s3://b/", stale_s=1_000) as one:
        _claim_of(store, place="elsewhere", beat="it lives")
        assert not one.take("p", dead=dead)
        assert one.take("p", dead=store.objects["s3://b/p"][1])


def test_a_claim_that_is_renewed_is_never_taken_over(store: Store) -> None:
    with Claims("s3://b/", stale_s=1_000) as patient:
        _claim_of(store, place="elsewhere", beat="0")
        for beat in range(1, 8):
            assert not patient.take("p")
            patient._seen = {name: (etag, since - 2_000, at) for name, (etag, since, at) in patient._seen.items()}
            _claim_of(store, place="elsewhere", beat=str(beat))  # it lives
        patient.take("p")
        patient._seen = {name: (etag, since - 2_000, at) for name, (etag, since, at) in patient._seen.items()}
        assert patient.take("p")


def test_what_is_held_is_renewed_also_after_storage_was_away(store: Store) -> None:
    with Claims("s3://b/", stale_s=0.2) as one:
        assert one.take("p")
        first = store.owner("s3://b/p")
        wait_for(lambda: store.owner("s3://b/p")["beat"] != first["beat"])
        store.away = True
        time.sleep(0.3)
        store.away = False
        before = store.owner("s3://b/p")
        wait_for(lambda: store.owner("s3://b/p")["beat"] != before["beat"])
        assert store.owner("s3://b/p")["id"] == first["id"]


def test_silence_while_nobody_could_look_does_not_count(store: Store) -> None:
    """Storage was away for a while: whoever holds the piece could not renew, and is not dead."""
    with Claims("s3://b/", stale_s=1_000) as patient:
        _claim_of(store, place="elsewhere", beat="0")
        assert not patient.take("p")
        patient._seen = {name: (etag, since - 2_000, at - 2_000) for name, (etag, since, at) in patient._seen.items()}
        assert not patient.take("p")
        patient._seen = {name: (etag, since - 2_000, at) for name, (etag, since, at) in patient._seen.items()}
        assert patient.take("p"), "silent while we looked"


def test_an_abandoned_piece_is_told_from_a_held_and_a_finished_one(store: Store) -> None:
    watcher = Claims("s3://b/", stale_s=1_000)
    assert not watcher.abandoned("p")
    with Claims("s3://b/") as owner:
        owner.take("p")
        assert not watcher.abandoned("p")
    assert not watcher.abandoned("p")
    _claim_of(store, pid=2**22 + 1)
    assert watcher.abandoned("p")


def test_a_successor_seizes_what_its_dead_predecessor_held_elsewhere(store: Store) -> None:
    _claim_of(store, place="elsewhere", beat="0")
    with Claims("s3://b/") as successor:
        assert not successor.take("p")
        successor.seize("p")
        assert store.owner("s3://b/p")["place"] == place()
        assert not Claims("s3://b/").abandoned("p")
    assert "s3://b/p" not in store.objects


@pytest.fixture
def paused(store: Store) -> Claims:
    """Holds `p`, and has been silent ever since, as a process that was stopped."""
    owner = Claims("s3://b/", stale_s=0.2)  # not entered: nothing renews
    assert owner.take("p")
    return owner


def test_an_owner_that_wakes_over_its_successor_neither_renews_nor_releases_it(store: Store, paused: Claims) -> None:
    with Claims("s3://b/", stale_s=0.2) as successor:
        store.objects["s3://b/p"] = (json.dumps({**store.owner("s3://b/p"), "place": "elsewhere"}).encode(), "other")
        wait_for(lambda: successor.take("p"))
        successors = store.owner("s3://b/p")["id"]
        with (
            working_under(paused, "p"),
            pytest.raises(LeaseLost, match="taken over s3://b/p, after this one"),
        ):
            check_leases()
        paused.release("p")
        assert store.owner("s3://b/p")["id"] == successors
        assert not Claims("s3://b/").take("p"), "a third one comes in"
        with working_under(successor, "p"):
            check_leases()


def test_a_claim_whose_successor_is_done_is_lost_too(store: Store, paused: Claims) -> None:
    store.delete("s3://b/p")
    time.sleep(0.15)
    with pytest.raises(LeaseLost):
        paused.check("p")
    assert store.objects == {}


def test_an_owner_that_was_silent_and_not_replaced_goes_on(store: Store, paused: Claims) -> None:
    before = store.owner("s3://b/p")
    time.sleep(0.15)
    paused.check("p")
    assert store.owner("s3://b/p")["id"] == before["id"]
    assert store.owner("s3://b/p")["beat"] != before["beat"]


def test_a_write_whose_answer_was_lost_is_known_for_ones_own(store: Store) -> None:
    owner = Claims("s3://b/", stale_s=0.2)
    store.answers_are_lost = True
    assert owner.take("p")
    time.sleep(0.15)
    owner.check("p")
    owner.release("p")
    assert store.objects == {}


def test_a_step_of_the_clock_makes_nobody_dead(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _claim_of(store, started=started(os.getpid()))
    real = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: real(self) + 1.0)
    assert not Claims("s3://b/").take("p")


def test_an_id_of_another_container_is_not_looked_up_in_this_one(store: Store) -> None:
    """They may share the machine's name; only its silence tells."""
    _claim_of(store, place=f"{place()[:-2]}9]", pid=_pid_of_the_dead())
    assert not Claims("s3://b/").take("p")


class _Work:
    """A workspace as far as `made_once` goes: one artifact, made or not."""

    kind, fingerprint = "sft", "f"

    def __init__(self) -> None:
        self.ref: Any = None

    def find(self) -> Any:
        return self.ref


@pytest.mark.usefixtures("store")
def test_of_several_runs_one_makes_the_artifact_and_the_others_wait_for_it() -> None:
    work, made = _Work(), []
    told: list[str] = []
    ready = threading.Event()

    def make(missing: dict[str, Any]) -> dict[str, Any]:
        made.append(list(missing))
        ready.wait(10)
        work.ref = "ref"
        return {"sft": "ref"}

    results: list[Any] = []
    run = lambda: results.append(module.made_once({"sft": work}, make, told.append))  # type: ignore[dict-item]  # noqa: E731
    runs = [threading.Thread(target=run) for _ in range(3)]
    for one in runs:
        one.start()
    wait_for(lambda: len(told) == 2)
    ready.set()
    for one in runs:
        one.join(10)
    assert made == [["sft"]]
    assert results == [{"sft": "ref"}] * 3
    assert told == ["another run is at sft: its result is waited for"] * 2


def test_where_the_maker_fails_another_takes_over(store: Store) -> None:
    work = _Work()

    def fail(_missing: object) -> dict[str, Any]:
        raise TransientError("no GPU")

    with pytest.raises(TransientError, match="no GPU"):
        module.made_once({"sft": work}, fail, lambda _: None)  # type: ignore[dict-item]
    assert not store.objects, "its claim is given back"
    found = module.made_once({"sft": work}, lambda _missing: {"sft": "ref"}, lambda _: None)  # type: ignore
    assert found == {"sft": "ref"}


def test_who_waits_longer_asks_more_rarely_and_loses_little_by_it() -> None:
    pauses, waited, looks = Pauses(), 0.0, 0
    while waited < 3600:
        waited += (pause := pauses.next())
        looks += 1
        assert 1.0 <= pause <= max(1.0, min(waited / 20, 15.0))
    assert looks < 300
