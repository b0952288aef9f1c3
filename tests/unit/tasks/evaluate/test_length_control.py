"""Length control against fits that can be done by hand, and against what an honest model would have got."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluate.benchmarks.length_control import fit_logistic, length_controlled


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


@given(longer=st.floats(0.05, 0.95), shorter=st.floats(0.05, 0.95), share=st.integers(5, 35))
def test_two_length_differences_give_the_fit_by_hand(longer: float, shorter: float, share: int) -> None:
    """With Δ = ±a the model is saturated: θ and φ solve logit(p) = θ ± φ·t for the two observed rates."""
    count = 40
    preferences = [longer] * share + [shorter] * (count - share)
    model = [200] * share + [100] * (count - share)
    reference = [100] * share + [200] * (count - share)
    control = length_controlled(preferences, model, reference)
    spread = np.std([-100] * share + [100] * (count - share), ddof=1)
    t = math.tanh(100 / spread)
    theta = (_logit(longer) + _logit(shorter)) / 2
    phi = (_logit(shorter) - _logit(longer)) / (2 * t)
    assert control.model == pytest.approx(theta, abs=0.02)
    assert control.length == pytest.approx(phi, abs=0.02)
    assert control.win_rate == pytest.approx(_sigmoid(theta), abs=5e-3)


def test_answers_of_equal_lengths_leave_the_win_rate_as_it_is() -> None:
    control = length_controlled([1.0, 0.0, 1.0, 1.0], [50] * 4, [50] * 4)
    assert control.win_rate == pytest.approx(0.75, abs=1e-3)


def test_difficulty_comes_out_and_the_rate_is_the_mean_over_instructions() -> None:
    dice = np.random.default_rng(1)
    difficulty = dice.normal(size=4_000)
    lengths = dice.integers(100, 900, size=(2, 4_000))
    delta = (lengths[1] - lengths[0]) / (lengths[1] - lengths[0]).std(ddof=1)
    truth = 1 / (1 + np.exp(-(0.4 - 1.5 * np.tanh(delta) + 0.8 * difficulty)))
    control = length_controlled(truth, lengths[0], lengths[1], difficulty.tolist())
    assert control.difficulty == pytest.approx(0.8, abs=1e-2)
    assert control.length == pytest.approx(-1.5, abs=1e-2)
    assert control.win_rate == pytest.approx(float(np.mean(1 / (1 + np.exp(-(0.4 + 0.8 * difficulty))))), abs=1e-3)


def test_gamed_baselines_hold_the_length_term_where_the_models_own_answers_say_nothing_of_it() -> None:
    """All answers as long as the reference's: φ is what the gamed rows say, and the win rate is untouched."""
    gamed = [
        {"preference": _sigmoid(2 * math.tanh(x)), "std_delta_len": x, "instruction_difficulty": 0.0}
        for x in np.linspace(-2, 2, 201)
    ]
    control = length_controlled([0.7] * 50, [80] * 50, [80] * 50, [0.0] * 50, gamed)
    assert control.length == pytest.approx(2.0, abs=0.05)
    assert control.win_rate == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize("always", [0.0, 1.0])
def test_a_model_that_always_or_never_wins_gets_a_finite_rate(always: float) -> None:
    control = length_controlled([always] * 100, list(range(100, 200)), [150] * 100)
    assert control.win_rate == pytest.approx(always, abs=1e-2)
    assert math.isfinite(control.model)
    assert 0 <= control.low <= control.win_rate <= control.high <= 1 or control.win_rate == pytest.approx(control.low)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    dice = np.random.default_rng(7)
    held, runs = 0, 200
    for run in range(runs):
        model, reference = dice.integers(100, 900, size=(2, 150))
        delta = reference - model
        p = 1 / (1 + np.exp(-(0.3 - 1.0 * np.tanh(delta / delta.std(ddof=1)))))
        control = length_controlled((dice.random(150) < p).astype(float), model, reference, seed=run)
        held += control.low <= _sigmoid(0.3) <= control.high
    assert 0.90 <= held / runs <= 0.99


def test_the_gradient_is_nought_at_the_fit() -> None:
    dice = np.random.default_rng(3)
    x, y, weights = dice.normal(size=(30, 3)), dice.random(30), dice.random((2, 30))
    for terms, weight in zip(fit_logistic(x, y, weights), weights, strict=True):
        p = 1 / (1 + np.exp(-(x @ terms)))
        assert np.abs((weight * (y - p)) @ x - 1e-3 * terms).max() < 1e-6
