"""What SFT and KD minimise, on supervised positions: tensors in, a sum in nats out. No I/O, no model.

N supervised positions, K kept teacher tokens, V vocabulary. Sums, not means: the loop divides by the supervised
tokens of the whole global batch, so that accumulation and ranks change nothing. Arithmetic is fp32, or fp64 for
fp64 logits. Every loss here needs few of the V logits, the label's and the K kept ones, and the logsumexp over
all of them: `objective_sum` takes just these, which is what lets `fused_head` never hold N × V.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["DistillationLoss", "cross_entropy_sum", "distillation_sum"]

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon", "total_variation"]
Tail = Literal["renormalise", "bucket"]
_NEVER = -1e9  # a log-probability that stands for "no entry": finite, so that 0 * log(0) stays 0 in gradients
_LEAST_REST = 1e-7  # the least probability outside K, about the rounding of fp32: keeps log 0 away


@dataclass(frozen=True)
class DistillationLoss:
    """(1 − kd_weight) · cross-entropy + kd_weight · divergence(teacher, student) on the teacher's top K.

    With p the teacher's and q the student's probabilities:
    - forward_kl: Σ p log(p/q) (paper, section 3.2);
    - reverse_kl: Σ q log(q/p) (MiniLLM, 2306.08543);
    - jensen_shannon: β KL(p‖m) + (1−β) KL(q‖m), m = βp + (1−β)q, 0 < β < 1 (GKD, 2306.13649);
    - total_variation: ½ Σ |p − q|.

    Tails:
    - renormalise (paper): both sides are softmaxes over the K tokens at temperature T. From log-probabilities,
      p^(1/T) renormalised over K is exact, since the normaliser cancels.
    - bucket: K+1 outcomes, the last being "anything else". The teacher's rest is known at T = 1 only: at another,
      it is a sum over tokens that were not kept.

    At temperature T the gradients of the first three shrink as 1/T² and total variation's as 1/T (it is of first
    order in p − q): the divergence is multiplied by T², by T for total variation, so that the gradients' scale does
    not depend on T (Hinton et al., 1503.02531, section 2).

    With a `weighting`, a batch's loss is the mean of its tokens' losses, cross-entropy and divergence, weighted by
    what the student makes of each token in this step (`token_weights`, no gradient through it); divided by their mean,
    so that tokens weigh 1 on average:
    - gap: the token's own divergence, which is the gradient of ½ divergence², so that learning goes where the student
      is far from its teacher (difficult tokens first, as AdaKD, 2510.11615, which drops the others);
    - entropy: −Σ q log q of the student over its vocabulary (tokens of high entropy are where an answer forks; Wang et
      al., 2506.01939, train on the highest fifth alone).

    Raises ValueError where a number is out of range or the tail is not known.
    """

    divergence: Divergence = "forward_kl"
    tail: Tail = "renormalise"
    temperature: float = 1.0
    js_beta: float = 0.5
    kd_weight: float = 0.5
    weighting: Literal["none", "gap", "entropy"] = "none"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"the temperature must be above 0, not {self.temperature}")
        if not 0 < self.js_beta < 1:
            raise ValueError(f"js_beta must lie between 0 and 1, both excluded, not be {self.js_beta}")
        if not 0 <= self.kd_weight <= 1:
            raise ValueError(f"kd_weight must lie in [0, 1], not be {self.kd_weight}")
        if self.tail == "bucket" and self.temperature != 1:
            raise ValueError("the tail bucket needs temperature 1: the teacher's tail is not known at any other")


def cross_entropy_sum(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Negative log-likelihood of the labels, summed."""
    return F.cross_entropy(full_precision(logits_NV), labels_N, reduction="sum")


def distillation_sum(
    logits_NV: Tensor,
    labels_N: Tensor,
    teacher_ids_NK: Tensor,
    teacher_logprobs_NK: Tensor,
    loss: DistillationLoss,
    kd_weight_N: Tensor | None = None,
    weight_N: Tensor | None = None,
) -> Tensor:
    """`loss` from whole logits. A teacher's entry of −inf (fewer than K tokens known) carries no weight."""
    logits_NV = full_precision(logits_NV)
    label_N = logits_NV.gather(1, labels_N[:, None])[:, 0]
    kept_NK = logits_NV.gather(1, teacher_ids_NK)
    weights = kd_weight_N, weight_N
    return objective_sum(label_N, kept_NK, logits_NV.logsumexp(dim=1), teacher_logprobs_NK, loss, *weights)


def objective_sum(
    label_N: Tensor,
    kept_NK: Tensor,
    lse_N: Tensor,
    teacher_logprobs_NK: Tensor | None,
    loss: DistillationLoss | None,
    kd_weight_N: Tensor | None = None,
    weight_N: Tensor | None = None,
) -> Tensor:
    """The loss from the label's logit, the logits of the teacher's K tokens and the logsumexp over all V.

    Cross-entropy alone where `loss` is None. `kd_weight_N` takes the place of `loss.kd_weight` where tokens differ in
    it: of what a student wrote, the labels are no example. A token's whole loss counts `weight_N` times.
    """
    cross_entropy_N = lse_N - label_N
    if loss is None:
        return cross_entropy_N.sum()
    assert teacher_logprobs_NK is not None, "a distillation loss without a teacher's log-probabilities"
    if kd_weight_N is None and weight_N is None:
        divergence = _divergence_sum(kept_NK, lse_N, teacher_logprobs_NK, loss)
        return (1 - loss.kd_weight) * cross_entropy_N.sum() + loss.kd_weight * divergence
    kd_N = torch.full_like(lse_N, loss.kd_weight) if kd_weight_N is None else kd_weight_N.to(lse_N.dtype)
    of_example_N, of_teacher_N = (1 - kd_N, kd_N) if weight_N is None else ((1 - kd_N) * weight_N, kd_N * weight_N)
    divergence = _divergence_sum(kept_NK, lse_N, teacher_logprobs_NK, loss, of_teacher_N)
    return (of_example_N * cross_entropy_N).sum() + divergence


def token_weights(
    kept_NK: Tensor, lse_N: Tensor, entropy_N: Tensor, teacher_logprobs_NK: Tensor, loss: DistillationLoss
) -> Tensor:
    """What each token counts by `loss.weighting`, before it is divided by the mean: at least 0. No gradient."""
    if loss.weighting == "entropy":
        return entropy_N.detach().clamp(min=0)
    scale, terms = _terms_of_outcomes(kept_NK.detach(), lse_N.detach(), teacher_logprobs_NK, loss)
    return (scale * torch.stack([part.reshape(len(lse_N), -1).sum(dim=1) for part in terms]).sum(dim=0)).clamp(min=0)


def full_precision(tensor: Tensor) -> Tensor:
    """fp64 as it is, anything else in fp32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _divergence_sum(
    kept_NK: Tensor,
    lse_N: Tensor,
    teacher_logprobs_NK: Tensor,
    loss: DistillationLoss,
    weight_N: Tensor | None = None,
) -> Tensor:
    scale, terms = _terms_of_outcomes(kept_NK, lse_N, teacher_logprobs_NK, loss)
    return scale * torch.stack([_sum(part, weight_N) for part in terms]).sum()


def _terms_of_outcomes(
    kept_NK: Tensor, lse_N: Tensor, teacher_logprobs_NK: Tensor, loss: DistillationLoss
) -> tuple[float, list[Tensor]]:
    """What a divergence is the sum of, times a factor: N × K terms, and N where the rest is an outcome."""
    known_NK = torch.isfinite(teacher_logprobs_NK)
    teacher_NK = torch.where(known_NK, teacher_logprobs_NK.to(kept_NK.dtype), _NEVER)
    if loss.tail == "renormalise":
        teacher_NK = (teacher_NK / loss.temperature).log_softmax(dim=1)
        student_NK = torch.where(known_NK, kept_NK / loss.temperature, _NEVER).log_softmax(dim=1)
        scale = loss.temperature if loss.divergence == "total_variation" else loss.temperature**2
        return scale, [_terms(teacher_NK, student_NK, loss) * known_NK]
    student_NK = torch.where(known_NK, kept_NK - lse_N[:, None], _NEVER)
    rest_N = _terms(_log_rest(teacher_NK), _log_rest(student_NK), loss)
    return 1.0, [_terms(teacher_NK, student_NK, loss), rest_N]


def _sum(terms: Tensor, weight_N: Tensor | None) -> Tensor:
    """Of N, or N × K, terms; each position's times its weight."""
    return terms.sum() if weight_N is None else (terms.t() * weight_N).sum()


def _terms(teacher: Tensor, student: Tensor, loss: DistillationLoss) -> Tensor:
    """Each outcome's part of the divergence, from the log-probabilities of both sides."""
    p, q = teacher.exp(), student.exp()
    if loss.divergence == "forward_kl":
        return p * (teacher - student)
    if loss.divergence == "reverse_kl":
        return q * (student - teacher)
    if loss.divergence == "total_variation":
        return 0.5 * (p - q).abs()
    beta = loss.js_beta
    middle = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * p * (teacher - middle) + (1 - beta) * q * (student - middle)


def _log_rest(logprobs_NK: Tensor) -> Tensor:
    """log of the probability outside K, as log(−expm1(logsumexp)), at least log 1e-7."""
    total_N = torch.logsumexp(logprobs_NK, dim=1).clamp(max=-_LEAST_REST)
    return torch.log(-torch.expm1(total_N))
