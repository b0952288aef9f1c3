"""Which rows are published with a student."""

from __future__ import annotations

import pytest

from flows.commands.publish import _dataset_card, _rows_behind
from infra.store.artifacts import ArtifactRef, Workspace
from tests.support.memory_store import MemoryStore


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    return MemoryStore().replace(monkeypatch)


def _artifact(kind: str, **inputs: ArtifactRef) -> ArtifactRef:
    return Workspace(kind, 1, {}, inputs).publish((), {}, {})


def test_a_student_of_an_api_teacher_comes_with_the_answers_that_it_was_trained_on(store: MemoryStore) -> None:
    rows = _artifact("augment")
    answers = _artifact("teacher_answers", rows=rows)
    assert _rows_behind(_artifact("kd", data=_artifact("logits", rows=answers))) == answers
    assert "12 prompts with the answers of the teacher" in _dataset_card(answers, 12)
    assert _rows_behind(_artifact("sft", data=rows)) == rows
    assert "no agent worked on them" in _dataset_card(rows, 12)
