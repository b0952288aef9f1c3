"""Losses on supervised positions: tensors in, a sum in nats out. No I/O, no model.

N supervised positions, K kept teacher tokens, V vocabulary. Softmax is taken in fp32. Sums, not means: the
loop divides by the supervised tokens of the whole global batch, so that accumulation and ranks change nothing.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Tail = Literal["renormalise", "bucket"]
_NEVER = -1e9  # a log-probability that stands for "no entry": finite, so that 0 * log(0) stays 0 in gradients


def cross_entropy_sum(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Negative log-likelihood of the labels, summed."""
    return F.cross_entropy(logits_NV.float(), labels_N, reduction="sum")


def topk_kl_sum(
    logits_NV: Tensor, teacher_ids_NK: Tensor, teacher_logprobs_NK: Tensor, temperature: float, tail: Tail
) -> Tensor:
    """Forward KL(teacher ‖ student) on the teacher's top K, times T², summed.

    `renormalise` (paper, section 3.2): both sides are softmaxes over the K tokens, at temperature T. From
    log-probabilities, p^(1/T) renormalised over K is exact, since the normaliser cancels.
    `bucket`: K+1 outcomes, the last being "anything else"; the teacher's rest is known at T = 1 only.
    Entries with log-probability −inf (fewer than K tokens known) carry no weight.

    The factor T² keeps the gradients' scale independent of T (Hinton et al., 1503.02531, section 2).
    """
    if tail == "bucket" and temperature != 1.0:
        raise ValueError("the tail bucket needs temperature 1: the teacher's tail is not known at any other")
    known_NK = torch.isfinite(teacher_logprobs_NK)
    teacher_NK = torch.where(known_NK, teacher_logprobs_NK.float(), _NEVER)
    if tail == "renormalise":
        student_NK = logits_NV.float().gather(1, teacher_ids_NK) / temperature
        teacher_NK = (teacher_NK / temperature).log_softmax(dim=1)
        student_NK = torch.where(known_NK, student_NK, _NEVER).log_softmax(dim=1)
        kl_N = (teacher_NK.exp() * (teacher_NK - student_NK) * known_NK).sum(dim=1)
        return temperature**2 * kl_N.sum()
    student_NK = logits_NV.float().log_softmax(dim=1).gather(1, teacher_ids_NK)
    student_NK = torch.where(known_NK, student_NK, _NEVER)
    kl_N = (teacher_NK.exp() * (teacher_NK - student_NK) * known_NK).sum(dim=1)
    teacher_rest_N, student_rest_N = _log_rest(teacher_NK), _log_rest(student_NK)
    return (kl_N + teacher_rest_N.exp() * (teacher_rest_N - student_rest_N)).sum()


def _log_rest(logprobs_NK: Tensor) -> Tensor:
    """log of the probability outside K, as log(−expm1(logsumexp)); bounded away from log 0."""
    total_N = torch.logsumexp(logprobs_NK, dim=1).clamp(max=-1e-7)
    return torch.log(-torch.expm1(total_N))
