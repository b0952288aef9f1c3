"""Held-out metrics of one causal LM: pure tensors, no I/O. R response tokens, V vocabulary, K kept, C bins."""

from __future__ import annotations

import torch
from torch import Tensor

CALIBRATION_BINS = 15  # as in Guo et al. 2017, "On Calibration of Modern Neural Networks"


def response_nll(logprobs_RV: Tensor, labels_R: Tensor) -> Tensor:
    """−log p of each response token, in nats: (R,)."""
    return -logprobs_RV.gather(1, labels_R[:, None])[:, 0]


def kl_to_teacher(teacher_logprobs_RV: Tensor, student_logprobs_RV: Tensor) -> Tensor:
    """KL(teacher ‖ student) over the vocabulary at each position, in nats: (R,)."""
    return (teacher_logprobs_RV.exp() * (teacher_logprobs_RV - student_logprobs_RV)).sum(dim=1)


def topk_kl_to_teacher(teacher_logprobs_RV: Tensor, student_logprobs_RV: Tensor, k: int) -> Tensor:
    """KL(teacher ‖ student) over the teacher's K likeliest tokens and one bucket for all others, in nats: (R,).

    Both sides stay distributions, so this is never negative and never above the KL over the vocabulary: what is
    lacking is where the student puts the rest. It is what training on stored top-K log-probs can see.
    """
    if k >= teacher_logprobs_RV.shape[1]:
        return kl_to_teacher(teacher_logprobs_RV, student_logprobs_RV)
    top_RK = teacher_logprobs_RV.topk(k, dim=1).indices
    return kl_to_teacher(_with_rest(teacher_logprobs_RV, top_RK), _with_rest(student_logprobs_RV, top_RK))


def _with_rest(logprobs_RV: Tensor, top_RK: Tensor) -> Tensor:
    """The K log-probs and the log of the mass of all others, summed directly (1 − Σ loses small masses): (R, K+1)."""
    rest_R1 = logprobs_RV.scatter(1, top_RK, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([logprobs_RV.gather(1, top_RK), rest_R1], dim=1)


def top1_agreement(teacher_logprobs_RV: Tensor, student_logprobs_RV: Tensor) -> Tensor:
    """Whether teacher and student find the same token likeliest: (R,) of bool."""
    return teacher_logprobs_RV.argmax(dim=1) == student_logprobs_RV.argmax(dim=1)


def on_same_tokens(teacher_logprobs_RV: Tensor, student_logprobs_RV: Tensor) -> tuple[Tensor, Tensor]:
    """Both over the tokens that both have, each side renormalised: embeddings are padded to different sizes."""
    size = min(teacher_logprobs_RV.shape[1], student_logprobs_RV.shape[1])
    return teacher_logprobs_RV[:, :size].log_softmax(dim=1), student_logprobs_RV[:, :size].log_softmax(dim=1)


def calibration(logprobs_RV: Tensor, labels_R: Tensor) -> Tensor:
    """By confidence (probability of the likeliest token) in C equal bins: tokens, Σ confidence, hits: (3, C) fp64."""
    best = logprobs_RV.max(dim=1)
    confidence_R = best.values.exp().double()
    hits_R = (best.indices == labels_R).double()
    # a model that diverged has no confidence; its tokens are counted, and its sums stay not-a-number
    bins_R = (confidence_R.nan_to_num(0.0) * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    counted = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64, device=logprobs_RV.device)
    for row, values_R in enumerate((torch.ones_like(confidence_R), confidence_R, hits_R)):
        counted[row].index_add_(0, bins_R, values_R)
    return counted


def response_logprobs(logits_TV: Tensor, response_start: int, length: int) -> Tensor:
    """fp32 log-probs that predict tokens `response_start` … `length` − 1 (each by the position before): (R, V)."""
    return torch.log_softmax(logits_TV[response_start - 1 : length - 1].float(), dim=-1)
