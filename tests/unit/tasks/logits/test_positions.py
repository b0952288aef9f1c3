"""Entry r of the store describes response token r: from the engine through the store to the training loss.

A teacher that is its own student has nothing to learn. Shift the scores by one token, and it has.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tasks.engines.scoring import TransformersEngine
from tasks.logits.store.format import MAX_ERROR, decode_shard, encode_shard
from tasks.models import load_tokenizer, resolve
from tasks.rows import Row
from tasks.tokens.rows import TokenisedRow, tokenise
from tasks.tokens.scored import ScoredRow
from tasks.train.data.order import Example
from tasks.train.data.packing import pack, use_packed_attention
from tasks.train.model.losses import DistillationLoss
from tasks.train.model.student import SupervisedLoss

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


@pytest.fixture(scope="module")
def model() -> Any:
    loaded: Any = AutoModelForCausalLM.from_pretrained(resolve("demo", "teacher").fetch(), dtype=torch.float32)
    use_packed_attention(loaded)
    return loaded


def _losses(model: Any, rows: list[ScoredRow]) -> tuple[float, float]:
    """The teacher's own KL to its stored scores, and its cross-entropy, per token, as training computes them."""
    batch = pack([Example(r.row_id, r.ids, r.response_start, r.topk_ids_RK, r.logprobs_RK) for r in rows])
    with torch.no_grad():
        kl, cross_entropy = (
            SupervisedLoss(model, DistillationLoss(kd_weight=weight))(*batch.inputs) for weight in (1.0, 0.0)
        )
    tokens = len(batch.labels_N)
    return float(kl) / tokens, float(cross_entropy) / tokens


def test_a_teacher_has_nothing_to_learn_from_its_own_scores(model: Any, stored: list[ScoredRow]) -> None:
    kl, cross_entropy = _losses(model, stored)
    assert 0 <= kl < 1e-4
    actual = np.concatenate([row.actual_logprobs_R for row in stored])
    assert -actual.mean() == pytest.approx(cross_entropy, abs=MAX_ERROR)


@pytest.mark.parametrize("shift", [1, -1])
def test_scores_shifted_by_one_token_are_caught(model: Any, stored: list[ScoredRow], shift: int) -> None:
    shifted = [
        replace(
            row,
            topk_ids_RK=np.roll(row.topk_ids_RK, shift, axis=0),
            logprobs_RK=np.roll(row.logprobs_RK, shift, axis=0),
        )
        for row in stored
    ]
    kl, _ = _losses(model, shifted)
    assert kl > 0.5
