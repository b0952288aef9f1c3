"""Training examples out of artifacts: tokenised rows for SFT, the teacher's scored token ids for KD."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from infra.artifacts import ArtifactRef
from infra.models import ModelSource, load_tokenizer
from tasks.logits.alignment import Alignment, check_same_template, known_tokens, remap, vocabulary_of
from tasks.logits.store import TopKReader
from tasks.rows import KEPT, Row, read_rows
from tasks.tokens import Skipped, TokenisedRow, tokenise, tokenizer_digests
from tasks.train.data import Example
from tasks.train.settings import Distillation


def load_examples(
    data: ArtifactRef, student: ModelSource, max_length: int, kd: Distillation | None
) -> tuple[list[Example], Any, dict[str, Any]]:
    """Examples in the artifact's order, the student's tokenizer, and facts: how many rows were skipped for what.

    With `kd`, `data` is a top-K store. Where teacher and student share a tokenizer, each example carries the ids
    that were scored: rows are never tokenised twice, so a template cannot differ between scoring and training.
    Where they do not, the student's own ids get the teacher's distributions as far as both cut the text alike
    (a fact, too); raises ConfigurationError where that is less than `kd.min_alignment`.
    """
    tokenizer = load_tokenizer(student)
    skipped: Counter[str] = Counter()
    facts: dict[str, Any] = {"skipped": skipped}
    if kd is None:
        tokenised = (_tokenised(row, tokenizer, max_length, skipped) for row in read_rows(data, KEPT))
        return [Example(row.row_id, row.ids, row.response_start) for row in tokenised if row], tokenizer, facts
    reader = TopKReader(data)
    if reader.tokenizer_digest["vocabulary"] == tokenizer_digests(student)["vocabulary"]:
        check_same_template(reader.tokenizer_digest, student)
        return _with_scored_ids(reader, student, max_length, skipped), tokenizer, facts
    alignment = Alignment(reader.vocabulary(), vocabulary_of(student))
    examples = _with_own_ids(reader, alignment, tokenizer, max_length, skipped)
    alignment.check(kd.min_alignment)
    return examples, tokenizer, {**facts, "alignment": alignment.summary()}


def _with_scored_ids(reader: TopKReader, student: ModelSource, max_length: int, skipped: Counter[str]) -> list[Example]:
    size = json.loads(student.text_file("config.json") or "{}")["vocab_size"]
    known = known_tokens(vocabulary_of(student), size)
    examples = []
    for scored in reader:
        if len(scored.ids) > max_length:
            skipped[f"longer than {max_length} tokens"] += 1
            continue
        teacher = remap(scored.topk_ids_RK, scored.logprobs_RK, known)
        examples.append(Example(scored.row_id, scored.ids, scored.response_start, *teacher))
    return examples


def _with_own_ids(
    reader: TopKReader, alignment: Alignment, tokenizer: Any, max_length: int, skipped: Counter[str]
) -> list[Example]:
    rows = {row.id: row for row in read_rows(reader.rows, KEPT)}
    examples = []
    for scored in reader:
        row = _tokenised(rows.pop(scored.row_id), tokenizer, max_length, skipped)
        if row is not None:
            teacher = alignment.move(scored, row)
            examples.append(Example(row.row_id, row.ids, row.response_start, *teacher))
    if rows:
        skipped["not scored by the teacher"] += len(rows)
    return examples


def _tokenised(row: Row, tokenizer: Any, max_length: int, skipped: Counter[str]) -> TokenisedRow | None:
    tokenised = tokenise(row, tokenizer, max_length)
    if isinstance(tokenised, Skipped):
        skipped[tokenised.reason] += 1
        return None
    return tokenised
