"""A server of the finished model ends its answers where the model was taught to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.tokens.chat import GENERATION, stop_at
from tasks.train.model.export import converted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tied_weights_stay_one_tensor_in_another_dtype(dtype: torch.dtype) -> None:
    tied, own = torch.rand(4, 3), torch.rand(4, 3)
    made = converted({"head": tied, "embedding": tied.view(4, 3), "own": own}, dtype)
    assert made["head"].data_ptr() == made["embedding"].data_ptr() != made["own"].data_ptr()
    assert torch.equal(made["head"], tied.to(dtype))
    assert torch.equal(made["own"], own.to(dtype))


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
