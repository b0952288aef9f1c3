"""The scoring program: starts the engine once, scores the shards that are missing, uploads each as it is done.

python -m tasks.logits.program FOLDER
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from infra import child
from infra.artifacts import ArtifactRef, Workspace
from infra.errors import ConfigurationError
from infra.models import ModelSource, load_tokenizer
from tasks.logits.coverage import Coverage
from tasks.logits.engines import Engine, TransformersEngine, VLLMEngine, vllm_options
from tasks.logits.settings import Scoring
from tasks.logits.store import SHARDS, decode_shard, encode_shard
from tasks.rows import KEPT, read_rows
from tasks.tokens import Skipped, TokenisedRow, tokenise

_ROWS_PER_CALL = 64


def main(spec: dict[str, Any], reporter: child.Reporter) -> dict[str, Any]:
    """Score all rows; returns counts and the coverage of the whole store."""
    work = Workspace.from_description(spec["workspace"])
    scoring = Scoring.model_validate(spec["scoring"])
    teacher = ModelSource.model_validate(spec["teacher"])
    k: int = spec["k"]
    rows, skipped = _tokenised(ArtifactRef.model_validate(spec["rows"]), teacher, scoring.max_length)
    if not rows:
        raise ConfigurationError(f"no row is usable for the teacher: {dict(skipped)}")
    size = scoring.rows_per_shard
    shards = [rows[start : start + size] for start in range(0, len(rows), size)]
    names = [f"{SHARDS}{index:05}.parquet" for index in range(len(shards))]
    missing = [index for index, name in enumerate(names) if not work.has(name)]
    total = sum(row.response_tokens for row in rows)
    done = total - sum(row.response_tokens for index in missing for row in shards[index])
    scored_tokens, seconds = 0, 0.0
    if missing:
        reporter.event("starting", engine=scoring.engine)
        engine = _engine(scoring, teacher, k, max(len(row.ids) for row in rows))
        started = time.monotonic()
        with child.abort_if_a_child_dies(reporter.folder, "the teacher's engine"):
            for index in missing:
                scored = []
                for batch in _batches(shards[index]):
                    scored.extend(engine.score(batch, k))
                    done += sum(row.response_tokens for row in batch)
                    scored_tokens += sum(len(row.ids) for row in batch)
                    reporter.progress(done, total, tokens_s=scored_tokens / (time.monotonic() - started))
                work.put(names[index], encode_shard(scored))
        seconds = time.monotonic() - started
    coverage = Coverage()
    stored_bytes = 0
    for name in names:
        data = work.read(name)
        stored_bytes += len(data)
        for row in decode_shard(data):
            coverage.add(row.logprobs_RK)
    counts = {"rows": len(rows), "tokens": total, "shards": len(names), "skipped": sum(skipped.values())}
    facts = {
        "coverage": coverage.summary(k),
        "bytes_per_token": round(stored_bytes / total, 1),
        "tokens_s": round(scored_tokens / seconds) if scored_tokens else None,
        "shards_found": len(names) - len(missing),
        "skipped": dict(skipped),
        "engine": scoring.engine,
    }
    return {"counts": counts, "facts": facts}


def _tokenised(rows: ArtifactRef, teacher: ModelSource, max_length: int) -> tuple[list[TokenisedRow], Counter[str]]:
    """All rows, by length (little padding, and the same shards whatever the order of the input)."""
    tokenizer = load_tokenizer(teacher)
    tokenised, skipped = [], Counter[str]()
    for row in read_rows(rows, KEPT):
        one = tokenise(row, tokenizer, max_length)
        if isinstance(one, Skipped):
            skipped[one.reason] += 1
        else:
            tokenised.append(one)
    return sorted(tokenised, key=lambda row: (len(row.ids), row.row_id)), skipped


def _batches(rows: list[TokenisedRow]) -> Iterator[list[TokenisedRow]]:
    for start in range(0, len(rows), _ROWS_PER_CALL):
        yield rows[start : start + _ROWS_PER_CALL]


def _engine(scoring: Scoring, teacher: ModelSource, k: int, longest: int) -> Engine:
    folder = teacher.fetch()
    if scoring.engine == "transformers":
        return TransformersEngine(folder)
    options = vllm_options(
        torch.cuda.is_available(), scoring.tensor_parallel, scoring.gpu_memory, scoring.max_batched_tokens
    )
    return VLLMEngine(folder, k, longest, options)


if __name__ == "__main__":
    child.run(main, Path(sys.argv[-1]))
