"""The scoring program: starts the engine once, scores the shards that are missing, uploads each as it is done.

python -m tasks.logits.program FOLDER

Any number of these work on one store side by side: each claims a shard in storage before it scores it, and ends
when all shards are there, whoever scored them.
"""

from __future__ import annotations

import itertools
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from infra import devices
from infra.errors import ConfigurationError
from infra.processes import child
from infra.store import storage
from infra.store.artifacts import ArtifactRef, Workspace
from infra.store.claims import Claims, Pauses
from tasks.engines.device import capability, dtype_here
from tasks.engines.quantised import check_device, check_transformers
from tasks.engines.scoring import Engine, TransformersEngine, VLLMEngine, vllm_options
from tasks.logits.coverage import CoverageCounter
from tasks.logits.parallel import scoring_parallel
from tasks.logits.settings import Scoring
from tasks.logits.shards import Shard, plan
from tasks.logits.store.reader import ShardError, read_shard, write_shard, write_tokenizer
from tasks.models import ModelSource, load_tokenizer
from tasks.precision import note
from tasks.rows import KEPT, Row, Turns, read_rows
from tasks.tokens.rows import Skipped, TokenisedRow, cut, tokenise, within
from tasks.tokens.scored import ScoredRow
from tasks.tokens.spans import REWRITTEN, unsupervised_fact
from tasks.tokens.written import check_same_tokens, is_written, read_written

CLAIMS, REFUSED = "claims/", "refused/"
_NAMED_ROWS = 20
_TOKENS_PER_CALL = 16_384  # several steps of the engine: it idles between calls


def main(spec: dict[str, Any], reporter: child.Reporter) -> dict[str, Any]:
    """Score all rows; returns counts and the coverage of the whole store."""
    work = Workspace.from_description(spec["workspace"])
    scoring = Scoring.model_validate(spec["scoring"])
    teacher = ModelSource.model_validate(spec["teacher"])
    k: int = spec["k"]
    longest = min(scoring.max_length, teacher.context() - 1)  # the engine generates a token that nobody reads
    rows, categories, skipped = _tokenised(ArtifactRef.model_validate(spec["rows"]), teacher, longest, spec["turns"])
    if not rows:
        raise ConfigurationError(f"no row is usable for the teacher: {dict(skipped)}")
    shards = plan(rows, scoring.tokens_per_shard)
    damaged: list[str] = []
    missing = [shard for shard in shards if not _is_whole(work, shard, damaged)]
    total = sum(shard.supervised_tokens for shard in shards)
    found = total - sum(shard.supervised_tokens for shard in missing)
    scored_tokens, seconds = 0, 0.0
    with Claims(work.uri + CLAIMS) as claims:
        queue = Queue(work, missing, claims)
        ours = iter(queue)
        if (first := next(ours, None)) is not None:
            if scoring.engine == "vllm" and (told := note(scoring.dtype, capability())):
                reporter.note(told)
            with reporter.loading(scoring.engine):
                engine = _engine(scoring, teacher, k, max(len(row.ids) for row in rows), reporter)
            started = time.monotonic()

            def on_progress(tokens: int, supervised: int) -> None:
                speed = tokens / (time.monotonic() - started)
                reporter.progress(found + queue.by_others + supervised, total, tokens_s=speed)

            with child.abort_if_a_child_dies(reporter.folder, "the teacher's engine"):
                shards_to_score = itertools.chain([first], ours)
                scored_tokens = score_shards(engine, shards_to_score, work, k, scoring.max_error, on_progress)
            seconds = time.monotonic() - started
            engine.close()
    write_tokenizer(work, teacher)
    coverage, stored_bytes = CoverageCounter(k), 0
    refused = {row_id: None for shard in shards for row_id in _refused(work, shard)}  # in order
    if len(refused) == len(rows):
        raise ConfigurationError("the teacher gives numbers for no row: its weights, or their dtype, are broken")
    total -= sum(row.supervised_tokens for row in rows if row.row_id in refused)
    if refused:
        skipped["the teacher gives no number for it"] += len(refused)
    for shard in shards:
        size, scored = read_shard(work, shard.name)
        stored_bytes += size
        for row in scored:
            for _span, part in row.parts():
                coverage.add(row.logprobs_RK[part], categories[row.row_id])
    counts = {
        "rows": len(rows) - len(refused),
        "tokens": total,
        "shards": len(shards),
        "skipped": sum(skipped.values()),
    }
    facts = {
        "coverage": coverage.summary(),
        "bytes_per_token": round(stored_bytes / total, 1),
        "tokens_s": round(scored_tokens / seconds) if scored_tokens else None,
        "shards_found": len(shards) - len(missing),
        "shards_repaired": damaged,
        "skipped": dict(skipped),
        **unsupervised_fact({REWRITTEN: sum(row.unsupervised for row in rows)}),
        "refused_rows": list(refused)[:_NAMED_ROWS],
        "engine": scoring.engine,
    }
    return {"counts": counts, "facts": facts}


class Queue:
    """The shards that are not stored yet, each claimed for us while we have it; over when all are stored."""

    def __init__(self, work: Workspace, shards: Sequence[Shard], claims: Claims):
        self.by_others = 0  # supervised tokens
        self._work = work
        self._left = list(shards)
        self._claims = claims

    def __iter__(self) -> Iterator[Shard]:
        pauses = Pauses()
        while self._left:
            waiting = []
            for shard in self._left:
                if self._is_stored(shard):
                    self.by_others += shard.supervised_tokens
                elif not self._claims.take(shard.name):
                    waiting.append(shard)
                else:
                    pauses = Pauses()
                    if self._is_stored(shard):  # since we looked
                        self.by_others += shard.supervised_tokens
                    else:
                        yield shard
                    self._claims.release(shard.name)
            self._left = waiting
            if waiting:
                time.sleep(pauses.next())

    def _is_stored(self, shard: Shard) -> bool:
        return self._work.has(shard.name)


def score_shards(
    engine: Engine,
    shards: Iterable[Shard],
    work: Workspace,
    k: int,
    max_error: float,
    on_progress: Callable[[int, int], None],
) -> int:
    """Score these shards and put each into the store as it is done; returns the tokens that were scored.

    A row for which the teacher gives no numbers (NaN) is left out, and named beside its shard.

    `on_progress` hears, after each batch, the tokens scored and the supervised tokens among them so far.
    """
    tokens = supervised = 0
    for shard in shards:
        scored = []
        for batch in cut(shard.rows, _TOKENS_PER_CALL):
            scored.extend(engine.score(batch, k))
            tokens += sum(len(row.ids) for row in batch)
            supervised += sum(row.supervised_tokens for row in batch)
            on_progress(tokens, supervised)
        if bad := [row.row_id for row in scored if not _in_numbers(row)]:
            work.put_json(REFUSED + shard.name, bad)
        write_shard(work, shard.name, [row for row in scored if _in_numbers(row)], max_error)
    return tokens


def _in_numbers(row: ScoredRow) -> bool:
    """−inf is a number here: a probability of 0."""
    return bool(np.isfinite(row.logprobs_RK[:, 0]).all()) and not (
        np.isnan(row.logprobs_RK).any() or np.isnan(row.actual_logprobs_R).any()
    )


def _refused(work: Workspace, shard: Shard) -> list[str]:
    """Rows of a stored shard that have no numbers."""
    return list(work.get_json(REFUSED + shard.name)) if work.has(REFUSED + shard.name) else []


def _is_whole(work: Workspace, shard: Shard, damaged: list[str]) -> bool:
    """Whether the shard was stored before; one that cannot be read is noted in `damaged`, and scored again."""
    if not work.has(shard.name):
        return False
    try:
        _size, scored = read_shard(work, shard.name)
        refused = set(_refused(work, shard))
        if [row.row_id for row in scored] == [row.row_id for row in shard.rows if row.row_id not in refused]:
            return True
        damaged.append(f"shard {work.uri}{shard.name} holds other rows than it should")
    except ShardError as error:
        damaged.append(str(error))
    storage.delete(work.uri + shard.name)
    return False


def _tokenised(
    rows: ArtifactRef, teacher: ModelSource, max_length: int, turns: Turns
) -> tuple[list[TokenisedRow], dict[str, str], Counter[str]]:
    """The usable rows, the task category of each row id, and how many rows were skipped for what."""
    tokenised, categories, skipped = [], {}, Counter[str]()
    for row, one in _as_tokens(rows, teacher, max_length, turns):
        if isinstance(one, Skipped):
            skipped[one.reason] += 1
        else:
            tokenised.append(replace(one, ids=array("i", one.ids)))  # 4 bytes a token: all rows are in memory
            categories[one.row_id] = row.task_category
    return tokenised, categories, skipped


def _as_tokens(
    rows: ArtifactRef, teacher: ModelSource, max_length: int, turns: Turns
) -> Iterator[tuple[Row, TokenisedRow | Skipped]]:
    """Rows as the teacher cuts them; a student's answers as it wrote them (ConfigurationError: not its tokens)."""
    if is_written(rows):
        check_same_tokens(rows, teacher)
        for written in read_written(rows):
            yield written.row, within(written.tokens, max_length)
        return
    tokenizer = load_tokenizer(teacher)
    for row in read_rows(rows, KEPT):
        yield row, tokenise(row, tokenizer, max_length, turns)


def _engine(scoring: Scoring, teacher: ModelSource, k: int, longest: int, reporter: child.Reporter) -> Engine:
    config, on_gpu = teacher.json_file("config.json"), capability() is not None
    check_device(teacher.name, config, on_gpu=on_gpu)
    if scoring.engine == "transformers":
        check_transformers(teacher.name, config, "scoring.engine=transformers")
        return TransformersEngine(teacher.fetch(), "float32" if scoring.dtype == "auto" else scoring.dtype)
    dtype = dtype_here(scoring.dtype, config, "scoring.dtype=bfloat16")
    # a teacher that does not fit is refused before it is fetched
    parallel = scoring_parallel(scoring, teacher, devices.here(), reporter.note)
    options = vllm_options(on_gpu, dtype, parallel, scoring.gpu_memory, scoring.max_batched_tokens)
    return VLLMEngine(teacher.fetch(), k, longest, options)


if __name__ == "__main__":
    child.run(main, Path(sys.argv[-1]))
