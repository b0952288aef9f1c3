"""The top-K store, token alignment and coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import ConfigurationError
from infra.models import resolve
from tasks.logits.alignment import check_same_tokens, within_vocabulary
from tasks.logits.coverage import Coverage
from tasks.logits.store import ScoredRow, decode_shard, encode_shard
from tasks.tokens import tokenizer_digests


def _row(index: int, prompt: int, response: int, k: int, vocabulary: int) -> ScoredRow:
    rng = np.random.default_rng(index)
    logprobs = -np.sort(rng.exponential(3, (response, k)).astype(np.float32), axis=1)
    logprobs[:, -1] = -np.inf if index % 2 else logprobs[:, -1]
    return ScoredRow(
        f"row{index}",
        rng.integers(0, vocabulary, prompt + response).astype(np.int32),
        prompt,
        -rng.exponential(3, response).astype(np.float32),
        rng.integers(0, vocabulary, (response, k)).astype(np.int32),
        logprobs,
    )


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=5), st.integers(1, 64))
def test_what_is_written_is_read(shapes: list[tuple[int, int]], k: int) -> None:
    rows = [_row(index, prompt, response, k, 262_144) for index, (prompt, response) in enumerate(shapes)]
    back = list(decode_shard(encode_shard(rows)))
    assert len(back) == len(rows)
    for ours, theirs in zip(rows, back, strict=True):
        assert (ours.row_id, ours.response_start) == (theirs.row_id, theirs.response_start)
        for name in ("ids", "actual_logprobs_R", "topk_ids_RK", "logprobs_RK"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_teacher_ids_beyond_the_students_vocabulary_are_dropped() -> None:
    ids = np.array([[5, 151_700, 3]], dtype=np.int32)
    logprobs = np.array([[-0.1, -3.0, -4.0]], dtype=np.float32)
    kept_ids, kept = within_vocabulary(ids, logprobs, 151_665)
    assert kept_ids.tolist() == [[5, 0, 3]]
    assert np.isneginf(kept[0]).tolist() == [False, True, False]
    assert within_vocabulary(ids, logprobs, 152_064)[1] is logprobs


def test_students_with_another_token_map_or_template_are_refused_by_name() -> None:
    student = resolve("demo", "student")
    digests = tokenizer_digests(resolve("demo", "teacher"))
    check_same_tokens(digests, student)
    with pytest.raises(ConfigurationError, match="different ids"):
        check_same_tokens({**digests, "vocabulary": "other"}, student)
    with pytest.raises(ConfigurationError, match="different chat templates"):
        check_same_tokens({**digests, "template": "other"}, student)


def test_coverage_measures_the_mass_and_warns_where_it_is_not_almost_one() -> None:
    coverage = Coverage()
    coverage.add(np.log(np.array([[0.5, 0.4], [0.6, 0.3]], dtype=np.float32)))
    coverage.add(np.log(np.array([[0.25, 0.25]], dtype=np.float32)))
    summary = coverage.summary(2)
    assert summary["tokens"] == 3
    assert summary["mean"] == pytest.approx((0.9 + 0.9 + 0.5) / 3, abs=1e-4)
    assert sum(summary["histogram"]) == 3
    assert summary["percentiles"]["p1"] == pytest.approx(0.5, abs=1e-2)
    assert "76.7%" in summary["warning"]
    sure = Coverage()
    sure.add(np.log(np.array([[0.99, 0.009]], dtype=np.float32)))
    assert sure.summary(2)["warning"] is None
