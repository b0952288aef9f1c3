"""Held-out metrics of one causal LM: pure tensors, no I/O. R response tokens, V vocabulary."""

from __future__ import annotations

import re

import torch
from torch import Tensor

_FENCED = re.compile(r"```(?:\w+)?\s*\n(.*?)```", re.DOTALL)


def response_nll(logprobs_RV: Tensor, labels_R: Tensor) -> Tensor:
    """−log p of each response token, in nats: (R,)."""
    return -logprobs_RV.gather(1, labels_R[:, None])[:, 0]


def kl_to_teacher(teacher_logprobs_RV: Tensor, student_logprobs_RV: Tensor) -> Tensor:
    """KL(teacher ‖ student) over the vocabulary at each position, in nats: (R,).

    Embeddings padded to different sizes are compared on the tokens that both have, each side renormalised.
    """
    size = min(teacher_logprobs_RV.shape[1], student_logprobs_RV.shape[1])
    teacher = teacher_logprobs_RV[:, :size].log_softmax(dim=1)
    student = student_logprobs_RV[:, :size].log_softmax(dim=1)
    return (teacher.exp() * (teacher - student)).sum(dim=1)


def kl_on_shared_tokens(
    teacher_logprobs_PV: Tensor, student_logprobs_PV: Tensor, teacher_ids_W: Tensor, student_ids_W: Tensor
) -> Tensor:
    """KL(teacher ‖ student) over the W tokens that two vocabularies share, each side renormalised: (P,)."""
    return kl_to_teacher(teacher_logprobs_PV[:, teacher_ids_W], student_logprobs_PV[:, student_ids_W])


def response_logprobs(logits_TV: Tensor, response_start: int, length: int) -> Tensor:
    """fp32 log-probs that predict tokens `response_start` … `length` − 1 (each by the position before): (R, V)."""
    return torch.log_softmax(logits_TV[response_start - 1 : length - 1].float(), dim=-1)


def bare_code(text: str) -> str:
    """The code in an answer: what stands in its first fence, else all of it."""
    fenced = _FENCED.search(text)
    return (fenced.group(1) if fenced else text).strip()
