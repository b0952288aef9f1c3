"""A server of the finished model ends its answers where the model was taught to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.tokens.chat import GENERATION, stop_at


@pytest.mark.parametrize(
    ("told", "stops", "written"),
    [
        (None, (5,), {"eos_token_id": [5]}),
        ({"eos_token_id": 2, "top_p": 0.9}, (5, 2), {"eos_token_id": [5, 2], "top_p": 0.9}),
        ({"eos_token_id": [1, 5, 2]}, (5, 2), None),
        ({"eos_token_id": 5, "repetition_penalty": 1.1}, (5,), None),
    ],
)
def test_the_end_of_a_turn_is_among_those_that_generation_stops_at(
    told: dict[str, Any] | None, stops: tuple[int, ...], written: dict[str, Any] | None, tmp_path: Path
) -> None:
    path = tmp_path / GENERATION
    if told is not None:
        path.write_text(before := json.dumps(told))
    stop_at(tmp_path, stops)
    if written is None:
        assert path.read_text() == before  # as it was, to the letter
    else:
        assert json.loads(path.read_text()) == written
