"""Paid-for answers between machines: out in segments of a bounded size, in whole, and never twice."""

from pathlib import Path

import pytest

from infra import settings
from infra.store import storage
from tasks.llm import cache
from tasks.llm.cache import AnswerCache


@pytest.mark.usefixtures("bucket")
def test_answers_travel_in_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_SEGMENT", 3)
    here, there = AnswerCache(tmp_path / "here.sqlite"), AnswerCache(tmp_path / "there.sqlite")
    said = {f"key-{number}": {"text": f"answer {number}", "cost": number / 8} for number in range(7)}
    for key, answer in said.items():
        here.put(key, answer)
    assert here.push() == 7
    assert here.push() == 0
    assert len(list(storage.keys(f"s3://{settings.bucket()}/answers/"))) == 3

    assert there.pull() == 3
    assert {key: there.get(key) for key in said} == said
    assert there.push() == 0  # what came from storage does not go back
    assert here.pull() == 0
    here.close()
    there.close()
