"""The scoring program: tokenises and plans once, has the missing shards scored by one engine or several, sums up.

python -m tasks.logits.program FOLDER

Any number of these work on one store side by side, and each may run several engines: all claim the shards that they
score (`tasks.logits.scorer`). One engine runs in this process; several run beside each other in processes of their own.
"""

from __future__ import annotations

import functools
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from infra import devices
from infra.errors import ConfigurationError
from infra.processes import child
from infra.processes.shares import Share, shares
from infra.store import storage
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.engines.device import capability
from tasks.engines.pieces import work_side_by_side
from tasks.engines.progress import Progress
from tasks.logits.agenda import write_agenda
from tasks.logits.coverage import CoverageCounter
from tasks.logits.parallel import scoring_engines, scoring_parallel
from tasks.logits.scorer import REFUSED, Job, check_engine, score
from tasks.logits.settings import Scoring
from tasks.logits.shards import Shard, plan
from tasks.logits.store.reader import ShardError, read_shard, write_tokenizer
from tasks.models import ModelSource, load_tokenizer
from tasks.precision import note
from tasks.rows import KEPT, Row, Turns, heldout_rows, read_rows
from tasks.text.categories import TaskCategories, is_of
from tasks.tokens.rows import Skipped, TokenisedRow, tokenise, within
from tasks.tokens.spans import REWRITTEN, unsupervised_fact
from tasks.tokens.written import check_same_tokens, is_written, read_written

SCORER = "tasks.logits.scorer"
_NAMED_ROWS = 20


def main(spec: dict[str, Any], reporter: child.Reporter) -> dict[str, Any]:
    """Score all rows; returns counts and the coverage of the whole store."""
    work = Workspace.from_description(spec["workspace"])
    scoring = Scoring.model_validate(spec["scoring"])
    teacher = ModelSource.model_validate(spec["teacher"])
    k: int = spec["k"]
    longest = min(scoring.max_length, teacher.context() - 1)  # the engine generates a token that nobody reads
    given = ArtifactRef.model_validate(spec["rows"])
    wanted = TaskCategories.of(spec)
    cut = _as_tokens(given, spec.get("heldout"), teacher, longest, spec["turns"], wanted)
    rows, categories, skipped = _usable(cut)
    if not rows and wanted and not skipped:  # of a round's answers none may be of a teacher's categories
        write_tokenizer(work, teacher)
        return _of_no_rows(k, scoring)
    if not rows:
        raise ConfigurationError(f"no row is usable for the teacher: {dict(skipped)}")
    shards = plan(rows, scoring.tokens_per_shard)
    damaged: list[str] = []
    missing = [shard for shard in shards if not _is_whole(work, shard, damaged)]
    total = sum(shard.supervised_tokens for shard in shards)
    supervised = {shard.name: shard.supervised_tokens for shard in missing}
    engines = 0
    if missing:  # a teacher that does not fit, or cannot run here, is refused before it is fetched
        if not scoring.is_elsewhere:
            check_engine(scoring, teacher)
        if scoring.engine == "vllm" and (told := note(scoring.dtype, capability())):
            reporter.note(told)
        gpus = devices.here()
        parallel = scoring_parallel(scoring, teacher, gpus, reporter.note)
        engines = min(scoring_engines(scoring, parallel, gpus), len(missing))
        scoring = scoring.model_copy(update={"tensor_parallel": parallel})
    progress = Progress(reporter, engines, total - sum(supervised.values()), total)
    job = Job(work, teacher, k, scoring, max(len(row.ids) for row in rows), supervised)
    if engines > 1:
        parts = shares(engines, max(1, scoring.gpus_each))  # processes that ask a server have a core
        claims = score_side_by_side(job, missing, parts, reporter.folder / "agenda", progress)
    else:
        rows_of = {shard.name: shard.rows for shard in missing}
        claims = score(job, rows_of.__getitem__, reporter, functools.partial(progress.hear, 0))
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
        "tokens_s": round(progress.tokens_s) if progress.tokens else None,
        "shards_found": len(shards) - len(missing),
        "shards_repaired": damaged,
        "skipped": dict(skipped),
        **unsupervised_fact({REWRITTEN: sum(row.unsupervised for row in rows)}),
        "refused_rows": list(refused)[:_NAMED_ROWS],
        "engine": scoring.engine,
        "engines": engines,
        "claims_per_shard": round(claims / len(missing), 2) if missing else None,
    }
    return {"counts": counts, "facts": facts}


def _of_no_rows(k: int, scoring: Scoring) -> dict[str, Any]:
    """What is said of a store that has nothing in it."""
    coverage = {**CoverageCounter(k).summary(), "warning": None}
    facts = {"coverage": coverage, "shards_repaired": [], "skipped": {}, "engine": scoring.engine}
    return {"counts": dict.fromkeys(("rows", "tokens", "shards", "skipped"), 0), "facts": facts}


def score_side_by_side(
    job: Job, shards: Sequence[Shard], parts: Sequence[Share], agenda: Path, progress: Progress
) -> int:
    """Score these shards by an engine on each part of the machine; how often one was asked for.

    The teacher is fetched once, before them, where it is to be here.
    """
    write_agenda(agenda, shards)
    teacher = job.teacher
    if not job.scoring.is_elsewhere:
        teacher = ModelSource(name=teacher.name, path=str(teacher.fetch()))

    spec = {**replace(job, teacher=teacher).spec(), "agenda": str(agenda)}
    results = work_side_by_side("logits-engine", SCORER, spec, parts, progress)
    return sum(result["claims"] for result in results)


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


def _usable(
    rows: Iterable[tuple[Row, TokenisedRow | Skipped]],
) -> tuple[list[TokenisedRow], dict[str, str], Counter[str]]:
    """The usable rows, the task category of each row id, and how many rows were skipped for what."""
    tokenised, categories, skipped = [], {}, Counter[str]()
    for row, one in rows:
        if isinstance(one, Skipped):
            skipped[one.reason] += 1
        else:
            tokenised.append(replace(one, ids=array("i", one.ids)))  # 4 bytes a token: all rows are in memory
            categories[one.row_id] = row.task_category
    return tokenised, categories, skipped


def _as_tokens(
    rows: ArtifactRef,
    heldout: dict[str, Any] | None,
    teacher: ModelSource,
    max_length: int,
    turns: Turns,
    wanted: TaskCategories | None,
) -> Iterator[tuple[Row, TokenisedRow | Skipped]]:
    """Training rows, or the held-out rows of seeds, as the teacher cuts them; a student's answers as it wrote them.

    Of `wanted` categories where there are such. Raises ConfigurationError where those are not in the teacher's tokens.
    """
    if is_written(rows):
        check_same_tokens(rows, teacher)
        for written in read_written(rows):
            if is_of(wanted, written.row.task_category):
                yield written.row, within(written.tokens, max_length)
        return
    tokenizer = load_tokenizer(teacher)
    for row in heldout_rows(rows, heldout["max_rows"]) if heldout else read_rows(rows, KEPT):
        if is_of(wanted, row.task_category):
            yield row, tokenise(row, tokenizer, max_length, turns)


if __name__ == "__main__":
    child.run(main, Path(sys.argv[-1]))
