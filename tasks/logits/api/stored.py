"""What a teacher behind an API told of its answers, as a top-K store that any student reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from infra.stage import Made, OneArtifact, View
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace
from tasks.logits.api.spoken import TURN, Answer, ToldTokens, answer_of
from tasks.logits.api.stage import TOLD
from tasks.logits.coverage import CoverageCounter
from tasks.logits.settings import Scoring
from tasks.logits.stage import KIND, STAGE_VERSION, shown_store
from tasks.logits.store.reader import SHARDS, TOKENIZER, write_shard
from tasks.rows import KEPT, Row, from_parquet
from tasks.tokens.rows import cut
from tasks.tokens.scored import ScoredRow

_ROWS_AT_ONCE = 50


def read_answers(ref: ArtifactRef, k: int) -> Iterator[tuple[Row, Answer]]:
    """The rows of an artifact with what was told of their responses, some at a time, digests checked."""
    for _name, data in ArtifactReader(ref).stream(KEPT):
        batches = pq.ParquetFile(pa.BufferReader(data)).iter_batches(_ROWS_AT_ONCE, columns=[TOLD])
        told = (text for batch in batches for text in batch[TOLD].to_pylist())
        for row, text in zip(from_parquet(data), told, strict=True):
            tokens, stopped = json.loads(text)
            yield row, answer_of(row.response, tokens, k, stopped=stopped)


class StoreAnswers(OneArtifact):
    """What the teacher told of its answers as a top-K store, in its own tokens as far as they were seen.

    Each student reads it as one of a teacher with another tokenizer: token by token where both cut the text alike.
    """

    kind: ClassVar = "api_scores"
    makes: ClassVar = (KIND,)
    doing: ClassVar = "storing what the teacher told"

    answers: ArtifactRef
    model: str
    k: int
    scoring: Scoring

    @property
    def title(self) -> str:
        return KIND

    def workspace(self) -> Workspace:
        spec = {
            "teacher": f"api:{self.model}",
            "k": self.k,
            "max_error": self.scoring.max_error,
            "tokens_per_shard": self.scoring.tokens_per_shard,
            "tokenizer": {"vocabulary": f"api:{self.model}"},
        }
        return Workspace(KIND, STAGE_VERSION, spec, {"rows": self.answers})

    def make_in(self, work: Workspace, view: View) -> ArtifactRef:
        vocabulary = ToldTokens(answer for _row, answer in read_answers(self.answers, self.k))
        work.put_json(TOKENIZER, {"tokenizer_json": vocabulary.tokenizer_json(), "turn": vars(TURN)})
        coverage, counts, stored = CoverageCounter(self.k), Counter[str](), 0

        def scored() -> Iterator[ScoredRow]:
            for row, answer in read_answers(self.answers, self.k):
                one = vocabulary.scored(row.id, answer, self.k)
                coverage.add(one.logprobs_RK, row.task_category)
                counts.update(rows=1, tokens=len(one.ids), ends=answer.end is not None)
                yield one

        for number, shard in enumerate(cut(scored(), self.scoring.tokens_per_shard)):
            write_shard(work, name := f"{SHARDS}{number:05}.topk", shard, self.scoring.max_error)
            stored += len(work.read(name))
            view.tick(counts["rows"], self.answers.counts["rows"])
            counts["shards"] += 1
        facts = {
            "coverage": coverage.summary(),
            "bytes_per_token": round(stored / counts["tokens"], 1),
            "skipped": {},
            "engine": "api",
            "ends_told": counts.pop("ends"),
        }
        return work.publish((SHARDS, TOKENIZER), {**counts, "skipped": 0}, facts)

    def show(self, made: Made, view: View) -> str:
        return shown_store(made.shown, self.k, view)
