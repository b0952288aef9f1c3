"""The evaluation program: one variant after the other on the held-out rows, each kept as it is done.

python -m tasks.evaluate.heldout.program FOLDER

First all variants answer (vLLM has the device to itself, one engine at a time), then all are scored against the
teacher. Both steps of a variant are kept over kills.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import devices
from infra.errors import ConfigurationError
from infra.processes import child
from infra.store import storage
from infra.store.artifacts import ArtifactRef, Workspace, digest_of
from tasks.engines.device import capability
from tasks.engines.generation import Ends, Generated, Generator, Prompt, Sampling, TransformersGenerator, vllm_generator
from tasks.evaluate.heldout import predictions
from tasks.evaluate.heldout.execution import mark
from tasks.evaluate.heldout.scoring import RowScore, Task, batches, load_model, score
from tasks.evaluate.parallel import generation_parallel, most_parallel
from tasks.evaluate.settings import Evaluation
from tasks.models import ModelSource, load_tokenizer
from tasks.precision import note
from tasks.rows import HELDOUT, Row, read_rows
from tasks.seeds.stage import open_databases
from tasks.tokens.alignment import Alignment, vocabulary_of
from tasks.tokens.rows import Skipped, TokenisedRow, tokenise, tokenizer_digests

METRICS, PREDICTIONS = "metrics.json", "predictions.parquet"
NO_NUMBER = "without a number from the model or its teacher"
_ANSWERS = "answers.json"  # between the two steps
_NAMED_ROWS = 20


@dataclass(frozen=True)
class _Prepared:
    """Held-out rows in the tokens of a model, by row id; those that it cannot take, with the reason."""

    source: ModelSource
    tokenizer: Any
    tokens: dict[str, TokenisedRow]
    reasons: dict[str, str]


@dataclass(frozen=True)
class _Variant:
    name: str
    work: Workspace
    source: ModelSource
    prepared: _Prepared
    tasks: list[Task]
    skipped: dict[str, int]


def main(spec: dict[str, Any], reporter: child.Reporter) -> dict[str, Any]:
    """Evaluate the variants named in the spec; each leaves its metrics and predictions in its own workspace."""
    settings = Evaluation.model_validate(spec["evaluation"])
    seeds = ArtifactRef.model_validate(spec["heldout"])
    rows = sorted(read_rows(seeds, HELDOUT), key=lambda row: row.id)[: settings.max_rows]
    teacher_source = ModelSource.model_validate(spec["teacher"])
    prepared: dict[str, _Prepared] = {}

    def prepare(source: ModelSource) -> _Prepared:
        key = digest_of(tokenizer_digests(source))
        if key not in prepared:
            prepared[key] = _prepared(rows, source, min(settings.max_length, source.context() - 1))
        return prepared[key]

    theirs = prepare(teacher_source)
    if told := note(settings.dtype, capability()):
        reporter.note(told)
    variants = [_variant(description, rows, prepare, theirs) for description in spec["variants"]]
    total, done = 2 * sum(len(variant.tasks) for variant in variants), 0

    def tick(variant: _Variant) -> Callable[[int], None]:
        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            reporter.progress(done, total, variant=variant.name)

        return advance

    unanswered = [variant for variant in variants if not variant.work.has(_ANSWERS)]
    longest = settings.max_length + settings.max_new_tokens
    # one that does not fit is refused before the first is asked
    most_parallel(settings, [variant.source for variant in unanswered], longest, devices.here())
    for variant in unanswered:
        _answer(variant, settings, reporter, tick(variant))
    databases = open_databases(seeds)
    with reporter.loading("the teacher"):
        teacher = load_model(teacher_source, settings.dtype)
    for variant in variants:
        started = time.monotonic()
        answers = variant.work.get_json(_ANSWERS)
        model = teacher if variant.source == teacher_source else load_model(variant.source, settings.dtype)
        same_tokenizer = variant.prepared is theirs
        alignment = None if same_tokenizer else Alignment(vocabulary_of(teacher_source), vocabulary_of(variant.source))
        kept = []
        for batch in batches(variant.tasks, settings.batch_rows, model.config.get_text_config().vocab_size):
            for task, scored in zip(batch, score(model, teacher, batch, alignment, settings.kl_tokens), strict=True):
                kept.append(_row(task, scored, answers["rows"][task.row.id], databases))
            tick(variant)(len(batch))
        unscored, skipped = predictions.without_numbers(kept), dict(variant.skipped)
        if unscored:
            skipped[NO_NUMBER] = len(unscored)
        table = predictions.to_parquet([row for row in kept if row["row_id"] not in unscored])
        variant.work.put(PREDICTIONS, table)
        seconds = round(answers["seconds"] + time.monotonic() - started, 2)
        metrics = predictions.summary(predictions.from_parquet(table))
        named = {"unscored_rows": unscored[:_NAMED_ROWS]} if unscored else {}
        about = {"skipped": skipped, "seconds": seconds, "engine": settings.engine, **named}
        variant.work.put_json(METRICS, {**metrics, **about})
        storage.delete(variant.work.uri + _ANSWERS)
    return {}


def _variant(
    description: dict[str, Any], rows: list[Row], prepare: Callable[[ModelSource], _Prepared], theirs: _Prepared
) -> _Variant:
    source = ModelSource.model_validate(description["model"])
    mine = prepare(source)
    tasks, skipped = _tasks(rows, mine, theirs)
    return _Variant(
        description["name"], Workspace.from_description(description["workspace"]), source, mine, tasks, skipped
    )


def _prepared(rows: list[Row], source: ModelSource, max_length: int) -> _Prepared:
    tokenizer = load_tokenizer(source)
    tokens, reasons = {}, {}
    for row in rows:
        tokenised = tokenise(row, tokenizer, max_length)
        if isinstance(tokenised, Skipped):
            reasons[row.id] = tokenised.reason
        else:
            tokens[row.id] = tokenised
    return _Prepared(source, tokenizer, tokens, reasons)


def _tasks(rows: list[Row], mine: _Prepared, theirs: _Prepared) -> tuple[list[Task], dict[str, int]]:
    """The rows that model and teacher can both take, shortest first, and how many were skipped for what."""
    skipped = Counter((theirs.reasons | mine.reasons).values())
    tasks = [
        Task(row, mine.tokens[row.id], theirs.tokens[row.id])
        for row in rows
        if row.id in mine.tokens and row.id in theirs.tokens
    ]
    if not tasks:
        raise ConfigurationError(f"no held-out row is usable for evaluation: {dict(skipped)}")
    return sorted(tasks, key=lambda task: (len(task.tokens.ids), task.row.id)), dict(skipped)


def _answer(variant: _Variant, settings: Evaluation, reporter: child.Reporter, advance: Callable[[int], None]) -> None:
    """Generate the variant's answers, and keep them in its workspace."""
    started = time.monotonic()
    prompts = [Prompt(task.row.id, task.tokens.ids[: task.tokens.response_start]) for task in variant.tasks]
    with reporter.loading(f"{settings.engine} with {variant.name}"):
        generator = _generator(variant, prompts, settings, reporter)
    kept: dict[str, dict[str, Any]] = {}
    with child.abort_if_a_child_dies(reporter.folder, "the engine that generates"):
        for prompt, [answer] in zip(prompts, generator.answers(prompts, None), strict=True):
            kept[prompt.key] = {"greedy": dataclasses.asdict(answer), "samples": []}
            advance(1)
        if settings.samples:
            sampling = Sampling(settings.samples, settings.temperature, settings.top_p, settings.seed)
            for prompt, answers in zip(prompts, generator.answers(prompts, sampling), strict=True):
                kept[prompt.key]["samples"] = [answer.text for answer in answers]
                advance(0)
    generator.close()
    variant.work.put_json(_ANSWERS, {"rows": kept, "seconds": time.monotonic() - started})


def _generator(variant: _Variant, prompts: list[Prompt], settings: Evaluation, reporter: child.Reporter) -> Generator:
    ends = Ends.of(variant.source, variant.prepared.tokenizer)
    if settings.engine == "transformers":
        model = load_model(variant.source, settings.dtype)
        return TransformersGenerator(model, ends, settings.max_new_tokens, settings.batch_rows)
    longest = max(len(prompt.ids) for prompt in prompts) + settings.max_new_tokens
    parallel = generation_parallel(settings, variant.source, longest, devices.here(), reporter.note)
    new, room = settings.max_new_tokens, settings.gpu_memory
    return vllm_generator(variant.source, ends, longest, new, settings.dtype, parallel, room)


def _row(task: Task, scored: RowScore, answers: dict[str, Any], databases: dict[str, Any]) -> dict[str, Any]:
    """All that is kept of one row."""
    row, greedy = task.row, Generated(**answers["greedy"])
    marked = mark(row, greedy.text, databases)
    tokens, confidence, hits = scored.calibration
    return {
        "row_id": row.id,
        "instruction": row.instruction,
        "input": row.input,
        "reference": row.response,
        "task_category": row.task_category,
        "language": row.language,
        "generated": greedy.text,
        "generated_tokens": greedy.tokens,
        "truncated": greedy.truncated,
        "correct": marked.correct,
        "wrong_result": marked.wrong_result,
        "samples": answers["samples"],
        "samples_correct": [mark(row, text, databases).correct for text in answers["samples"]],
        "response_tokens": task.tokens.supervised_tokens,
        "nll": scored.nll,
        "kl_tokens": scored.kl_tokens,
        "kl_to_teacher": scored.kl_to_teacher,
        "topk_kl": scored.topk_kl,
        "top1_agreed": scored.top1_agreed,
        "calibration_tokens": tokens,
        "calibration_confidence": confidence,
        "calibration_hits": hits,
    }


if __name__ == "__main__":
    child.run(main, Path(sys.argv[-1]))
