"""The made-up run's held-out rows, analysed as a real run's are."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tasks.evaluate.analysis.analysis import Analysis, analyse
from tasks.evaluate.heldout.metrics import CALIBRATION_BINS
from tasks.evaluate.heldout.predictions import as_table

_OVERCONFIDENT = {"base": 0.18, "sft": 0.09, "sft_control": 0.11, "kd": 0.03, "teacher": 0.015}
_OWN = {"base": (0, 1, 2, 3), "sft": (0, 1, 2), "sft_control": (0, 1, 2), "kd": (0, 1), "teacher": ()}  # of five errors
_CATEGORIES = ("sql-join", "sql-aggregate", "sql-filter", "Open-ended writing with a long name", "rare")
_RIGHT = "SELECT name, COUNT(*) AS n FROM orders JOIN customers USING (id) GROUP BY name ORDER BY n DESC;"


def tables(
    marks: Mapping[str, Sequence[bool]], cross_entropy: Mapping[str, float], kl: Mapping[str, float]
) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(17)
    size = len(marks["base"])
    difficulty_N = rng.gamma(4, 0.25, size)
    tokens_N = rng.integers(8, 60, size)
    category_N = rng.choice(len(_CATEGORIES), size, p=[0.4, 0.3, 0.2, 0.08, 0.02])

    def noise(tokens: float) -> float:
        return tokens * rng.lognormal(0, 0.2)

    return {
        name: _table(
            [
                {
                    "row_id": f"row{i:04}",
                    "instruction": f"Which customers ordered most in month {i % 12 + 1}?",
                    "input": "CREATE TABLE orders (id INTEGER, placed TEXT);" if i % 2 else "",
                    "reference": _RIGHT,
                    "task_category": _CATEGORIES[category_N[i]],
                    "language": "en" if i % 7 else "zh",
                    "generated": _answer(name, right, i),
                    "generated_tokens": int(tokens_N[i]) + (0 if right else 9),
                    "truncated": not right and i % 13 == 0,
                    "correct": right,
                    "wrong_result": None if right else f"{name if i % 5 in _OWN[name] else 'teacher'}",
                    "response_tokens": int(tokens_N[i]),
                    "nll": float((0.1 if i % 60 == 9 and name == "base" else 1) * difficulty_N[i] * noise(tokens_N[i])),
                    "kl_tokens": int(tokens_N[i]),
                    "kl_to_teacher": float(kl[name] * difficulty_N[i] * tokens_N[i]),
                    "topk_kl": float(0.9 * kl[name] * difficulty_N[i] * tokens_N[i]),
                    "top1_agreed": int(rng.binomial(tokens_N[i], np.exp(-kl[name]))),
                    "accepted": float(np.exp(-0.8 * kl[name]) * tokens_N[i]),
                    **_calibration(rng, _OVERCONFIDENT[name], int(tokens_N[i])),
                }
                for i, right in enumerate(marks[name])
            ],
            cross_entropy[name],
            kl[name],
        )
        for name in marks
    }


def _answer(name: str, right: bool, row: int) -> str:
    if row % 97 == 3 and name in ("teacher", "kd"):
        return "I'm sorry, but I can't help with that request."
    words = _RIGHT.replace("name", ("name", "city", "placed", "total")[row % 4])
    if right:
        return f"```sql\n{words}\n```" if name in ("teacher", "kd") and row % 3 == 0 else words
    return words.replace(" ORDER BY n DESC", "").replace("COUNT(*)", "SUM(id)") if name != "base" else "name name ("


def _calibration(rng: np.random.Generator, gap: float, tokens: int) -> dict[str, list[float]]:
    confidence = rng.beta(5, 1.3, tokens)
    hit = rng.random(tokens) < confidence * (1 - gap)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    of = {"tokens": np.ones(tokens), "confidence": confidence, "hits": hit.astype(float)}
    return {
        f"calibration_{name}": np.bincount(bins, weights=values, minlength=CALIBRATION_BINS).tolist()
        for name, values in of.items()
    }


def _table(rows: list[dict[str, Any]], cross_entropy: float, kl: float) -> pd.DataFrame:
    """The columns, with the losses scaled to these means a token."""
    table = as_table([{"samples": [], "samples_correct": [], **row} for row in rows])
    tokens = table["response_tokens"].sum()
    for column, mean in (("nll", cross_entropy), ("kl_to_teacher", kl), ("topk_kl", 0.9 * kl)):
        total = table[column].sum()
        table[column] = table[column] * mean * tokens / total if total else 0.0
    return table


@functools.cache
def _analysed(labels: tuple[tuple[str, str], ...]) -> Analysis:
    from tests.support.report_sample import CROSS_ENTROPY, KL, SKILL, marks

    return analyse(tables(marks(SKILL), CROSS_ENTROPY, KL), dict(labels))


def sample_analysis(labels: Mapping[str, str]) -> Analysis:
    """Made once: the resampling takes seconds."""
    return _analysed(tuple(labels.items()))
