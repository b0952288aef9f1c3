"""The evaluation program: one variant after the other on the held-out rows, each kept as it is done.

python -m tasks.evaluate.program FOLDER
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from infra import child
from infra.artifacts import ArtifactRef, Workspace, digest_of
from infra.errors import ConfigurationError
from infra.models import ModelSource, load_tokenizer
from infra.sandbox import ReadOnlyDatabase
from tasks.evaluate.metrics import bare_code, kl_on_shared_tokens, kl_to_teacher, response_logprobs, response_nll
from tasks.evaluate.settings import Evaluation
from tasks.logits.alignment import Alignment, vocabulary_of
from tasks.rows import HELDOUT, Row, read_rows
from tasks.seeds.stage import open_databases
from tasks.tokens import Skipped, TokenisedRow, tokenise, tokenizer_digests

METRICS, PREDICTIONS = "metrics.json", "predictions.parquet"


@dataclass(frozen=True)
class Task:
    """A held-out row in a variant's tokens and in the teacher's (the same ones where they share a tokenizer)."""

    row: Row
    tokens: TokenisedRow
    teacher_tokens: TokenisedRow


@dataclass(frozen=True)
class _Prepared:
    """Held-out rows in the tokens of a model, by row id; those that it cannot take, with the reason."""

    source: ModelSource
    tokenizer: Any
    tokens: dict[str, TokenisedRow]
    reasons: dict[str, str]


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
            prepared[key] = _prepared(rows, source, settings.max_length)
        return prepared[key]

    theirs = prepare(teacher_source)
    databases = open_databases(seeds)
    teacher = load_model(teacher_source)
    total, done = 2 * len(rows) * len(spec["variants"]), 0
    for variant in spec["variants"]:
        started = time.monotonic()
        work = Workspace.from_description(variant["workspace"])
        source = ModelSource.model_validate(variant["model"])
        mine = prepare(source)
        tasks, skipped = _tasks(rows, mine, theirs)
        done += 2 * (len(rows) - len(tasks))
        model = teacher if source == teacher_source else load_model(source)
        alignment = None if mine is theirs else Alignment(vocabulary_of(theirs.source), vocabulary_of(mine.source))
        scores: list[RowScore] = []
        generated: list[str] = []
        for batch in batches(tasks, settings.batch_rows):
            scores.extend(_score(model, teacher, batch, alignment))
            done += len(batch)
            reporter.progress(done, total, variant=variant["name"])
        for batch in batches(tasks, settings.batch_rows):
            generated.extend(generate(model, mine.tokenizer, batch, settings.max_new_tokens))
            done += len(batch)
            reporter.progress(done, total, variant=variant["name"])
        correct = [_is_correct(task.row, text, databases) for task, text in zip(tasks, generated, strict=True)]
        work.put(PREDICTIONS, _predictions(tasks, generated, correct, scores))
        seconds = round(time.monotonic() - started, 2)
        work.put_json(METRICS, {**_metrics(tasks, correct, scores), "skipped": skipped, "seconds": seconds})
    return {}


class RowScore(NamedTuple):
    """Sums over a row's response: −log p, KL(teacher ‖ model), and the tokens that the KL is over."""

    nll: float
    kl: float
    kl_tokens: int


def _metrics(tasks: list[Task], correct: list[bool | None], scores: list[RowScore]) -> dict[str, Any]:
    judged = [outcome for outcome in correct if outcome is not None]
    return {
        "exec_accuracy": sum(judged) / len(judged) if judged else None,
        "cross_entropy": sum(s.nll for s in scores) / sum(task.tokens.response_tokens for task in tasks),
        "kl_to_teacher": sum(s.kl for s in scores) / max(sum(s.kl_tokens for s in scores), 1),
        "n": len(tasks),
    }


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


def load_model(source: ModelSource) -> Any:
    """The model for inference, on the GPU where there is one."""
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(source.fetch(), dtype=dtype, attn_implementation="sdpa")
    return model.to("cuda" if on_gpu else "cpu").eval()


@torch.inference_mode()
def _score(model: Any, teacher: Any, batch: list[Task], alignment: Alignment | None) -> Iterator[RowScore]:
    """Each row's sums; with `alignment`, the KL is over positions and tokens that both tokenizers have."""
    ids_BT, logits_BTV = _logits(model, [task.tokens for task in batch])
    if teacher is not model:
        _, teacher_BTV = _logits(teacher, [task.teacher_tokens for task in batch])
    for b, task in enumerate(batch):
        start, length = task.tokens.response_start, len(task.tokens.ids)
        logprobs_RV = response_logprobs(logits_BTV[b], start, length)
        nll = float(response_nll(logprobs_RV, ids_BT[b, start:length]).sum())
        kl_R = torch.zeros(task.tokens.response_tokens)
        if teacher is not model:
            of_teacher = task.teacher_tokens
            teacher_RV = response_logprobs(teacher_BTV[b], of_teacher.response_start, len(of_teacher.ids))
            kl_R = (
                kl_to_teacher(teacher_RV, logprobs_RV)
                if alignment is None
                else _kl_aligned(alignment, task, teacher_RV, logprobs_RV)
            )
        yield RowScore(nll, float(kl_R.sum()), len(kl_R))


def _kl_aligned(alignment: Alignment, task: Task, teacher_RV: Tensor, logprobs_RV: Tensor) -> Tensor:
    teacher_at, student_at = alignment.same_spans(
        np.asarray(task.teacher_tokens.ids)[task.teacher_tokens.response_start :],
        np.asarray(task.tokens.ids)[task.tokens.response_start :],
    )
    shared = alignment.same_tokens(teacher_RV.shape[1], logprobs_RV.shape[1])
    teacher_ids_W, student_ids_W = (torch.from_numpy(ids).to(logprobs_RV.device) for ids in shared)
    return kl_on_shared_tokens(teacher_RV[teacher_at], logprobs_RV[student_at], teacher_ids_W, student_ids_W)


def _logits(model: Any, rows: Sequence[TokenisedRow]) -> tuple[Tensor, Tensor]:
    """Ids and logits of rows, padded on the right."""
    longest = max(len(row.ids) for row in rows)
    ids_BT = torch.zeros((len(rows), longest), dtype=torch.long, device=model.device)
    mask_BT = torch.zeros_like(ids_BT)
    for b, row in enumerate(rows):
        ids_BT[b, : len(row.ids)] = torch.tensor(row.ids)
        mask_BT[b, : len(row.ids)] = 1
    return ids_BT, model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits


@torch.inference_mode()
def generate(model: Any, tokenizer: Any, batch: list[Task], max_new_tokens: int) -> list[str]:
    """Greedy answers, padded on the left."""
    prompts = [task.tokens.ids[: task.tokens.response_start] for task in batch]
    longest = max(map(len, prompts))
    ids_BT = torch.full((len(batch), longest), tokenizer.pad_token_id, device=model.device)
    mask_BT = torch.zeros_like(ids_BT)
    for b, prompt in enumerate(prompts):
        ids_BT[b, longest - len(prompt) :] = torch.tensor(prompt)
        mask_BT[b, longest - len(prompt) :] = 1
    output_BT = model.generate(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return [str(text) for text in tokenizer.batch_decode(output_BT[:, longest:], skip_special_tokens=True)]


def _is_correct(row: Row, text: str, databases: dict[str, ReadOnlyDatabase]) -> bool | None:
    """Execution accuracy of one answer; None where there is no database to run it on."""
    if row.database not in databases:
        return None
    return databases[row.database].same_result(row.response, bare_code(text))


def _predictions(tasks: list[Task], generated: list[str], correct: list[bool | None], scores: list[RowScore]) -> bytes:
    table = pa.table(
        {
            "row_id": [task.row.id for task in tasks],
            "instruction": [task.row.instruction for task in tasks],
            "input": [task.row.input for task in tasks],
            "reference": [task.row.response for task in tasks],
            "generated": generated,
            "correct": pa.array(correct, pa.bool_()),
            "nll": [score.nll for score in scores],
            "kl_to_teacher": [score.kl for score in scores],
            "kl_tokens": [score.kl_tokens for score in scores],
            "response_tokens": [task.tokens.response_tokens for task in tasks],
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def batches(tasks: list[Task], size: int) -> Iterator[list[Task]]:
    """Tasks in order, `size` at a time."""
    for start in range(0, len(tasks), size):
        yield tasks[start : start + size]


if __name__ == "__main__":
    child.run(main, Path(sys.argv[-1]))
