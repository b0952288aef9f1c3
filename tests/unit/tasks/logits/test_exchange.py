"""Parquet for other trainers: there and back, and files that others wrote."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import ConfigurationError
from tasks.logits.store.format import decode_shard, encode_shard
from tasks.logits.store.parquet import export_parquet, import_parquet
from tasks.tokens.scored import ScoredRow
from tasks.tokens.spans import Span


def _rows(count: int) -> list[ScoredRow]:
    rng = np.random.default_rng(0)
    rows = []
    for index in range(count):
        tokens = index % 7
        logprobs = -np.sort(rng.exponential(2, (tokens, 10)), axis=1).astype(np.float32)
        logprobs[:, 8:] = -np.inf
        ids = rng.integers(0, 262_144, (tokens, 10)).astype(np.int32)
        scored = rng.integers(0, 262_144, 3 + tokens).tolist()
        rows.append(ScoredRow(f"row{index}", scored, 3, logprobs[:, 2].copy(), ids, logprobs))
    return rows


def _assert_same(ours: list[ScoredRow], theirs: list[ScoredRow]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a.row_id, list(a.ids), a.response_start) == (b.row_id, list(b.ids), b.response_start)
        for name in ("actual_logprobs_R", "topk_ids_RK", "logprobs_RK"):
            if len(getattr(a, name)):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_a_store_goes_out_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    stored = list(decode_shard(encode_shard(_rows(600)), "s"))
    assert export_parquet(stored, tmp_path / "rows.parquet") == 600
    back = list(import_parquet(tmp_path / "rows.parquet"))
    _assert_same(stored, back)


def test_earlier_answers_go_along(tmp_path: Path) -> None:
    (row,) = _rows(5)[4:]
    spans = (Span(1, 1, 2), Span(3, 2, 4))
    several = replace(row, response_start=6, earlier=spans)
    assert several.supervised_tokens == 4
    export_parquet([several, row], tmp_path / "rows.parquet")
    back = list(import_parquet(tmp_path / "rows.parquet"))
    _assert_same([several, row], back)
    assert [one.earlier for one in back] == [spans, ()]
    table = pq.read_table(tmp_path / "rows.parquet")
    pq.write_table(table.drop(["actual_logprobs", "response_start"]), tmp_path / "bare.parquet")
    several_again, _row = import_parquet(tmp_path / "bare.parquet")
    assert several_again.response_start == 6
    assert np.isneginf(several_again.actual_logprobs_R).all()  # none of the actual tokens is among the top K
    column = table.schema.get_field_index("response_start")
    wrong = table.set_column(column, "response_start", pa.array([3, 3], pa.int32()))
    pq.write_table(wrong, tmp_path / "wrong.parquet")
    with pytest.raises(ConfigurationError, match="row 0: 4 lists do not describe 7 supervised tokens"):
        list(import_parquet(tmp_path / "wrong.parquet"))
    overlapping = replace(row, response_start=6, earlier=(Span(1, 1, 3), Span(3, 2, 3)))
    export_parquet([overlapping], tmp_path / "wrong.parquet")
    with pytest.raises(ConfigurationError, match="row 0: the spans in `earlier` do not follow each other"):
        list(import_parquet(tmp_path / "wrong.parquet"))


def test_files_of_others_have_fewer_columns_any_order_of_rank_and_lists_of_k_or_one_more(tmp_path: Path) -> None:
    table = pa.table(
        {
            "input_ids": pa.array([[9, 8, 7, 6]], pa.list_(pa.uint64())),
            "top_k_ids": [[[5, 7], [1, 2, 6]]],
            "top_k_logprobs": pa.array([[[-2.0, -0.5], [-1.0, -2.0, -9.0]]], pa.list_(pa.list_(pa.float32()))),
        }
    )
    pq.write_table(table, tmp_path / "theirs.parquet")
    (row,) = import_parquet(tmp_path / "theirs.parquet")
    assert (row.ids, row.response_start, len(row.row_id)) == ([9, 8, 7, 6], 2, 20)
    assert row.topk_ids_RK.tolist() == [[7, 5, 0], [1, 2, 6]]
    assert row.logprobs_RK.tolist() == [[-0.5, -2.0, -np.inf], [-1.0, -2.0, -9.0]]
    assert row.actual_logprobs_R.tolist() == [-0.5, -9.0]


def test_files_that_do_not_fit_are_refused_by_row(tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"input_ids": [[1]]}), path)
    with pytest.raises(ConfigurationError, match="bad.parquet has no column top_k_ids, top_k_logprobs"):
        list(import_parquet(path))
    good = {"input_ids": [[1, 2]], "top_k_ids": [[[3]]], "top_k_logprobs": [[[-1.0]]]}
    for change, message in (
        ({"top_k_ids": [[[3, 4]]]}, "row 0: top_k_ids and top_k_logprobs have lists of different lengths"),
        ({"response_start": [0]}, "row 0: 1 lists do not describe 2 supervised tokens"),
    ):
        pq.write_table(pa.table({**good, **change}), path)
        with pytest.raises(ConfigurationError, match=message):
            list(import_parquet(path))
