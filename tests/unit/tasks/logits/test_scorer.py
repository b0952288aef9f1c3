"""What engines of one machine share: the agenda of shards, the queue that deals them out, and one count of progress."""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.store.artifacts import Workspace
from infra.store.claims import Claims
from tasks.engines.pieces import CLAIMS, Queue
from tasks.engines.progress import Progress
from tasks.logits.agenda import rows_of, write_agenda
from tasks.logits.shards import plan
from tasks.tokens.rows import TokenisedRow
from tasks.tokens.spans import Span
from tests.support.memory_store import MemoryStore


@st.composite
def _rows(draw: st.DrawFn) -> list[TokenisedRow]:
    rows = []
    for number in range(draw(st.integers(1, 12))):
        ids = array("i", draw(st.lists(st.integers(0, 2**31 - 1), min_size=4, max_size=30)))
        earlier = (Span(1, 1, 2),) if draw(st.booleans()) else ()
        rows.append(TokenisedRow(f"{number:020x}", ids, draw(st.integers(2, len(ids) - 1)), earlier))
    return rows


@given(_rows(), st.integers(1, 80))
def test_an_engine_reads_from_the_agenda_what_was_tokenised(
    tmp_path_factory: pytest.TempPathFactory, rows: list[TokenisedRow], tokens_per_shard: int
) -> None:
    folder = tmp_path_factory.mktemp("agenda") / "shards"
    shards = plan(rows, tokens_per_shard)
    write_agenda(folder, shards)
    assert [rows_of(folder, shard.name) for shard in shards] == [shard.rows for shard in shards]


def test_of_64_claimants_each_shard_is_scored_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore().replace(monkeypatch)
    work = Workspace("logits", 1, {}, {})
    shards = {f"shards/{number:05}.topk": 10 + number for number in range(200)}
    scored: list[tuple[int, str]] = []
    told: dict[int, dict[str, int]] = {number: {} for number in range(64)}
    start = threading.Barrier(64)

    def claimant(number: int) -> None:
        start.wait()
        with Claims(work.uri + CLAIMS) as claims:
            for name in Queue(work, shards, claims, lambda event, pieces: told[number].update(pieces)):
                scored.append((number, name))
                work.put(name, b"scored")

    threads = [threading.Thread(target=claimant, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=50)
    assert not any(thread.is_alive() for thread in threads)
    assert Counter(name for _number, name in scored) == dict.fromkeys(shards, 1)
    stored = {work.uri + name: size for name, size in shards.items()}
    assert all(heard == stored for heard in told.values())  # whoever scored them
    assert not [name for name in store.names() if CLAIMS in name]


class Heard:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def event(self, name: str, **fields: Any) -> None:
        self.events.append({"event": name, **fields})

    def progress(self, done: int, total: int, **fields: Any) -> None:
        self.event("progress", done=done, total=total, **fields)


def test_progress_counts_each_token_once_whoever_scored_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("tasks.engines.progress.time.monotonic", lambda: float(next(clock)))
    reporter: Any = Heard()
    progress = Progress(reporter, 2, 100, 1000)
    for engine in (0, 1):
        progress.hear(engine, "loading", engine="vllm")
    for engine in (0, 1):
        progress.hear(engine, "ready", engine="vllm", seconds=3.0)
        progress.hear(engine, "begun")  # the first at 0
    progress.hear(0, "working", tokens=400, partial=150)  # at 1
    progress.hear(1, "working", tokens=600, partial=200)  # at 2
    progress.hear(0, "stored", pieces={"a": 200})
    progress.hear(1, "stored", pieces={"a": 200, "of another machine": 50})  # as it found them
    assert [event["engine"] for event in reporter.events if "engine" in event] == [
        "2 × vllm",
        "vllm (1 of 2)",
        "vllm (2 of 2)",
    ]
    last = reporter.events[-1]
    assert last == {"event": "progress", "done": 350, "total": 1000, "tokens_s": 500.0, "engines": 2}
    progress.hear(1, "working", tokens=700, partial=300)
    progress.lose(1, "it was killed")
    assert reporter.events[-1]["text"] == "engine 2 of 2 is lost, and the others do its part: it was killed"
    progress.hear(0, "working", tokens=500, partial=100)
    assert {name: reporter.events[-1][name] for name in ("done", "engines")} == {"done": 450, "engines": 1}
    progress.hear(0, "stored", pieces={"the rest": 600})
    assert reporter.events[-1]["done"] == 950
    assert progress.tokens == 1200


def test_a_folder_of_an_agenda_holds_a_file_a_shard(tmp_path: Path) -> None:
    rows = [TokenisedRow(f"{n}", array("i", [1, 2, 3]), 1) for n in range(4)]
    write_agenda(tmp_path / "agenda", plan(rows, 6))
    assert sorted(path.name for path in (tmp_path / "agenda").iterdir()) == ["00000.npz", "00001.npz"]
