"""Scores the reference responses with a variant and its teacher, teacher-forced: the numbers of each row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tasks.engines.device import dtype_here
from tasks.engines.quantised import check_device, check_transformers
from tasks.evaluate.heldout.metrics import (
    CALIBRATION_BINS,
    calibration,
    kl_to_teacher,
    on_same_tokens,
    response_logprobs,
    response_nll,
    top1_agreement,
    topk_kl_to_teacher,
)
from tasks.evaluate.parallel import LOGITS_AT_ONCE
from tasks.models import ModelSource
from tasks.precision import Dtype
from tasks.rows import Row
from tasks.tokens.alignment import Alignment
from tasks.tokens.rows import TokenisedRow

_POSITIONS_AT_ONCE = 256  # 150 MiB for each fp32 intermediate over a vocabulary of 152,000


@dataclass(frozen=True)
class Task:
    """A held-out row in a variant's tokens and in the teacher's (the same ones where they share a tokenizer)."""

    row: Row
    tokens: TokenisedRow
    teacher_tokens: TokenisedRow


class RowScore(NamedTuple):
    """Sums over a row's response; distances are over `kl_tokens` positions, calibration is (3, C) as in `metrics`."""

    nll: float
    kl_tokens: int
    kl_to_teacher: float
    topk_kl: float
    top1_agreed: int
    calibration: list[list[float]]


def load_model(source: ModelSource, asked: Dtype = "auto") -> Any:
    """The model for inference, on the GPU where there is one, its layers over all GPUs where there are several.

    Raises ConfigurationError for a dtype that the GPU has not, and for a quantised model that cannot be loaded here.
    """
    on_gpu, config = torch.cuda.is_available(), source.json_file("config.json")
    check_device(source.name, config, on_gpu=on_gpu)
    check_transformers(source.name, config, "evaluation")
    where = {"device_map": "auto"} if torch.cuda.device_count() > 1 else {}
    dtype = dtype_here(asked, config, "evaluation.dtype=bfloat16")
    model: Any = AutoModelForCausalLM.from_pretrained(
        source.fetch(), trust_remote_code=False, dtype=dtype, attn_implementation="sdpa", **where
    )
    return (model if where else model.to("cuda" if on_gpu else "cpu")).eval()


def batches(tasks: Iterable[Task], rows: int, vocabulary: int) -> Iterator[list[Task]]:
    """Neighbours, at most `rows` of them, and so many that their padded logits fit (or one longer row)."""
    batch: list[Task] = []
    longest = 0
    for task in tasks:
        longest = max(longest, len(task.tokens.ids), len(task.teacher_tokens.ids))
        if batch and (len(batch) == rows or (len(batch) + 1) * longest * vocabulary > LOGITS_AT_ONCE):
            yield batch
            batch, longest = [], max(len(task.tokens.ids), len(task.teacher_tokens.ids))
        batch.append(task)
    if batch:
        yield batch


@torch.inference_mode()
def score(model: Any, teacher: Any, batch: list[Task], alignment: Alignment | None, k: int) -> Iterator[RowScore]:
    """Each row's sums; with `alignment`, distances are over positions and tokens that both tokenizers have."""
    ids_BT, logits_BTV = _logits(model, [task.tokens for task in batch])
    teacher_BTV = logits_BTV if teacher is model else _logits(teacher, [task.teacher_tokens for task in batch])[1]
    for b, task in enumerate(batch):
        yield _score(task, ids_BT[b], logits_BTV[b], teacher_BTV[b], alignment, k)


def _score(
    task: Task, ids_T: Tensor, logits_TV: Tensor, teacher_TV: Tensor, alignment: Alignment | None, k: int
) -> RowScore:
    start, length = task.tokens.response_start, len(task.tokens.ids)
    nll = 0.0
    counted = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64, device=ids_T.device)
    for first in range(start, length, _POSITIONS_AT_ONCE):
        last = min(first + _POSITIONS_AT_ONCE, length)
        logprobs_RV, labels_R = response_logprobs(logits_TV, first, last), ids_T[first:last]
        nll += float(response_nll(logprobs_RV, labels_R).sum())
        counted += calibration(logprobs_RV, labels_R)
    kl = topk_kl = 0.0
    positions = agreed = 0
    for ours_RV, theirs_RV in _pairs(task, logits_TV, teacher_TV, alignment):
        positions += len(ours_RV)
        kl += float(kl_to_teacher(theirs_RV, ours_RV).sum())
        topk_kl += float(topk_kl_to_teacher(theirs_RV, ours_RV, k).sum())
        agreed += int(top1_agreement(theirs_RV, ours_RV).sum())
    return RowScore(nll, positions, kl, topk_kl, agreed, counted.tolist())


def _pairs(
    task: Task, logits_TV: Tensor, teacher_TV: Tensor, alignment: Alignment | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Log-probs of model and teacher at the same places over the same tokens, a few positions at a time."""
    start, teacher_start = task.tokens.response_start, task.teacher_tokens.response_start
    if alignment is None:
        ours = theirs = np.arange(task.tokens.supervised_tokens)
    else:
        theirs, ours = alignment.same_spans(
            np.asarray(task.teacher_tokens.ids)[teacher_start:], np.asarray(task.tokens.ids)[start:]
        )
        shared = alignment.same_tokens(teacher_TV.shape[1], logits_TV.shape[1])
        teacher_ids_W, ids_W = (torch.from_numpy(ids).to(logits_TV.device) for ids in shared)
    for first in range(0, len(ours), _POSITIONS_AT_ONCE):
        some = slice(first, first + _POSITIONS_AT_ONCE)
        # the hidden state before a token predicts it
        ours_RV = logits_TV[torch.from_numpy(ours[some] + start - 1).to(logits_TV.device)].float()
        theirs_RV = teacher_TV[torch.from_numpy(theirs[some] + teacher_start - 1).to(logits_TV.device)].float()
        if alignment is not None:
            ours_RV, theirs_RV = ours_RV[:, ids_W], theirs_RV[:, teacher_ids_W]
        theirs_RV, ours_RV = on_same_tokens(theirs_RV, ours_RV)
        yield ours_RV, theirs_RV


def _logits(model: Any, rows: Sequence[TokenisedRow]) -> tuple[Tensor, Tensor]:
    """Ids and logits of rows, padded on the right."""
    longest = max(len(row.ids) for row in rows)
    ids_BT = torch.zeros((len(rows), longest), dtype=torch.long, device=model.device)
    mask_BT = torch.zeros_like(ids_BT)
    for b, row in enumerate(rows):
        ids_BT[b, : len(row.ids)] = torch.tensor(row.ids)
        mask_BT[b, : len(row.ids)] = 1
    return ids_BT, model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
