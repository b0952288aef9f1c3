"""What evaluation keeps of each held-out row (`predictions.parquet`), and the numbers from it (`metrics.json`).

A table is a pandas DataFrame. All metrics are sums over rows, so a slice of the rows gives the slice's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from infra.store.parquet import packed, unpacked
from tasks.stats.intervals import PerRow

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("instruction", pa.string()),
        ("input", pa.string()),
        ("reference", pa.string()),
        ("task_category", pa.string()),
        ("language", pa.string()),
        ("generated", pa.string()),
        ("generated_tokens", pa.int64()),
        ("truncated", pa.bool_()),
        ("correct", pa.bool_()),
        ("wrong_result", pa.string()),  # digest of what a wrong query returned
        ("samples", pa.list_(pa.string())),
        ("samples_correct", pa.list_(pa.bool_())),
        ("response_tokens", pa.int64()),
        ("nll", pa.float64()),  # sums over the reference response, in nats
        ("kl_tokens", pa.int64()),  # positions that the distances to the teacher are over
        ("kl_to_teacher", pa.float64()),
        ("topk_kl", pa.float64()),
        ("top1_agreed", pa.int64()),
        ("accepted", pa.float64()),  # tokens that the teacher would keep of a draft; NaN where tokenizers differ
        ("calibration_tokens", pa.list_(pa.float64())),  # by bin of confidence
        ("calibration_confidence", pa.list_(pa.float64())),
        ("calibration_hits", pa.list_(pa.float64())),
    ]
)
_IN_NATS = ("nll", "kl_to_teacher", "topk_kl")


def to_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return packed(pa.Table.from_pylist(list(rows), schema=SCHEMA))


def from_parquet(data: bytes) -> pd.DataFrame:
    return as_table(unpacked(data).to_pandas())


def as_table(rows: Any) -> pd.DataFrame:
    """Rows as columns; `correct` is True, False, or None where nothing was run."""
    import pandas as pd  # which takes half a second

    table = pd.DataFrame(rows, columns=SCHEMA.names)
    return table.assign(correct=table["correct"].astype(object).where(table["correct"].notna(), None))


def without_numbers(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ids of the rows that a variant or its teacher gives no finite number for: they would make every number none.

    Few are left out of the table. Of a model that gives none for more than a tenth, none is: it has diverged, and
    its numbers are to say so.
    """
    found = [row["row_id"] for row in rows if not all(math.isfinite(row[name]) for name in _IN_NATS)]
    return found if len(found) <= len(rows) / 10 else []


def per_row(table: pd.DataFrame) -> dict[str, PerRow]:
    """Every metric that is a sum over rows, by name; accuracies only where every row was executed, distances only where
    there was a teacher to compare with.
    """
    distances = {
        "kl_to_teacher": PerRow.of(table["kl_to_teacher"], table["kl_tokens"]),
        "topk_kl": PerRow.of(table["topk_kl"], table["kl_tokens"]),
        "top1_agreement": PerRow.of(table["top1_agreed"], table["kl_tokens"]),
    }
    found = {
        "cross_entropy": PerRow.of(table["nll"], table["response_tokens"]),
        **(distances if table["kl_tokens"].sum() else {}),
        "output_tokens": PerRow.of(table["generated_tokens"]),
        "truncated": PerRow.of(table["truncated"]),
    }
    if table["accepted"].notna().all():
        found["acceptance"] = PerRow.of(table["accepted"], table["kl_tokens"])
    if is_judged(table):
        found["exec_accuracy"] = PerRow.of(table["correct"])
        if len(table["samples_correct"].iloc[0]):
            found["sampled_accuracy"] = PerRow.of([np.mean(marks) for marks in table["samples_correct"]])
            found["any_sample_correct"] = PerRow.of([any(marks) for marks in table["samples_correct"]])
    return found


def is_judged(table: pd.DataFrame) -> bool:
    return len(table) > 0 and bool(table["correct"].notna().all())


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """One variant's numbers over all its rows."""
    values: dict[str, Any] = {name: metric.value for name, metric in per_row(table).items()}
    bins = calibration_bins(table)
    return {
        **values,
        "exec_accuracy": accuracy(table),
        "perplexity": perplexity(values["cross_entropy"]),
        "ece": expected_calibration_error(bins),
        "calibration": bins,
        "n": len(table),
    }


def accuracy(table: pd.DataFrame) -> float | None:
    """Share of right answers among those that were run; None where none was."""
    judged = table["correct"].dropna()
    return float(judged.astype(float).mean()) if len(judged) else None


def perplexity(cross_entropy: float) -> float:
    return math.exp(cross_entropy) if not cross_entropy > 700 else math.inf


def calibration_bins(table: pd.DataFrame) -> list[dict[str, float]]:
    """For a reliability diagram: each bin of confidence that has tokens, with their mean confidence and hit rate."""
    tokens_C, confidence_C, hits_C = (
        np.stack(table[f"calibration_{name}"]).sum(axis=0) for name in ("tokens", "confidence", "hits")
    )
    size = len(tokens_C)
    return [
        {
            "low": c / size,
            "high": (c + 1) / size,
            "tokens": int(tokens_C[c]),
            "confidence": float(confidence_C[c] / tokens_C[c]),
            "accuracy": float(hits_C[c] / tokens_C[c]),
        }
        for c in range(size)
        if tokens_C[c]
    ]


def expected_calibration_error(bins: Sequence[Mapping[str, float]]) -> float:
    """ECE (Guo et al. 2017, eq. 3): |hit rate − confidence| of the likeliest token, averaged over tokens."""
    tokens = sum(b["tokens"] for b in bins)
    return sum(b["tokens"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / tokens if tokens else math.nan
