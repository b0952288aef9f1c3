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


def stored_kl_to_teacher(ids_RK: Tensor, logprobs_RK: Tensor, student_logprobs_RV: Tensor) -> Tensor:
    """KL(teacher ‖ student) from the teacher's stored top K alone, in nats: (R,) fp64.

    Over K + 1 outcomes, the stored tokens and one bucket for all others, as `topk_kl_to_teacher`:

        Σ_k p_k · log(p_k / q_k) + r · log(r / s),  r = 1 − Σ_k p_k,  s = 1 − Σ_k q_k,

    with p the teacher's probabilities and q the student's. No split of the buckets makes it less (the log-sum
    inequality), so it is a lower bound of the KL over the vocabulary, but for the store's rounding. An entry of −inf,
    or one that the student's V tokens are without, is in the teacher's bucket. Where all V are stored there is none.
    """
    known_RK, student_RV = _known(ids_RK, logprobs_RK, student_logprobs_RV)
    teacher_RK = torch.where(known_RK, logprobs_RK.double(), -torch.inf)
    teacher_RK = teacher_RK - teacher_RK.logsumexp(dim=1, keepdim=True).clamp(min=0.0)  # rounded, they may pass 1
    nobody = student_RV.shape[1] - 1
    student_RK = _with_rest(student_RV, torch.where(known_RK, ids_RK, nobody)).double()
    rest_R1 = (1 - teacher_RK.exp().sum(dim=1, keepdim=True)).clamp(min=0.0).log()
    rest_R1 = rest_R1.masked_fill(torch.isneginf(student_RK[:, -1:]), -torch.inf)
    teacher_RK = torch.cat([teacher_RK, rest_R1], dim=1)
    terms_RK = teacher_RK.exp() * (teacher_RK - student_RK)
    return torch.where(torch.isneginf(teacher_RK), 0.0, terms_RK).sum(dim=1)


def acceptance(teacher_logprobs_RV: Tensor, student_logprobs_RV: Tensor) -> Tensor:
    """How probably the teacher keeps a token that the student drafts for it: Σ_v min(p_v, q_v), (R,).

    Of speculative sampling, where the student draws from its distribution q (Leviathan et al. 2211.17192, theorem 3.5).
    """
    return torch.minimum(teacher_logprobs_RV, student_logprobs_RV).exp().sum(dim=1)


def stored_acceptance(ids_RK: Tensor, logprobs_RK: Tensor, student_logprobs_RV: Tensor) -> Tensor:
    """The same over the teacher's stored top K alone, (R,) fp64: a lower bound, since no other token is counted."""
    known_RK, student_RV = _known(ids_RK, logprobs_RK, student_logprobs_RV)
    student_RK = student_RV.gather(1, torch.where(known_RK, ids_RK, student_RV.shape[1] - 1)).double()
    return torch.minimum(logprobs_RK.double(), student_RK).exp().sum(dim=1)


def _known(ids_RK: Tensor, logprobs_RK: Tensor, student_logprobs_RV: Tensor) -> tuple[Tensor, Tensor]:
    """Which stored entries are tokens that the student has, and its log-probs with a last column for all that are not.

    That column is nobody's token, at −inf.
    """
    known_RK = torch.isfinite(logprobs_RK) & (ids_RK < student_logprobs_RV.shape[1])
    return known_RK, torch.nn.functional.pad(student_logprobs_RV, (0, 1), value=-torch.inf)


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
    return by_confidence(best.values, best.indices == labels_R)


def by_confidence(best_R: Tensor, hits_R: Tensor) -> Tensor:
    """The same from the log-prob of each likeliest token, and whether it is the label."""
    confidence_R = best_R.exp().double()
    # a model that diverged has no confidence; its tokens are counted, and its sums stay not-a-number
    bins_R = (confidence_R.nan_to_num(0.0) * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    counted = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64, device=best_R.device)
    for row, values_R in enumerate((torch.ones_like(confidence_R), confidence_R, hits_R.double())):
        counted[row].index_add_(0, bins_R, values_R)
    return counted


def response_logprobs(logits_TV: Tensor, response_start: int, length: int) -> Tensor:
    """fp32 log-probs that predict tokens `response_start` … `length` − 1 (each by the position before): (R, V)."""
    return torch.log_softmax(logits_TV[response_start - 1 : length - 1].float(), dim=-1)
