"""Tensor metrics against values worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.evaluate.analysis.draft import tokens_a_step
from tasks.evaluate.heldout.metrics import (
    CALIBRATION_BINS,
    acceptance,
    calibration,
    kl_to_teacher,
    on_same_tokens,
    stored_acceptance,
    stored_kl_to_teacher,
    top1_agreement,
    topk_kl_to_teacher,
)

TEACHER = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
STUDENT = torch.tensor([[0.25, 0.25, 0.25, 0.25]]).log()


def test_topk_kl_puts_all_other_tokens_into_one_bucket() -> None:
    # K = 1: 0.5 · ln(0.5 / 0.25) + 0.5 · ln(0.5 / 0.75)
    expected = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert topk_kl_to_teacher(TEACHER, STUDENT, 1).item() == pytest.approx(expected, abs=1e-6)
    assert kl_to_teacher(TEACHER, STUDENT).item() == pytest.approx(0.25 * math.log(2), abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_topk_kl_lies_between_zero_and_the_full_kl_and_reaches_it_at_k_equal_v(seed: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (
        (4 * torch.randn(3, 12, generator=generator, dtype=torch.float64)).log_softmax(1) for _ in range(2)
    )
    full, found = kl_to_teacher(teacher, student), topk_kl_to_teacher(teacher, student, k)
    assert (found > -1e-12).all()
    assert (found <= full + 1e-12).all()
    if k >= 11:  # the bucket holds one token or none
        assert torch.allclose(found, full)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_a_stored_top_k_gives_the_same_as_the_whole_of_the_teacher(seed: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (
        (4 * torch.randn(3, 12, generator=generator, dtype=torch.float64)).log_softmax(1) for _ in range(2)
    )
    kept = teacher.topk(k, dim=1)
    found = stored_kl_to_teacher(kept.indices, kept.values, student)
    assert torch.allclose(found, topk_kl_to_teacher(teacher, student, k), atol=1e-9)
    unknown = torch.cat([kept.indices, torch.full((3, 1), 99), torch.zeros(3, 1, dtype=torch.long)], dim=1)
    values = torch.cat([kept.values, torch.full((3, 1), -9.0), torch.full((3, 1), -torch.inf)], dim=1)
    assert torch.allclose(stored_kl_to_teacher(unknown, values, student), found, atol=1e-9)  # they are in the bucket


def test_stored_entries_that_rounding_lifts_above_1_are_no_negative_distance() -> None:
    ids, logprobs = torch.tensor([[0, 1]]), torch.tensor([[-0.1, -2.3]]) + 1 / 128
    student = torch.tensor([[-0.1, -2.3, -6.0]]).log_softmax(1)
    assert logprobs.exp().sum() > 1
    assert 0 <= stored_kl_to_teacher(ids, logprobs, student).item() < 0.01


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_acceptance_is_what_two_distributions_share_and_the_stored_top_k_never_more(seed: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (
        (4 * torch.randn(3, 12, generator=generator, dtype=torch.float64)).log_softmax(1) for _ in range(2)
    )
    found = acceptance(teacher, student)
    distance = 0.5 * (teacher.exp() - student.exp()).abs().sum(1)  # of total variation
    assert torch.allclose(found, 1 - distance)
    assert torch.allclose(acceptance(teacher, teacher), torch.ones(3, dtype=torch.float64))
    kept = teacher.topk(k, dim=1)
    of_kept = stored_acceptance(kept.indices, kept.values, student)
    shared = torch.minimum(kept.values.exp(), student.gather(1, kept.indices).exp()).sum(1)
    assert torch.allclose(of_kept, shared)
    assert (of_kept <= found + 1e-12).all()
    if k == 12:
        assert torch.allclose(of_kept, found)
    unknown = torch.cat([kept.indices, torch.full((3, 1), 99), torch.zeros(3, 1, dtype=torch.long)], dim=1)
    values = torch.cat([kept.values, torch.full((3, 1), -0.1), torch.full((3, 1), -torch.inf)], dim=1)
    assert torch.allclose(stored_acceptance(unknown, values, student), of_kept)  # no token of the student's


def test_speculative_sampling_keeps_as_many_drafts_as_the_acceptance_says() -> None:
    """By its rule a draft v is kept where a uniform number is below p_v / q_v (Leviathan et al. 2211.17192, alg. 1)."""
    generator = torch.Generator().manual_seed(3)
    teacher, student = ((2 * torch.randn(1, 6, generator=generator)).log_softmax(1) for _ in range(2))
    alpha = acceptance(teacher, student).item()
    drafted, steps = 4, 40_000
    tokens = torch.multinomial(student[0].exp(), steps * drafted, replacement=True, generator=generator)
    ratios = (teacher - student)[0].exp()[tokens]
    kept = torch.rand(len(tokens), generator=generator) < ratios
    assert kept.float().mean().item() == pytest.approx(alpha, abs=0.005)
    yielded = kept.view(steps, drafted).long().cumprod(1).sum(1) + 1  # the teacher's own token ends each step
    assert yielded.float().mean().item() == pytest.approx(tokens_a_step(alpha, drafted), abs=0.02)
    assert tokens_a_step(1.0, 4) == 5
    assert tokens_a_step(0.0, 4) == 1
    assert tokens_a_step(0.5, 2) == 1.75


def test_a_tiny_rest_is_summed_and_not_lost_in_rounding() -> None:
    teacher = torch.tensor([[0.0, -30.0, -31.0]]).log_softmax(1)
    student = torch.tensor([[0.0, -3.0, -3.0]]).log_softmax(1)
    assert topk_kl_to_teacher(teacher, student, 1).item() == pytest.approx(math.log(1 + 2 * math.exp(-3)), rel=1e-5)


def test_agreement_is_about_the_likeliest_token() -> None:
    student = torch.tensor([[0.4, 0.6, 0.0, 0.0], [0.9, 0.1, 0.0, 0.0]]).log()
    assert top1_agreement(TEACHER.expand(2, 4), student).tolist() == [False, True]


def test_padded_vocabularies_are_compared_on_what_both_have() -> None:
    wide = torch.tensor([[0.25, 0.25, 0.5]]).log()
    narrow = torch.tensor([[0.5, 0.5]]).log()
    assert kl_to_teacher(*on_same_tokens(wide, narrow)).item() == pytest.approx(0, abs=1e-6)


def test_calibration_counts_tokens_confidence_and_hits_by_bin() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.92, 0.08], [0.45, 0.55], [1.0, 0.0]])
    tokens, confidence, hits = calibration(probabilities.log(), torch.tensor([0, 1, 1, 0])).tolist()
    assert (tokens[13], tokens[8], tokens[CALIBRATION_BINS - 1], sum(tokens)) == (2, 1, 1, 4)
    assert confidence[13] == pytest.approx(1.82)
    assert hits[13] == 1
    assert hits[8] == 1
