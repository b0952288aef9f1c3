"""The stage around the scoring program: its identity, its supervised process, its artifact."""

from __future__ import annotations

from typing import Any

from infra.processes import program
from infra.processes.supervise import Event, run_supervised
from infra.processes.vllm_environment import vllm_environment
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.logits.settings import Scoring
from tasks.logits.store.reader import SHARDS, TOKENIZER
from tasks.models import ModelSource
from tasks.tokens.rows import tokenizer_digests

KIND = "logits"
STAGE_VERSION = 4
_STALL_TIMEOUT_S = 1800.0  # a large teacher takes long to load


def workspace(rows: ArtifactRef, teacher: ModelSource, k: int, scoring: Scoring) -> Workspace:
    """The store of the teacher's top `k` on `rows`; independent of the student and of any training."""
    spec = {
        "teacher": teacher.identity(),
        "k": k,
        "max_length": scoring.max_length,
        "max_error": scoring.max_error,
        "tokens_per_shard": scoring.tokens_per_shard,
        "tokenizer": tokenizer_digests(teacher),
    }
    return Workspace(KIND, STAGE_VERSION, spec, {"rows": rows})


def score(
    work: Workspace, rows: ArtifactRef, teacher: ModelSource, k: int, scoring: Scoring, on_event: Any
) -> ArtifactRef:
    """Score in a supervised process; finished shards are kept over kills and retries."""
    spec = {
        "rows": rows.model_dump(),
        "teacher": teacher.model_dump(),
        "k": k,
        "scoring": scoring.model_dump(),
        "workspace": work.description(),
    }
    result = run_supervised(
        KIND,
        program.command("tasks.logits.program"),
        spec,
        on_event=on_event,
        env=vllm_environment(),
        stall_timeout_s=_STALL_TIMEOUT_S,
        timeout_h=scoring.timeout_h,
        log_uri=f"{work.uri}log.txt",
    )
    return work.publish((SHARDS, TOKENIZER), result["counts"], result["facts"])


def describe(event: Event) -> str:
    """A progress event as a short note."""
    return f"{event['tokens_s']:,.0f} tokens/s"
