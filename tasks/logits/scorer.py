"""One engine that scores: in the program's own process where it is alone, else in one of several side by side.

python -m tasks.logits.scorer FOLDER

Any number of these work on one store, of one machine or of many: each claims a shard in storage before it scores it,
and ends when all shards are there, whoever scored them.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infra.processes import child
from infra.store.artifacts import Workspace
from infra.store.claims import Claims
from tasks.engines.device import capability, dtype_here
from tasks.engines.pieces import CLAIMS, Queue, Tell
from tasks.engines.quantised import check_device, check_transformers
from tasks.engines.scoring import Engine, TransformersEngine, VLLMEngine, vllm_options
from tasks.engines.server import ServerEngine, connect
from tasks.logits.agenda import rows_of
from tasks.logits.parallel import check_spread
from tasks.logits.settings import Scoring
from tasks.logits.shards import Shard
from tasks.logits.store.reader import write_shard
from tasks.models import ModelSource
from tasks.tokens.rows import TokenisedRow, cut
from tasks.tokens.scored import ScoredRow

REFUSED = "refused/"
_TOKENS_PER_CALL = 16_384  # several steps of the engine: it idles between calls


@dataclass(frozen=True)
class Job:
    """What every engine of a machine is told.

    `longest` is the longest row in tokens; `supervised` has the missing shards, each with its supervised tokens.
    """

    work: Workspace
    teacher: ModelSource
    k: int
    scoring: Scoring
    longest: int
    supervised: Mapping[str, int]

    def spec(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "workspace": self.work.description(),
            "teacher": self.teacher.model_dump(),
            "k": self.k,
            "scoring": self.scoring.model_dump(),
            "longest": self.longest,
            "supervised": dict(self.supervised),
        }

    @staticmethod
    def of(spec: Mapping[str, Any]) -> Job:
        return Job(
            Workspace.from_description(spec["workspace"]),
            ModelSource.model_validate(spec["teacher"]),
            spec["k"],
            Scoring.model_validate(spec["scoring"]),
            spec["longest"],
            spec["supervised"],
        )


def main(spec: dict[str, Any], reporter: child.Reporter) -> dict[str, Any]:
    """Score beside others; returns how often a shard was asked for."""
    rows = functools.partial(rows_of, Path(spec["agenda"]))
    return {"claims": score(Job.of(spec), rows, reporter, reporter.event)}


def score(job: Job, rows: Callable[[str], Sequence[TokenisedRow]], reporter: child.Reporter, tell: Tell) -> int:
    """Score what nobody else has, until all is stored; the engine starts once there is something for it to do.

    `rows` gives those of a shard by its name. `tell` hears what `tasks.engines.progress` understands. Returns how often
    a shard was asked for.
    """
    with Claims(job.work.uri + CLAIMS) as claims:
        queue = Queue(job.work, job.supervised, claims, tell)
        names = iter(queue)
        if (first := next(names, None)) is not None:
            with reporter.loading(job.scoring.engine):
                engine = make_engine(job)
            tell("begun")

            def on_progress(tokens: int, supervised: int) -> None:
                tell("working", tokens=tokens, partial=supervised - queue.by_us)

            with child.abort_if_a_child_dies(reporter.folder, "the teacher's engine"):
                shards = (Shard(name, rows(name)) for name in itertools.chain([first], names))
                score_shards(engine, shards, job.work, job.k, job.scoring.max_error, on_progress)
            engine.close()
    return queue.asked


def check_engine(scoring: Scoring, teacher: ModelSource) -> str:
    """The dtype that the engine is told; ConfigurationError where it cannot compute in it, or run the teacher, here."""
    config = teacher.json_file("config.json")
    check_device(teacher.name, config, on_gpu=capability() is not None)
    check_spread(scoring, teacher, on_gpu=capability() is not None)
    if scoring.engine == "transformers":
        check_transformers(teacher.name, config, "scoring.engine=transformers", "use vllm")
        return "float32" if scoring.dtype == "auto" else scoring.dtype
    return dtype_here(scoring.dtype, config, "scoring.dtype=bfloat16")


def make_engine(job: Job) -> Engine:
    scoring = job.scoring
    if scoring.server:
        return ServerEngine(connect(scoring.server, scoring.server_model, job.teacher, job.k, job.longest))
    dtype = check_engine(scoring, job.teacher)
    if scoring.engine == "transformers":
        return TransformersEngine(job.teacher.fetch(), dtype)
    on_gpu, parallel, parts = capability() is not None, scoring.tensor_parallel, scoring.pipeline_parallel
    options = vllm_options(on_gpu, dtype, parallel, scoring.gpu_memory, scoring.max_batched_tokens, parts)
    return VLLMEngine(job.teacher.fetch(), job.k, job.longest, options)


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


if __name__ == "__main__":
    child.run(main, Path(sys.argv[-1]))
