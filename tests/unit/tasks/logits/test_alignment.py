"""Token alignment."""

import numpy as np
import pytest

from infra.errors import ConfigurationError
from infra.models import resolve
from tasks.logits.alignment import check_same_tokens, within_vocabulary
from tasks.tokens import tokenizer_digests


def test_teacher_ids_beyond_the_students_vocabulary_are_dropped() -> None:
    ids = np.array([[5, 151_700, 3]], dtype=np.int32)
    logprobs = np.array([[-0.1, -3.0, -4.0]], dtype=np.float32)
    kept_ids, kept = within_vocabulary(ids, logprobs, 151_665)
    assert kept_ids.tolist() == [[5, 0, 3]]
    assert np.isneginf(kept[0]).tolist() == [False, True, False]
    assert within_vocabulary(ids, logprobs, 152_064)[1] is logprobs


def test_students_with_another_token_map_or_template_are_refused_by_name() -> None:
    student = resolve("demo", "student")
    digests = tokenizer_digests(resolve("demo", "teacher"))
    check_same_tokens(digests, student)
    with pytest.raises(ConfigurationError, match="different ids"):
        check_same_tokens({**digests, "vocabulary": "other"}, student)
    with pytest.raises(ConfigurationError, match="different chat templates"):
        check_same_tokens({**digests, "template": "other"}, student)
