"""The store on real S3: by row id, in order, in small pieces, from a small cache; damage is found and named."""

from pathlib import Path

import numpy as np
import pytest

from infra import settings
from infra.errors import ConfigurationError
from infra.store import storage
from infra.store.artifacts import ArtifactRef, Workspace
from infra.store.range_cache import RangeCache
from tasks.logits.store.reader import SHARDS, ShardError, TopKReader, read_shard, write_shard
from tasks.tokens.scored import ScoredRow

K, ROWS = 10, 300


def _row(index: int) -> ScoredRow:
    rng = np.random.default_rng(index)
    tokens = int(rng.integers(0, 120))
    logprobs = -np.sort(rng.exponential(3, (tokens, K)), axis=1).astype(np.float32)
    ids = rng.integers(0, 150_000, (tokens, K)).astype(np.int32)
    return ScoredRow(f"row{index}", rng.integers(0, 150_000, 5 + tokens).tolist(), 5, logprobs[:, 0], ids, logprobs)


def _workspace(tag: str) -> Workspace:
    return Workspace("logits", 1000, {"k": K, "tokenizer": {}, "tag": tag}, {})


@pytest.fixture
def store(bucket: str, request: pytest.FixtureRequest) -> ArtifactRef:
    work = _workspace(request.node.name)
    for shard in range(3):
        write_shard(work, f"{SHARDS}{shard:05}.topk", [_row(index) for index in range(shard * 100, shard * 100 + 100)])
    return work.publish((SHARDS,), {}, {})


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each range read brought."""
    sizes: list[int] = []
    real = storage.get_range

    def counting(uri: str, start: int, length: int) -> bytes | None:
        data = real(uri, start, length)
        sizes.append(len(data or b""))
        return data

    monkeypatch.setattr(storage, "get_range", counting)
    return sizes


def _assert_is(index: int, row: ScoredRow) -> None:
    expected = _row(index)
    assert (row.row_id, row.response_start) == (expected.row_id, expected.response_start)
    np.testing.assert_array_equal(row.ids, expected.ids)
    np.testing.assert_array_equal(row.topk_ids_RK, expected.topk_ids_RK)
    np.testing.assert_allclose(row.logprobs_RK, expected.logprobs_RK, atol=1 / 128)


def test_rows_come_in_order_and_by_id(store: ArtifactRef, tmp_path: Path) -> None:
    reader = TopKReader(store, RangeCache(tmp_path, 2**30))
    for index in (250, 3, 299, 0, 101, 3):
        _assert_is(index, reader.row(f"row{index}"))
    assert reader.row_ids() == [f"row{index}" for index in range(ROWS)]
    for index, row in enumerate(reader):
        _assert_is(index, row)
    _assert_is(7, reader.row("row7"))
    with pytest.raises(ConfigurationError, match="row 'row300' is not in the top-K store s3://"):
        reader.row("row300")


def test_a_row_costs_its_block_and_the_heads_not_the_shards(
    bucket: str, tmp_path: Path, fetched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = _workspace("large")
    rows = [_row(index) for index in range(1500)]
    write_shard(work, f"{SHARDS}00000.topk", rows)
    ref = work.publish((SHARDS,), {}, {})
    size = storage.head(ref.uri + f"{SHARDS}00000.topk").size  # type: ignore[union-attr]
    reader = TopKReader(ref, RangeCache(tmp_path, 2**30))
    monkeypatch.setattr(storage, "get", None)  # no whole object from here on
    _assert_is(1200, reader.row("row1200"))
    assert sum(fetched) < size / 3
    before = len(fetched)
    _assert_is(1200, TopKReader.row(reader, "row1200"))
    _assert_is(1201, reader.row("row1201"))
    assert len(fetched) <= before + 1


def test_what_is_in_the_cache_is_not_fetched_again_and_a_damaged_copy_is(
    store: ArtifactRef, tmp_path: Path, fetched: list[int]
) -> None:
    _assert_is(150, TopKReader(store, RangeCache(tmp_path, 2**30)).row("row150"))
    once = len(fetched)
    _assert_is(150, TopKReader(store, RangeCache(tmp_path, 2**30)).row("row150"))
    assert len(fetched) == once
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        path.write_bytes(data[:-3] + bytes(b ^ 255 for b in data[-3:]))
    _assert_is(150, TopKReader(store, RangeCache(tmp_path, 2**30)).row("row150"))
    assert len(list(TopKReader(store, RangeCache(tmp_path, 2**30)))) == ROWS
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert len(list(TopKReader(store, RangeCache(tmp_path, 2**30)))) == ROWS


def test_a_row_out_of_a_shard_that_lies_here_is_not_fetched_unless_the_copy_is_damaged(
    store: ArtifactRef, tmp_path: Path, fetched: list[int]
) -> None:
    assert len(list(TopKReader(store, RangeCache(tmp_path, 2**30)))) == ROWS
    _assert_is(150, TopKReader(store, RangeCache(tmp_path, 2**30)).row("row150"))
    assert fetched == []
    for path in tmp_path.iterdir():
        path.write_bytes(bytes(byte ^ 255 for byte in path.read_bytes()))
    _assert_is(150, TopKReader(store, RangeCache(tmp_path, 2**30)).row("row150"))
    assert fetched != []


def test_the_cache_keeps_to_its_limit_and_drops_what_was_used_least_recently(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 1000)
    cache.read("kept", lambda: bytes(100))
    for index in range(50):
        cache.read(f"piece{index}", lambda: bytes(100))
        cache.read("kept", lambda: pytest.fail("the piece in use was dropped"))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000 + 1000 / 8
    assert cache.has("piece49")
    assert not cache.has("piece30")
    assert cache.read("huge", lambda: bytes(2000)) == bytes(2000)
    assert not cache.has("huge")


def test_a_store_larger_than_the_cache_is_read_all_the_same(store: ArtifactRef, tmp_path: Path) -> None:
    reader = TopKReader(store, RangeCache(tmp_path, 10_000))
    for index in (299, 0, 150):
        _assert_is(index, reader.row(f"row{index}"))
    assert len(list(reader)) == ROWS
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10_000


@pytest.mark.parametrize("by_id", [True, False])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "swapped"])
def test_damage_in_storage_is_named_with_the_shard_and_the_repair(
    store: ArtifactRef, tmp_path: Path, damage: str, by_id: bool
) -> None:
    uri = f"{store.uri}{SHARDS}00001.topk"
    data = storage.get(uri)
    assert data is not None
    if damage == "flipped":
        storage.put(uri, data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    elif damage == "truncated":
        storage.put(uri, data[:-20])
    elif damage == "missing":
        storage.delete(uri)
    else:
        other = storage.get(f"{store.uri}{SHARDS}00002.topk")
        storage.put(uri, other or b"")
    reader = TopKReader(store, RangeCache(tmp_path, 2**30))
    with pytest.raises(ConfigurationError, match=f"{SHARDS}00001.topk.*delete {store.uri}record.json and run again"):
        assert reader.row("row199") if by_id else list(reader)


def test_a_shard_of_another_store_is_refused_by_name(bucket: str) -> None:
    write_shard(_workspace("theirs"), f"{SHARDS}00000.topk", [_row(0)])
    ours = _workspace("ours")
    data = storage.get(_workspace("theirs").uri + f"{SHARDS}00000.topk")
    storage.put(ours.uri + f"{SHARDS}00000.topk", data or b"")
    with pytest.raises(ShardError, match=f"{ours.uri}{SHARDS}00000.topk is not the one that belongs there"):
        read_shard(ours, f"{SHARDS}00000.topk")


def test_range_reads_end_where_the_object_ends(bucket: str) -> None:
    uri = f"s3://{bucket}/some/bytes"
    storage.put(uri, b"0123456789")
    assert storage.get_range(uri, 2, 3) == b"234"
    assert storage.get_range(uri, 8, 100) == b"89"
    assert storage.get_range(uri, 10, 5) == b""
    assert storage.get_range(uri + "x", 0, 5) is None
    assert settings.topk_cache_bytes() == 4096 * 2**20
