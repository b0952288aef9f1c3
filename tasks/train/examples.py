"""Training examples out of artifacts: tokenised rows for SFT, the teacher's scored token ids for KD."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from infra.artifacts import ArtifactRef
from infra.models import ModelSource, load_tokenizer
from tasks.logits.alignment import check_same_tokens, within_vocabulary
from tasks.logits.store import TopKReader
from tasks.rows import KEPT, read_rows
from tasks.tokens import Skipped, tokenise
from tasks.train.data import Example
from tasks.train.settings import Distillation


def load_examples(
    data: ArtifactRef, student: ModelSource, max_length: int, kd: Distillation | None
) -> tuple[list[Example], Any, dict[str, int]]:
    """Examples in the artifact's order, the student's tokenizer, and how many rows were skipped for what.

    With `kd`, `data` is a top-K store, and each example carries the ids that the teacher scored: rows are
    never tokenised twice, so a template cannot differ between scoring and training.
    """
    tokenizer = load_tokenizer(student)
    skipped: Counter[str] = Counter()
    examples = []
    if kd is not None:
        reader = TopKReader(data)
        check_same_tokens(reader.tokenizer_digest, student)
        vocabulary = json.loads(student.text_file("config.json") or "{}")["vocab_size"]
        for scored in reader:
            if len(scored.ids) > max_length:
                skipped[f"longer than {max_length} tokens"] += 1
                continue
            teacher = within_vocabulary(scored.topk_ids_RK, scored.logprobs_RK, vocabulary)
            examples.append(Example(scored.row_id, scored.ids, scored.response_start, *teacher))
        return examples, tokenizer, dict(skipped)
    for row in read_rows(data, KEPT):
        tokenised = tokenise(row, tokenizer, max_length)
        if isinstance(tokenised, Skipped):
            skipped[tokenised.reason] += 1
        else:
            examples.append(Example(tokenised.row_id, tokenised.ids, tokenised.response_start))
    return examples, tokenizer, dict(skipped)
