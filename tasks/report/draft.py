"""A student as its teacher's draft in speculative decoding: what that is worth, and how vLLM is asked for it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any, Literal

from tasks.evaluate.analysis.draft import DRAFTED, tokens_a_step
from tasks.report.data import ReportData

Fit = Literal["as it is", "shared tokens"]
# vLLM 0.32's CPU build loses the temperatures of drafted positions (`_expand_kernel_impl` fills a copy)
ON_A_CPU = "On a CPU ask at temperature 0: vLLM's CPU build (0.32) answers wrongly at any other while it drafts."


def fit_of(mine: Mapping[str, Any], teachers: Mapping[str, Any]) -> Fit | None:
    """How vLLM takes a model as a draft, from the facts of both evaluations; None where their tokens differ.

    Embeddings of one tokenizer may be padded to different sizes (Qwen2.5's are, from 7B on): vLLM refuses such a draft
    unless it is told to keep to the tokens that both have.
    """
    ours, theirs = mine.get("vocabulary"), teachers.get("vocabulary")
    if not ours or not theirs or ours[0] != theirs[0]:
        return None
    return "as it is" if ours[1] == theirs[1] else "shared tokens"


def config(student: str, fit: Fit) -> dict[str, Any]:
    """vLLM's `speculative_config` with the student at that place.

    By default vLLM drafts the likeliest token. Drawn from the student's distribution, a draft is kept as often as the
    report says, but that is not to be had where the tokens are the shared ones (vLLM 0.32).
    """
    how = {"draft_sample_method": "probabilistic"} if fit == "as it is" else {"use_heterogeneous_vocab": True}
    return {"method": "draft_model", "model": student, "num_speculative_tokens": DRAFTED, **how}


def flags(student: str, fit: Fit) -> str:
    """What is added to the command that serves the teacher."""
    return f"--speculative-config {shlex.quote(json.dumps(config(student, fit)))}"


def sentence(data: ReportData, variant: str) -> str | None:
    """What to expect of it; None where that was not measured."""
    metrics = data.analysis.metrics.get(variant, {}) if data.analysis else {}
    if "acceptance" not in metrics:
        return None
    share = metrics["acceptance"].estimate
    least = "at least " if data.compared_with_top is not None else ""
    said = (
        f"On held-out references the teacher keeps {least}{100 * share:.1f} % of the tokens that this student draws "
        f"for it at temperature 1: {tokens_a_step(share, DRAFTED):.2f} tokens for each step of the teacher with "
        f"{DRAFTED} drafted. At temperature 0 it keeps {100 * metrics['top1_agreement'].estimate:.1f} %."
    )
    if data.variants[variant].draft == "shared tokens":
        said += " Their embeddings differ in size, so vLLM drafts the likeliest token: go by the second number."
    return said
