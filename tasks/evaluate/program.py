"""The evaluation program: one variant after the other on the held-out rows, each kept as it is done.

python -m tasks.evaluate.program FOLDER
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM

from infra import child
from infra.artifacts import ArtifactRef, Workspace
from infra.errors import ConfigurationError
from infra.models import ModelSource, load_tokenizer
from infra.sandbox import ReadOnlyDatabase
from tasks.evaluate.metrics import bare_code, kl_to_teacher, response_logprobs, response_nll
from tasks.evaluate.settings import Evaluation
from tasks.rows import HELDOUT, Row, read_rows
from tasks.seeds.stage import open_databases
from tasks.tokens import Skipped, TokenisedRow, tokenise

METRICS, PREDICTIONS = "metrics.json", "predictions.parquet"


@dataclass(frozen=True)
class Task:
    """A held-out row, ready for every variant (they share one tokenizer)."""

    row: Row
    tokens: TokenisedRow


def main(spec: dict[str, Any], reporter: child.Reporter) -> dict[str, Any]:
    """Evaluate the variants named in the spec; each leaves its metrics and predictions in its own workspace."""
    settings = Evaluation.model_validate(spec["evaluation"])
    seeds = ArtifactRef.model_validate(spec["heldout"])
    teacher_source = ModelSource.model_validate(spec["teacher"])
    tokenizer = load_tokenizer(teacher_source)
    tasks, skipped = _tasks(seeds, tokenizer, settings)
    databases = open_databases(seeds)
    teacher = load_model(teacher_source)
    total = 2 * len(tasks) * len(spec["variants"])
    done = 0
    for variant in spec["variants"]:
        started = time.monotonic()
        work = Workspace.from_description(variant["workspace"])
        source = ModelSource.model_validate(variant["model"])
        model = teacher if source == teacher_source else load_model(source)
        nll: list[float] = []
        kl: list[float] = []
        generated: list[str] = []
        for batch in batches(tasks, settings.batch_rows):
            for row_nll, row_kl in _score(model, teacher, batch, tokenizer.pad_token_id):
                nll.append(row_nll)
                kl.append(row_kl)
            done += len(batch)
            reporter.progress(done, total, variant=variant["name"])
        for batch in batches(tasks, settings.batch_rows):
            generated.extend(generate(model, tokenizer, batch, settings.max_new_tokens))
            done += len(batch)
            reporter.progress(done, total, variant=variant["name"])
        correct = [_is_correct(task.row, text, databases) for task, text in zip(tasks, generated, strict=True)]
        work.put(PREDICTIONS, _predictions(tasks, generated, correct, nll, kl))
        seconds = round(time.monotonic() - started, 2)
        work.put_json(METRICS, {**_metrics(tasks, correct, nll, kl), "skipped": skipped, "seconds": seconds})
    return {}


def _metrics(tasks: list[Task], correct: list[bool | None], nll: list[float], kl: list[float]) -> dict[str, Any]:
    tokens = sum(task.tokens.response_tokens for task in tasks)
    judged = [outcome for outcome in correct if outcome is not None]
    return {
        "exec_accuracy": sum(judged) / len(judged) if judged else None,
        "cross_entropy": sum(nll) / tokens,
        "kl_to_teacher": sum(kl) / tokens,
        "n": len(tasks),
    }


def _tasks(seeds: ArtifactRef, tokenizer: Any, settings: Evaluation) -> tuple[list[Task], dict[str, int]]:
    tasks: list[Task] = []
    skipped: dict[str, int] = {}
    for row in sorted(read_rows(seeds, HELDOUT), key=lambda row: row.id)[: settings.max_rows]:
        tokens = tokenise(row, tokenizer, settings.max_length)
        if isinstance(tokens, Skipped):
            skipped[tokens.reason] = skipped.get(tokens.reason, 0) + 1
        else:
            tasks.append(Task(row, tokens))
    if not tasks:
        raise ConfigurationError(f"no held-out row is usable for evaluation: {skipped}")
    return sorted(tasks, key=lambda task: (len(task.tokens.ids), task.row.id)), skipped


def load_model(source: ModelSource) -> Any:
    """The model for inference, on the GPU where there is one."""
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(source.fetch(), dtype=dtype, attn_implementation="sdpa")
    return model.to("cuda" if on_gpu else "cpu").eval()


@torch.inference_mode()
def _score(model: Any, teacher: Any, batch: list[Task], pad_id: int) -> Iterator[tuple[float, float]]:
    """Summed −log p and KL(teacher ‖ model) of each row's response."""
    longest = max(len(task.tokens.ids) for task in batch)
    ids_BT = torch.full((len(batch), longest), pad_id, device=model.device)
    mask_BT = torch.zeros_like(ids_BT)
    for b, task in enumerate(batch):
        length = len(task.tokens.ids)
        ids_BT[b, :length] = torch.tensor(task.tokens.ids)
        mask_BT[b, :length] = 1
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    if teacher is not model:
        teacher_BTV = teacher(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    for b, task in enumerate(batch):
        start, length = task.tokens.response_start, len(task.tokens.ids)
        logprobs_RV = response_logprobs(logits_BTV[b], start, length)
        row_nll = float(response_nll(logprobs_RV, ids_BT[b, start:length]).sum())
        row_kl = 0.0
        if teacher is not model:
            row_kl = float(kl_to_teacher(response_logprobs(teacher_BTV[b], start, length), logprobs_RV).sum())
        yield row_nll, row_kl


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


def _predictions(
    tasks: list[Task], generated: list[str], correct: list[bool | None], nll: list[float], kl: list[float]
) -> bytes:
    table = pa.table(
        {
            "row_id": [task.row.id for task in tasks],
            "instruction": [task.row.instruction for task in tasks],
            "input": [task.row.input for task in tasks],
            "reference": [task.row.response for task in tasks],
            "generated": generated,
            "correct": pa.array(correct, pa.bool_()),
            "nll": nll,
            "kl_to_teacher": kl,
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
