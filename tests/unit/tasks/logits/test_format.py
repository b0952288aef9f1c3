"""The shard format: within the bound for whatever a teacher can say, and never wrong without saying so."""

import dataclasses
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.logits.store import planes
from tasks.logits.store.format import MAX_ERROR, VERSION, ShardError, decode_head, decode_shard, encode_shard
from tasks.tokens.scored import ScoredRow
from tasks.tokens.spans import Span


@st.composite
def scored_rows(draw: st.DrawFn) -> list[ScoredRow]:
    """Rows of one K: any lengths, vocabulary, spread; −inf tails, ties, actual tokens in and outside the top K."""
    k = draw(st.sampled_from([1, 2, 10, 64, 256]))
    vocabulary = draw(st.sampled_from([1, 2, 300, 20_000, 262_144]))
    spread = draw(st.sampled_from([0.0, 1e-3, 1.0, 40.0, 9000.0]))
    shapes = draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = []
    for index, (prompt, response) in enumerate(shapes):
        logprobs = -np.sort(rng.exponential(spread, (response, k)), axis=1)
        logprobs[np.arange(k) >= rng.integers(0, k + 1, (response, 1))] = -np.inf
        ids = rng.integers(0, vocabulary, (response, k))
        actual, actual_logprobs = rng.integers(0, vocabulary, response), -rng.exponential(spread, response)
        actual_logprobs[rng.random(response) < 0.1] = -np.inf
        place, inside = rng.integers(0, k, response), rng.random(response) < 0.6
        actual = np.where(inside, ids[np.arange(response), place], actual)
        actual_logprobs = np.where(inside, logprobs[np.arange(response), place], actual_logprobs)
        scored = [*rng.integers(0, vocabulary, prompt).tolist(), *actual.tolist()]
        arrays = (actual_logprobs.astype(np.float32), ids.astype(np.int32), logprobs.astype(np.float32))
        rows.append(ScoredRow(f"row {index} é", scored, prompt, *arrays))
    if draw(st.booleans()):
        return rows
    return [_in_turns(row, draw(st.lists(st.integers(0, 6), max_size=5)), rng) for row in rows]


def _in_turns(row: ScoredRow, lengths: list[int], rng: np.random.Generator) -> ScoredRow:
    """The row with some of its supervised tokens in earlier answers, which stand apart by as many tokens."""
    ids, earlier = list(row.ids[: row.response_start]), []
    left = list(row.ids[row.response_start :])
    for turn, length in enumerate(lengths, 1):
        answer, left = left[:length], left[length:]
        earlier.append(Span(turn * int(rng.integers(1, 3)), len(ids), len(ids) + len(answer)))
        ids += [*answer, *rng.integers(0, 9, length).tolist()]
    return dataclasses.replace(row, ids=[*ids, *left], response_start=len(ids), earlier=tuple(earlier))


def _assert_within(bound: float, ours: np.ndarray, theirs: np.ndarray) -> None:
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    ours = np.where(ours <= -(2.0**15), -np.inf, ours)  # as the format says
    np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(theirs))
    known = np.isfinite(ours)
    assert (np.abs(ours[known] - theirs[known]) <= bound).all()


def _assert_same(ours: list[ScoredRow], theirs: list[ScoredRow], bound: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a.row_id, a.response_start, a.earlier) == (b.row_id, b.response_start, b.earlier)
        np.testing.assert_array_equal(np.asarray(a.ids, dtype=np.int64), b.ids)
        np.testing.assert_array_equal(a.topk_ids_RK, b.topk_ids_RK)
        _assert_within(bound, a.logprobs_RK, b.logprobs_RK)
        _assert_within(bound, a.actual_logprobs_R, b.actual_logprobs_R)


@settings(max_examples=150, deadline=None)
@given(scored_rows(), st.sampled_from([1 / 128, 0.01, 0.5, 1 / 4096]), st.sampled_from([1, 40, 8192]))
def test_every_row_comes_back_within_the_bound(rows: list[ScoredRow], max_error: float, block_tokens: int) -> None:
    data = encode_shard(rows, max_error=max_error, block_tokens=block_tokens)
    head = decode_head(data, "s")
    assert head.max_error <= max_error
    _assert_same(rows, list(decode_shard(data, "s")), max_error)
    for block in range(head.blocks):  # each by itself, from what the head says of it
        start, length = head.block_range(block)
        first, last = (int(row) for row in head.block_rows[block : block + 2])
        _assert_same(rows[first:last], list(head.block(block, data[start : start + length]).rows()), max_error)


def test_only_a_shard_with_several_spans_needs_the_newer_version() -> None:
    row = ScoredRow("r", list(range(9)), 7, *_scores(4), earlier=(Span(1, 2, 4),))
    shard = encode_shard([row, dataclasses.replace(row, response_start=5, earlier=())])
    for data, version, parts in ((_shard(), 1, 6), (shard, 2, 8)):
        found, _zero, meta, index, _dictionary = struct.unpack_from("<HHIII", data, 8)
        assert found == version
        lengths = struct.unpack_from(f"<{parts + 1}I", data, 48 + meta)
        assert 4 * (parts + 1) + sum(lengths[:parts]) == index  # there is nothing else in it
    several, single = decode_shard(shard, "s")
    assert (list(several.ids), several.earlier, several.response_start) == (list(range(9)), ((1, 2, 4),), 7)
    assert (list(single.ids), single.earlier, single.response_start) == (list(range(9)), (), 5)


def _scores(tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Actual log-probs, ids and log-probs of some tokens, K = 2."""
    logprobs = np.tile(np.array([-0.5, -1.0], np.float32), (tokens, 1))
    return logprobs[:, 1].copy(), np.tile(np.array([3, 4], np.int32), (tokens, 1)), logprobs


@settings(max_examples=50, deadline=None)
@given(scored_rows())
def test_what_was_read_is_written_without_further_error(rows: list[ScoredRow]) -> None:
    shard = encode_shard(rows)
    once = list(decode_shard(shard, "s"))
    assert encode_shard(once) == shard
    _assert_same(once, list(decode_shard(encode_shard(once), "s")), 0.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 900), st.integers(0, 2**32 - 1))
def test_planes_give_back_the_matrix(ranks: int, tokens: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.choice([-1, 0, 191, 192, 500, planes.LIMIT - 1, planes.LIMIT, 2**31 - 1], (ranks, tokens))
    stored = planes.decode(values.shape, iter(planes.encode(values)))
    np.testing.assert_array_equal(stored.values()[0], values)


def _shard(rows: int = 40) -> bytes:
    rng = np.random.default_rng(0)
    made = []
    for index in range(rows):
        logprobs = -np.sort(rng.exponential(2, (20, 10)), axis=1).astype(np.float32)
        ids = rng.integers(0, 5000, (20, 10)).astype(np.int32)
        made.append(
            ScoredRow(f"row{index}", rng.integers(0, 5000, 25).tolist(), 5, logprobs[:, 1].copy(), ids, logprobs)
        )
    return encode_shard(made, block_tokens=200)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(_shard()) - 1), st.integers(1, 255))
def test_any_flipped_byte_is_found_and_the_shard_named(place: int, change: int) -> None:
    data = bytearray(_shard())
    data[place] ^= change
    with pytest.raises(ShardError, match="shards/00007"):
        list(decode_shard(bytes(data), "shards/00007"))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(_shard()) - 1))
def test_any_truncation_is_found_and_the_shard_named(length: int) -> None:
    with pytest.raises(ShardError, match="shard shards/00007 is cut short"):
        list(decode_shard(_shard()[:length], "shards/00007"))


def test_a_newer_version_and_a_foreign_file_are_told_from_damage() -> None:
    newer = _shard()[:8] + struct.pack("<H", VERSION + 1) + _shard()[10:]
    with pytest.raises(
        ShardError, match="s.topk has format version 3, and this program reads up to 2: update distilflow"
    ):
        list(decode_shard(newer, "s.topk"))
    with pytest.raises(ShardError, match="s.topk is no top-K shard"):
        list(decode_shard(b"PAR1" + bytes(100), "s.topk"))


def test_the_head_alone_says_where_each_row_lies() -> None:
    data = _shard()
    length = 48 + sum(struct.unpack_from("<III", data, 12))  # as FORMAT.md says
    head = decode_head(data[:length], "s")
    assert head.row_ids == [f"row{index}" for index in range(40)]
    assert (head.blocks, head.size) == (4, len(data))
    assert head.block_range(0)[0] == length
    assert list(head.block_rows) == [0, 10, 20, 30, 40]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logprobs_RK": np.array([[-2, -1]], np.float32)}, "best first"),
        ({"logprobs_RK": np.array([[-np.inf, -1]], np.float32)}, "best first"),
        ({"logprobs_RK": np.array([[np.nan, -1]], np.float32)}, "up to 0"),
        ({"actual_logprobs_R": np.array([0.5], np.float32)}, "up to 0"),
        ({"topk_ids_RK": np.array([[3, -1]], np.int32)}, "not negative"),
        ({"topk_ids_RK": np.array([[3, 1, 2]], np.int32)}, "row r"),
        ({"ids": [1, 2, 3]}, "row r"),
        ({"earlier": (Span(1, 0, 2),)}, "row r: its spans do not follow each other"),
    ],
)
def test_rows_that_no_teacher_can_have_scored_are_refused(change: dict[str, object], message: str) -> None:
    row = ScoredRow(
        "r", [7, 3], 1, np.array([-1], np.float32), np.array([[3, 4]], np.int32), np.array([[-1, -2]], np.float32)
    )
    encode_shard([row])
    with pytest.raises(ValueError, match=message):
        encode_shard([dataclasses.replace(row, **change)])  # type: ignore[arg-type]


def test_the_error_does_not_add_up_over_ranks() -> None:
    logprobs = -np.cumsum(np.full((5, 256), 0.011), axis=1).astype(np.float32)
    row = ScoredRow("r", [0] * 5, 0, logprobs[:, 0].copy(), np.zeros((5, 256), np.int32), logprobs)
    (back,) = decode_shard(encode_shard([row]), "s")
    assert np.abs(back.logprobs_RK.astype(np.float64) - logprobs)[:, -1].max() <= MAX_ERROR
