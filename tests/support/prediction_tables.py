"""Prediction tables made by hand."""

from __future__ import annotations

from typing import Any

import pandas as pd

from tasks.evaluate.heldout.predictions import as_table

_ROW: dict[str, Any] = {
    "instruction": "How many?",
    "input": "",
    "reference": "SELECT 1",
    "task_category": "sql",
    "language": "en",
    "generated": "SELECT 1",
    "generated_tokens": 3,
    "truncated": False,
    "correct": True,
    "wrong_result": None,
    "samples": [],
    "samples_correct": [],
    "response_tokens": 10,
    "nll": 5.0,
    "kl_tokens": 10,
    "kl_to_teacher": 1.0,
    "topk_kl": 0.5,
    "top1_agreed": 8,
    "accepted": 7.5,
    "calibration_tokens": [0.0] * 14 + [10.0],
    "calibration_confidence": [0.0] * 14 + [9.7],
    "calibration_hits": [0.0] * 14 + [9.0],
}


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    """One row for each dict of what differs from an ordinary one."""
    return as_table([{**full(row), "row_id": row.get("row_id", f"row{index}")} for index, row in enumerate(rows)])


def full(row: dict[str, Any]) -> dict[str, Any]:
    """An ordinary row, but for what differs."""
    return {"row_id": "row", **_ROW, **row}


def wrong(text: str = "SELECT 2", result: str | None = "two") -> dict[str, Any]:
    return {"correct": False, "generated": text, "wrong_result": result}
