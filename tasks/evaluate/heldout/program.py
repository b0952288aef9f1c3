"""The evaluation program: variants on the held-out rows, each kept as it is done.

python -m tasks.evaluate.heldout.program FOLDER

First all variants answer (`answering`: vLLM has the devices to itself), then all are scored against the teacher, side
by side. Both steps of a variant are kept over kills.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infra import devices
from infra.errors import ConfigurationError
from infra.processes import child
from infra.sandbox.sql import ReadOnlyDatabase
from infra.store.artifacts import ArtifactRef, Workspace, digest_of
from tasks.engines.device import capability
from tasks.engines.generation import Generated
from tasks.engines.sizes import known_size
from tasks.evaluate.heldout import predictions, scoring
from tasks.evaluate.heldout.answering import KeptAnswers, answer_all
from tasks.evaluate.heldout.execution import mark
from tasks.evaluate.heldout.groups import batch_bytes, groups, room
from tasks.evaluate.heldout.prepared import Prepared, prepare_rows, usable
from tasks.evaluate.heldout.scoring import load_model
from tasks.evaluate.heldout.teachers import RowScore, TeacherView, loaded_teacher, no_teacher, stored_teacher
from tasks.evaluate.heldout.together import Candidate, KeptScores, score_together
from tasks.evaluate.parallel import most_parallel
from tasks.evaluate.settings import Evaluation
from tasks.logits.store.reader import TopKReader
from tasks.models import ModelSource
from tasks.precision import note
from tasks.rows import Row, heldout_rows
from tasks.seeds.stage import open_databases
from tasks.tokens.alignment import Alignment, vocabulary_of
from tasks.tokens.rows import TokenisedRow, tokenizer_digests

METRICS, PREDICTIONS = "metrics.json", "predictions.parquet"
NO_NUMBER = "without a number from the model or its teacher"
_NAMED_ROWS = 20


@dataclass(frozen=True)
class _Variant:
    """`tokens` are the rows that it and the teacher can both take, shortest first; `skipped` the others by reason."""

    name: str
    work: Workspace
    source: ModelSource
    prepared: Prepared
    tokens: dict[str, TokenisedRow]
    skipped: dict[str, int]
    answers: KeptAnswers
    scores: KeptScores


@dataclass(frozen=True)
class _Compared:
    """What variants are compared with: a model that is loaded here, its stored scores (`store`), or nothing (None)."""

    source: ModelSource | None
    prepared: Prepared
    store: ArtifactRef | None


def main(spec: dict[str, Any], reporter: child.Reporter) -> dict[str, Any]:
    """Evaluate the variants named in the spec; each leaves its metrics and predictions in its own workspace."""
    settings = Evaluation.model_validate(spec["evaluation"])
    seeds = ArtifactRef.model_validate(spec["heldout"])
    rows = {row.id: row for row in heldout_rows(seeds, settings.max_rows)}
    teacher_source = ModelSource.model_validate(spec["teacher"]) if spec["teacher"] else None
    prepared: dict[tuple[str, int], Prepared] = {}

    def prepare(source: ModelSource) -> Prepared:
        digest, longest = digest_of(tokenizer_digests(source)), min(settings.max_length, source.context() - 1)
        if (digest, longest) not in prepared:
            prepared[digest, longest] = prepare_rows(rows.values(), source, digest, longest)
        return prepared[digest, longest]

    if told := note(settings.dtype, capability()):
        reporter.note(told)
    store = spec.get("teacher_scores")
    prepared_by = teacher_source or ModelSource.model_validate(spec["variants"][0]["model"])
    teacher = _Compared(teacher_source, prepare(prepared_by), store and ArtifactRef.model_validate(store))
    variants = [_variant(description, prepare, teacher.prepared, settings) for description in spec["variants"]]
    total = 2 * sum(len(variant.tokens) for variant in variants)
    missing = {v.name: sum(len(piece.rows) for piece in v.answers.missing()) for v in variants}
    done = sum(len(v.scores.row_ids) + len(v.tokens) - missing[v.name] for v in variants)

    def tick(variant: _Variant) -> Callable[[int], None]:
        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            reporter.progress(done, total, variant=variant.name)

        return advance

    unanswered = [variant for variant in variants if missing[variant.name]]
    longest, gpus = settings.max_length + settings.max_new_tokens, devices.here()
    # one that does not fit is refused before the first is asked
    most_parallel(settings, [variant.source for variant in unanswered], longest, gpus)
    asked = [(variant.name, variant.source, variant.work, variant.answers) for variant in unanswered]
    done = answer_all(asked, settings, gpus, reporter, done, total)
    databases = open_databases(seeds)
    for group in _scored(variants, teacher, settings, reporter, tick):
        for variant in group:
            _finish(variant, rows, settings, databases)
    return {}


def _variant(
    description: dict[str, Any], prepare: Callable[[ModelSource], Prepared], theirs: Prepared, settings: Evaluation
) -> _Variant:
    source = ModelSource.model_validate(description["model"])
    work = Workspace.from_description(description["workspace"])
    mine = prepare(source)
    tokens, skipped = usable(mine, theirs)
    answers = KeptAnswers(work, list(tokens.values()), settings.batch_rows)
    return _Variant(description["name"], work, source, mine, tokens, skipped, answers, KeptScores(work))


def _scored(
    variants: Sequence[_Variant],
    teacher: _Compared,
    settings: Evaluation,
    reporter: child.Reporter,
    tick: Callable[[_Variant], Callable[[int], None]],
) -> Iterator[list[_Variant]]:
    """Variants in groups as each is scored: first those of which a killed run left nothing to do."""
    waiting = {variant.name: variant for variant in variants if variant.tokens.keys() - variant.scores.row_ids}
    yield [variant for variant in variants if variant.name not in waiting]
    _free()
    sizes = {
        name: 0 if variant.source == teacher.source else scoring.loaded_bytes(variant.source, settings.dtype)
        for name, variant in waiting.items()
    }
    model = None  # the teacher, once it is loaded
    for names in groups(sizes, _room(waiting.values(), teacher, settings)):
        group = [waiting[name] for name in names]
        loaded = {}
        for variant in group:
            if variant.source != teacher.source:
                with reporter.loading(variant.name):
                    loaded[variant.name] = load_model(variant.source, settings.dtype)
        if teacher.source and teacher.store is None and model is None:
            with reporter.loading("the teacher"):
                model = load_model(teacher.source, settings.dtype)
        candidates = [_candidate(variant, loaded.get(variant.name), teacher, tick(variant)) for variant in group]
        score_together(candidates, _views(group, teacher, model, settings), settings.batch_rows)
        yield group
        del loaded, candidates
        _free()


def _candidate(variant: _Variant, model: Any | None, teacher: _Compared, advance: Callable[[int], None]) -> Candidate:
    same = variant.prepared.digest == teacher.prepared.digest
    theirs = None if same else teacher.source
    alignment = Alignment(vocabulary_of(theirs), vocabulary_of(variant.source)) if theirs else None
    return Candidate(model, variant.tokens, alignment, variant.scores, advance)


def _views(
    group: Sequence[_Variant], teacher: _Compared, model: Any | None, settings: Evaluation
) -> Iterator[TeacherView]:
    if teacher.source is None:
        return no_teacher(teacher.prepared.tokens.values(), settings.batch_rows, max(map(_vocabulary, group)))
    if teacher.store is None:
        return loaded_teacher(model, teacher.prepared.tokens.values(), settings.batch_rows, settings.kl_tokens)
    return stored_teacher(TopKReader(teacher.store), settings.batch_rows, max(map(_vocabulary, group)))


def _room(variants: Iterable[_Variant], teacher: _Compared, settings: Evaluation) -> int:
    """Bytes for the weights of a group."""
    longest = max((len(row.ids) for row in teacher.prepared.tokens.values()), default=0)
    vocabulary = max(map(_vocabulary, variants), default=1)
    loaded = teacher.source if teacher.store is None else None
    theirs = loaded.config()["vocab_size"] if loaded else 0
    batch = batch_bytes(longest, settings.batch_rows, vocabulary, theirs, scoring.width(settings.dtype))
    held = scoring.loaded_bytes(loaded, settings.dtype) if loaded else 0
    return room(scoring.free_bytes(), held, batch)


def _vocabulary(variant: _Variant) -> int:
    size: int = variant.source.config()["vocab_size"]
    return size


def _free() -> None:
    """Let go of models that nobody holds any more, on the devices too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _finish(
    variant: _Variant, rows: dict[str, Row], settings: Evaluation, databases: dict[str, ReadOnlyDatabase]
) -> None:
    """From answers and scores, the artifact's files."""
    started = time.monotonic()
    (answers, answering_s, tokens_s), scores = variant.answers.read(), variant.scores.read()
    kept = [
        _row(rows[row_id], variant.tokens[row_id], scores[row_id], answers[row_id], databases)
        for row_id in variant.tokens
        if row_id in scores
    ]
    unstored = [row_id for row_id in variant.tokens if row_id not in scores]
    if not kept:
        raise ConfigurationError(f"the teacher's scores hold none of the held-out rows of {variant.name!r}")
    unscored, skipped = [*unstored, *predictions.without_numbers(kept)], dict(variant.skipped)
    if unscored:
        skipped[NO_NUMBER] = len(unscored)
    table = predictions.to_parquet([row for row in kept if row["row_id"] not in unscored])
    variant.work.put(PREDICTIONS, table)
    seconds = round(answering_s + variant.scores.seconds + time.monotonic() - started, 2)
    metrics = predictions.summary(predictions.from_parquet(table))
    about: dict[str, Any] = {"skipped": skipped, "seconds": seconds, "engine": settings.engine}
    about["vocabulary"] = [tokenizer_digests(variant.source)["vocabulary"], _vocabulary(variant)]
    if size := known_size(variant.source):
        about["parameters"] = size.parameters
    if tokens_s is not None:
        about["tokens_s"] = round(tokens_s, 1)
    if unscored:
        about["unscored_rows"] = unscored[:_NAMED_ROWS]
    if settings.teacher == "topk":
        about["compared_with_top"] = settings.kl_tokens
    variant.work.put_json(METRICS, {**metrics, **about})
    variant.answers.delete()
    variant.scores.delete()


def _row(
    row: Row, tokens: TokenisedRow, scored: RowScore, answers: dict[str, Any], databases: dict[str, ReadOnlyDatabase]
) -> dict[str, Any]:
    """All that is kept of one row."""
    greedy = Generated(**answers["greedy"])
    marked = mark(row, greedy.text, databases)
    binned, confidence, hits = scored.calibration
    return {
        "row_id": row.id,
        "instruction": row.instruction,
        "input": row.input,
        "reference": row.response_text,
        "task_category": row.task_category,
        "language": row.language,
        "generated": greedy.text,
        "generated_tokens": greedy.tokens,
        "truncated": greedy.truncated,
        "correct": marked.correct,
        "wrong_result": marked.wrong_result,
        "samples": answers["samples"],
        "samples_correct": [mark(row, text, databases).correct for text in answers["samples"]],
        "response_tokens": tokens.supervised_tokens,
        "nll": scored.nll,
        "kl_tokens": scored.kl_tokens,
        "kl_to_teacher": scored.kl_to_teacher,
        "topk_kl": scored.topk_kl,
        "top1_agreed": scored.top1_agreed,
        "accepted": scored.accepted,
        "calibration_tokens": binned,
        "calibration_confidence": confidence,
        "calibration_hits": hits,
    }


if __name__ == "__main__":
    child.run(main, Path(sys.argv[-1]))
