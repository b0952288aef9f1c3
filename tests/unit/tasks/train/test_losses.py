"""Losses against a float64 reference written out position by position, finite differences and known identities."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.train.model.losses import DistillationLoss, Divergence, Tail, cross_entropy_sum, distillation_sum

N, V, K = 4, 11, 4
DIVERGENCES: tuple[Divergence, ...] = ("forward_kl", "reverse_kl", "jensen_shannon", "total_variation")
TAILS: list[tuple[Tail, float]] = [("renormalise", 1.0), ("renormalise", 2.0), ("renormalise", 0.5), ("bucket", 1.0)]
LOSSES = [
    DistillationLoss(divergence, tail, temperature, js_beta=0.3, kd_weight=1.0)
    for divergence in DIVERGENCES
    for tail, temperature in TAILS
]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda x: f"{x.divergence}-{x.tail}-{x.temperature}")
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)


def _case(k: int = K, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Student logits, labels, teacher log-probs over V, the teacher's top k (ids, log-probs), all float64."""
    generator = torch.Generator().manual_seed(seed)
    student_NV = 2 * torch.randn(N, V, generator=generator, dtype=torch.float64)
    teacher_NV = (2 * torch.randn(N, V, generator=generator, dtype=torch.float64)).log_softmax(dim=1)
    labels_N = torch.randint(0, V, (N,), generator=generator)
    top = teacher_NV.topk(k, dim=1)
    return student_NV, labels_N, teacher_NV, top.indices, top.values


def _between(p: np.ndarray, q: np.ndarray, loss: DistillationLoss) -> float:
    """The divergence of two distributions, from its definition."""
    if loss.divergence == "forward_kl":
        return float(np.sum(p * np.log(p / q)))
    if loss.divergence == "reverse_kl":
        return float(np.sum(q * np.log(q / p)))
    if loss.divergence == "total_variation":
        return float(np.abs(p - q).sum() / 2)
    m = loss.js_beta * p + (1 - loss.js_beta) * q
    return float(loss.js_beta * np.sum(p * np.log(p / m)) + (1 - loss.js_beta) * np.sum(q * np.log(q / m)))


def _reference(logits_NV: np.ndarray, ids_NK: np.ndarray, logprobs_NK: np.ndarray, loss: DistillationLoss) -> float:
    total, t = 0.0, loss.temperature
    for logits, ids, logprobs in zip(logits_NV, ids_NK, logprobs_NK, strict=True):
        known = np.isfinite(logprobs)
        p, kept = np.exp(logprobs[known]), ids[known]
        if loss.tail == "renormalise":
            p, q = p ** (1 / t) / np.sum(p ** (1 / t)), np.exp(logits[kept] / t)
            total += _between(p, q / q.sum(), loss) * (t if loss.divergence == "total_variation" else t * t)
        else:
            q = np.exp(logits)[kept] / np.exp(logits).sum()
            total += _between(np.append(p, 1 - p.sum()), np.append(q, 1 - q.sum()), loss)
    return total


def _finite_differences(logits: np.ndarray, ids: np.ndarray, logprobs: np.ndarray, loss: DistillationLoss) -> Tensor:
    slopes = np.zeros_like(logits)
    for place in np.ndindex(*logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-5
        up, down = (_reference(logits + sign * step, ids, logprobs, loss) for sign in (1, -1))
        slopes[place] = (up - down) / 2e-5
    return torch.from_numpy(slopes)


@every_loss
@pytest.mark.parametrize("unknown", [0, 2])
def test_value_and_gradients_are_those_of_the_definition(loss: DistillationLoss, unknown: int) -> None:
    student, labels, _, ids, logprobs = _case()
    if unknown:  # entries that are not known have −inf, and some id
        logprobs[1, -unknown:], ids[1, -unknown:] = -math.inf, 0
    student.requires_grad_(True)
    got = distillation_sum(student, labels, ids, logprobs, loss)
    got.backward()
    arrays = student.detach().numpy(), ids.numpy(), logprobs.numpy()
    assert float(got.detach()) == pytest.approx(_reference(*arrays, loss), rel=1e-12)
    torch.testing.assert_close(student.grad, _finite_differences(*arrays, loss), rtol=1e-6, atol=1e-8)


@every_loss
def test_all_tokens_kept_is_the_divergence_of_the_whole_distributions(loss: DistillationLoss) -> None:
    kept = V if loss.tail == "renormalise" else V - 1  # the bucket is then the last token
    student, labels, teacher, ids, logprobs = _case(k=kept)
    p, q = ((x / loss.temperature).softmax(dim=1).numpy() for x in (teacher, student))
    scale = loss.temperature ** (1 if loss.divergence == "total_variation" else 2)
    whole = scale * sum(_between(p[n], q[n], loss) for n in range(N))
    assert float(distillation_sum(student, labels, ids, logprobs, loss)) == pytest.approx(whole, rel=1e-9)


@every_loss
def test_nothing_is_lost_where_the_student_is_the_teacher_and_something_one_token_on(loss: DistillationLoss) -> None:
    _, labels, teacher, ids, logprobs = _case()
    student = (teacher + 3).requires_grad_(True)  # logits are log-probabilities up to a constant
    same = distillation_sum(student, labels, ids, logprobs, loss)
    same.backward()
    assert float(same.detach()) == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-7 or loss.divergence == "total_variation"  # a corner there
    shifted = distillation_sum(student, labels, ids.roll(1, 0), logprobs.roll(1, 0), loss)
    assert float(shifted.detach()) > 0.1


@every_divergence
def test_the_gradients_scale_does_not_depend_on_the_temperature(divergence: str) -> None:
    student, labels, _, ids, logprobs = _case()
    norms = []
    for temperature in (20.0, 40.0, 80.0):
        leaf = (0.1 * student).requires_grad_(True)
        loss = DistillationLoss(divergence, "renormalise", temperature, kd_weight=1.0)  # type: ignore[arg-type]
        distillation_sum(leaf, labels, ids, logprobs, loss).backward()
        assert leaf.grad is not None
        norms.append(float(leaf.grad.norm()))
    assert norms[0] > 0.01
    assert norms[1:] == pytest.approx([norms[0]] * 2, rel=0.1)


def test_jensen_shannon_tends_to_forward_kl_and_is_symmetric_at_one_half() -> None:
    student, labels, teacher, ids, logprobs = _case(k=V)
    forward, small = DistillationLoss(kd_weight=1.0), DistillationLoss("jensen_shannon", js_beta=1e-6, kd_weight=1.0)
    kl = float(distillation_sum(student, labels, ids, logprobs, forward))
    assert float(distillation_sum(student, labels, ids, logprobs, small)) / 1e-6 == pytest.approx(kl, rel=1e-3)
    half, every = DistillationLoss("jensen_shannon", kd_weight=1.0), torch.arange(V).expand(N, V)
    there = distillation_sum(student, labels, every, teacher, half)
    back = distillation_sum(teacher, labels, every, student.log_softmax(dim=1), half)
    assert float(there) == pytest.approx(float(back), rel=1e-12)
    assert 0 < float(there) < N * math.log(2)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_mix_is_linear_in_the_weight(weight: float) -> None:
    student, labels, _, ids, logprobs = _case()
    loss = DistillationLoss(kd_weight=weight)
    expected = (1 - weight) * cross_entropy_sum(student, labels) + weight * distillation_sum(
        student, labels, ids, logprobs, replace(loss, kd_weight=1.0)
    )
    assert float(distillation_sum(student, labels, ids, logprobs, loss)) == pytest.approx(float(expected), rel=1e-12)


@every_loss
def test_a_position_of_which_the_teacher_knows_nothing_counts_nothing(loss: DistillationLoss) -> None:
    student, labels, _, ids, logprobs = _case()
    alone = float(distillation_sum(student[1:], labels[1:], ids[1:], logprobs[1:], loss))
    logprobs[0] = -math.inf
    student.requires_grad_(True)
    got = distillation_sum(student, labels, ids, logprobs, loss)
    got.backward()
    assert float(got.detach()) == pytest.approx(alone, rel=1e-12)
    assert student.grad is not None
    assert bool((student.grad[0] == 0).all())
    assert bool(torch.isfinite(student.grad).all())


@every_divergence
def test_rounded_log_probs_whose_sum_exceeds_one_leave_the_bucket_finite(divergence: str) -> None:
    student, labels, _, ids, logprobs = _case(k=V)
    leaf = student.float().requires_grad_(True)
    loss = DistillationLoss(divergence, "bucket", kd_weight=1.0)  # type: ignore[arg-type]
    got = distillation_sum(leaf, labels, ids, logprobs.float() + 0.008, loss)
    got.backward()
    assert leaf.grad is not None
    assert bool(torch.isfinite(leaf.grad).all())
    assert math.isfinite(float(got.detach()))


def test_half_precision_logits_are_computed_in_full() -> None:
    student, labels, _, ids, logprobs = _case()
    half, loss = student.bfloat16(), DistillationLoss()
    got = distillation_sum(half, labels, ids, logprobs.float(), loss)
    assert got.dtype == torch.float32
    assert float(got) == pytest.approx(float(distillation_sum(half.double(), labels, ids, logprobs, loss)), rel=1e-5)


def test_bucket_refuses_a_temperature_that_the_teachers_tail_is_not_known_at() -> None:
    with pytest.raises(ValueError, match="temperature 1"):
        DistillationLoss(tail="bucket", temperature=2.0)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"js_beta": 0.0}, {"js_beta": 1.0}, {"kd_weight": 1.5}])
def test_numbers_out_of_range_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DistillationLoss(**wrong)  # type: ignore[arg-type]


def test_cross_entropy_is_a_sum_in_nats() -> None:
    logits = torch.zeros(3, 8)
    assert float(cross_entropy_sum(logits, torch.tensor([0, 1, 7]))) == pytest.approx(3 * math.log(8))
