"""What a teacher behind an API cannot be asked is refused in a sentence; what changes no answer is in no address."""

from typing import Any

import pytest
from pydantic import ValidationError

from tasks.logits.api.settings import TeacherCalls
from tasks.logits.settings import Scoring


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"engine": "api", "api": {"fallbacks": ["openai/other"]}}, "scoring.api.fallbacks would be other teachers"),
        ({"engine": "api", "api": {"batch": True}}, "scoring.api.batch is not known"),
        ({"api": {"temperature": 0.0}}, "set scoring.engine=api too"),
    ],
)
def test_what_cannot_be_asked_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Scoring.model_validate(given)


def test_how_a_teacher_is_reached_changes_no_answer() -> None:
    given = {"api_base": "http://127.0.0.1:1/v1", "concurrency": 3, "usd_per_million_tokens": (1.0, 2.0)}
    assert TeacherCalls.model_validate(given).identity() == TeacherCalls().identity()
    assert TeacherCalls(temperature=0.0).identity() != TeacherCalls().identity()
