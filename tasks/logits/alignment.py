"""Teacher and student token ids: the same, or a clear refusal.

Qwen2.5 pads its embedding to 151,936 (0.5B–3B) or 152,064 (7B and up) for one tokenizer of 151,665 tokens,
so token→id maps are compared, never sizes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from infra.errors import ConfigurationError
from infra.models import ModelSource
from tasks.tokens import tokenizer_digests


def check_same_tokens(teacher: Mapping[str, str], student: ModelSource) -> None:
    """Refuse a student whose token→id map or chat template is not the one that was scored."""
    mine = tokenizer_digests(student)
    if mine["vocabulary"] != teacher["vocabulary"]:
        raise ConfigurationError(
            f"student {student.name!r} and its teacher map tokens to different ids: choose two models with "
            "one tokenizer (aligning different tokenizers is not supported yet)"
        )
    if mine["template"] != teacher["template"]:
        raise ConfigurationError(
            f"student {student.name!r} and its teacher have different chat templates: copy the teacher's "
            "chat template into the student's tokenizer_config.json, or choose models that share one"
        )


def within_vocabulary(ids_RK: np.ndarray, logprobs_RK: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Drop teacher ids that the student's output does not have: log-probability −inf, id 0."""
    known = ids_RK < size
    if known.all():
        return ids_RK, logprobs_RK
    return np.where(known, ids_RK, 0), np.where(known, logprobs_RK, -np.inf).astype(np.float32)
