"""Losses against float64 references, finite differences and known identities."""

import math

import pytest
import torch

from tasks.train.losses import cross_entropy_sum, topk_kl_sum

N, V, K = 7, 23, 5


def _case(seed: int = 0, k: int = K) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student logits, teacher log-probs over V, and the teacher's top k (ids, log-probs), in float64 accuracy."""
    generator = torch.Generator().manual_seed(seed)
    student_NV = 3 * torch.randn(N, V, generator=generator)
    teacher_NV = (3 * torch.randn(N, V, generator=generator)).log_softmax(dim=1)
    top = teacher_NV.topk(k, dim=1)
    return student_NV, teacher_NV, top.indices, top.values


def _full_kl(student_NV: torch.Tensor, teacher_NV: torch.Tensor, temperature: float) -> float:
    teacher = (teacher_NV.double() / temperature).log_softmax(dim=1)
    student = (student_NV.double() / temperature).log_softmax(dim=1)
    return float(temperature**2 * (teacher.exp() * (teacher - student)).sum())


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_renormalised_kl_with_all_tokens_is_the_full_kl(temperature: float) -> None:
    student, teacher, ids, logprobs = _case(k=V)
    got = float(topk_kl_sum(student, ids, logprobs, temperature, "renormalise"))
    assert got == pytest.approx(_full_kl(student, teacher, temperature), rel=1e-5)


def test_bucketed_kl_with_all_tokens_but_one_is_the_full_kl() -> None:
    student, teacher, ids, logprobs = _case(k=V - 1)
    assert float(topk_kl_sum(student, ids, logprobs, 1.0, "bucket")) == pytest.approx(
        _full_kl(student, teacher, 1.0), rel=1e-4
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_renormalised_kl_is_the_kl_between_softmaxes_over_the_kept_tokens(temperature: float) -> None:
    student, _teacher, ids, logprobs = _case()
    kept = student.gather(1, ids)
    assert float(topk_kl_sum(student, ids, logprobs, temperature, "renormalise")) == pytest.approx(
        _full_kl(kept, logprobs, temperature), rel=1e-5
    )


@pytest.mark.parametrize("tail", ["renormalise", "bucket"])
def test_kl_is_zero_where_the_student_is_the_teacher_and_positive_elsewhere(tail: str) -> None:
    student, teacher, ids, logprobs = _case()
    assert float(topk_kl_sum(teacher, ids, logprobs, 1.0, tail)) == pytest.approx(0.0, abs=1e-4)
    assert float(topk_kl_sum(student, ids, logprobs, 1.0, tail)) > 0.1


@pytest.mark.parametrize(("tail", "temperature"), [("renormalise", 1.0), ("renormalise", 2.0), ("bucket", 1.0)])
def test_gradients_match_finite_differences(tail: str, temperature: float) -> None:
    student, _teacher, ids, logprobs = _case()
    student.requires_grad_(True)
    topk_kl_sum(student, ids, logprobs, temperature, tail).backward()
    assert student.grad is not None
    step = 1e-2
    for n, v in ((0, int(ids[0, 0])), (3, int(ids[3, 2])), (5, 0)):
        shifted = []
        for sign in (1, -1):
            moved = student.detach().clone()
            moved[n, v] += sign * step
            shifted.append(float(topk_kl_sum(moved, ids, logprobs, temperature, tail)))
        assert float(student.grad[n, v]) == pytest.approx((shifted[0] - shifted[1]) / (2 * step), abs=5e-3)


def test_temperature_squared_reaches_the_gradients() -> None:
    """At a high temperature the gradient's scale stays that of matching logits, instead of vanishing as 1/T²."""
    student, _teacher, ids, logprobs = _case()
    norms = []
    for temperature in (20.0, 40.0):
        leaf = student.clone().requires_grad_(True)
        topk_kl_sum(leaf, ids, logprobs, temperature, "renormalise").backward()
        assert leaf.grad is not None
        norms.append(float(leaf.grad.norm()))
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


def test_unknown_entries_carry_no_weight_and_no_nan() -> None:
    student, _teacher, ids, logprobs = _case()
    padded_ids = torch.cat([ids, torch.zeros(N, 2, dtype=torch.long)], dim=1)
    padded = torch.cat([logprobs, torch.full((N, 2), -math.inf)], dim=1)
    for tail in ("renormalise", "bucket"):
        leaf = student.clone().requires_grad_(True)
        loss = topk_kl_sum(leaf, padded_ids, padded, 1.0, tail)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(float(topk_kl_sum(student, ids, logprobs, 1.0, tail)), rel=1e-5)
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()


def test_bucket_refuses_a_temperature_that_the_teachers_tail_is_not_known_at() -> None:
    student, _teacher, ids, logprobs = _case()
    with pytest.raises(ValueError, match="temperature 1"):
        topk_kl_sum(student, ids, logprobs, 2.0, "bucket")


def test_cross_entropy_is_a_sum_in_nats() -> None:
    logits = torch.zeros(3, 8)
    assert float(cross_entropy_sum(logits, torch.tensor([0, 1, 7]))) == pytest.approx(3 * math.log(8))
