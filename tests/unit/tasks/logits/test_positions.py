"""Entry r of the store describes response token r: from the engine through the store to the training loss.

A teacher that is its own student has nothing to learn. Shift the scores by one token, and it has.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from infra.models import load_tokenizer, resolve
from tasks.logits.engines import TransformersEngine
from tasks.logits.format import MAX_ERROR, decode_shard, encode_shard
from tasks.logits.store import ScoredRow
from tasks.rows import Row
from tasks.tokens import TokenisedRow, tokenise
from tasks.train.data import Example, collate
from tasks.train.losses import cross_entropy_sum, topk_kl_sum

K = 10
ROWS = [
    Row(instruction="Count all books", input="books(id, title)", response="SELECT COUNT(*) FROM books"),
    Row(instruction="List the names", input="staff(id, name)", response="SELECT name FROM staff ORDER BY name"),
    Row(instruction="Say it", response="5"),
]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine(resolve("demo", "teacher").fetch())


@pytest.fixture(scope="module")
def stored(engine: TransformersEngine) -> list[ScoredRow]:
    tokenizer = load_tokenizer(resolve("demo", "teacher"))
    rows = [row for one in ROWS if isinstance(row := tokenise(one, tokenizer, 256), TokenisedRow)]
    return list(decode_shard(encode_shard(engine.score(rows, K)), "s"))


def _losses(engine: TransformersEngine, rows: list[ScoredRow]) -> tuple[float, float]:
    """The teacher's own KL to its stored scores, and its cross-entropy, per token."""
    examples = [Example(r.row_id, r.ids, r.response_start, r.topk_ids_RK, r.logprobs_RK) for r in rows]
    batch = collate(examples, 0)
    model: Any = engine._model
    with torch.no_grad():
        logits_BTV = model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits
    logits_NV = logits_BTV.flatten(0, 1)[batch.positions_N]
    assert batch.teacher_ids_NK is not None
    assert batch.teacher_logprobs_NK is not None
    kl = topk_kl_sum(logits_NV, batch.teacher_ids_NK, batch.teacher_logprobs_NK, 1.0, "renormalise")
    tokens = len(batch.labels_N)
    return float(kl) / tokens, float(cross_entropy_sum(logits_NV, batch.labels_N)) / tokens


def test_a_teacher_has_nothing_to_learn_from_its_own_scores(
    engine: TransformersEngine, stored: list[ScoredRow]
) -> None:
    kl, cross_entropy = _losses(engine, stored)
    assert 0 <= kl < 1e-4
    actual = np.concatenate([row.actual_logprobs_R for row in stored])
    assert -actual.mean() == pytest.approx(cross_entropy, abs=MAX_ERROR)


@pytest.mark.parametrize("shift", [1, -1])
def test_scores_shifted_by_one_token_are_caught(
    engine: TransformersEngine, stored: list[ScoredRow], shift: int
) -> None:
    shifted = [
        replace(
            row,
            topk_ids_RK=np.roll(row.topk_ids_RK, shift, axis=0),
            logprobs_RK=np.roll(row.logprobs_RK, shift, axis=0),
        )
        for row in stored
    ]
    kl, _ = _losses(engine, shifted)
    assert kl > 0.5
