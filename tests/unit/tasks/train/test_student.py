"""The loss that a student is trained on: that of transformers on responses, nothing on prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tasks.train.data.order import Example
from tasks.train.data.packing import pack, use_packed_attention
from tasks.train.model.student import SupervisedLoss
from tests.support.families import smallest_qwen2

IDS = [[7, 3, 9, 11, 2, 40], [5, 5, 8, 30], [12, 6, 60, 61, 62, 63, 64, 1, 2]]
STARTS = [3, 1, 5]


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(smallest_qwen2(), attn_implementation="eager").double()


def _loss(model: Any, ids: list[list[int]]) -> torch.Tensor:
    batch = pack([Example(str(n), row, start) for n, (row, start) in enumerate(zip(ids, STARTS, strict=True))])
    loss: torch.Tensor = SupervisedLoss(model, None)(*batch.inputs)
    return loss


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_value_and_gradients_are_transformers_own_with_the_prompt_masked(model: Any) -> None:
    reference = torch.zeros((), dtype=torch.float64)
    for ids, start in zip(IDS, STARTS, strict=True):
        labels = torch.tensor([[-100] * start + ids[start:]])
        reference = reference + model(torch.tensor([ids]), labels=labels).loss * (len(ids) - start)
    reference.backward()
    wanted = _gradients(model)
    use_packed_attention(model)
    loss = _loss(model, IDS)
    loss.backward()
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=0)
    for name, gradient in _gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6, msg=name)
