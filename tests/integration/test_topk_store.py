"""The store on real S3: rows in order; damage is found and named."""

import numpy as np
import pytest

from infra.errors import ConfigurationError
from infra.store import storage
from infra.store.artifacts import ArtifactRef, Workspace
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


def _assert_is(index: int, row: ScoredRow) -> None:
    expected = _row(index)
    assert (row.row_id, row.response_start) == (expected.row_id, expected.response_start)
    np.testing.assert_array_equal(row.ids, expected.ids)
    np.testing.assert_array_equal(row.topk_ids_RK, expected.topk_ids_RK)
    np.testing.assert_allclose(row.logprobs_RK, expected.logprobs_RK, atol=1 / 128)


def test_rows_come_in_order(store: ArtifactRef) -> None:
    rows = list(TopKReader(store))
    assert len(rows) == ROWS
    for index, row in enumerate(rows):
        _assert_is(index, row)


def test_a_smaller_k_is_a_view_of_the_store(store: ArtifactRef) -> None:
    for whole, view in zip(TopKReader(store), TopKReader(store, 3), strict=True):
        assert view.topk_ids_RK.shape[1] == 3
        np.testing.assert_array_equal(view.topk_ids_RK, whole.topk_ids_RK[:, :3])
        np.testing.assert_array_equal(view.logprobs_RK, whole.logprobs_RK[:, :3])
        np.testing.assert_array_equal(view.actual_logprobs_R, whole.actual_logprobs_R)
    with pytest.raises(ConfigurationError, match="holds 10 log-probabilities a token, and 11 are asked for"):
        TopKReader(store, 11)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "swapped"])
def test_damage_in_storage_is_named_with_the_shard_and_the_repair(store: ArtifactRef, damage: str) -> None:
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
    with pytest.raises(ConfigurationError, match=f"{SHARDS}00001.topk.*delete {store.uri}record.json and run again"):
        list(TopKReader(store))


def test_a_shard_of_another_store_is_refused_by_name(bucket: str) -> None:
    write_shard(_workspace("theirs"), f"{SHARDS}00000.topk", [_row(0)])
    ours = _workspace("ours")
    data = storage.get(_workspace("theirs").uri + f"{SHARDS}00000.topk")
    storage.put(ours.uri + f"{SHARDS}00000.topk", data or b"")
    with pytest.raises(ShardError, match=f"{ours.uri}{SHARDS}00000.topk is not the one that belongs there"):
        read_shard(ours, f"{SHARDS}00000.topk")
