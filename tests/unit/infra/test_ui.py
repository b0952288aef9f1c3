"""What people read of a running stage, in its own words."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.logging import disable_run_logger

from infra.orchestration import view


def _said(event: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DISTILFLOW_CONSOLE", "1")
    follow = view.StageView("kd", "training").follow(lambda event: "")
    with view.console.capture() as console, disable_run_logger():
        follow(event)
    return " ".join(console.get().split())


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        ({"event": "resumed", "step": 30, "lost": 0}, "continues from the checkpoint at step 30"),
        (
            {"event": "resumed", "step": 0, "lost": 30},
            "starts anew: the checkpoint of 30 steps is of another ZeRO stage or precision",
        ),
        (
            {"event": "checkpoint_pace", "interval_s": 1777.0, "cost_s": 53.3},
            "a checkpoint every 30 min: one takes 53 s",
        ),
        ({"event": "checkpoint_pace", "interval_s": 30.0, "cost_s": 0.2}, ""),
        (
            {"event": "checkpoint_lost", "why": "the store is full"},
            "a checkpoint could not be stored (the store is full); training goes on",
        ),
        ({"event": "warning", "text": "engine 3 of 8 is lost"}, "engine 3 of 8 is lost"),
        (
            {"event": "traffic", "bytes": 14_500_000_000, "seconds": 62.0},
            "still at work: 14.5 GB read and written in 62 s",
        ),
        ({"event": "loading", "engine": "vllm"}, ""),  # in the bar, and in the run's log
        ({"event": "ready", "engine": "vllm", "seconds": 61.4}, ""),
    ],
)
def test_each_event_is_told_in_one_line(event: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _said(event, monkeypatch) == sentence
