"""Packed rows are the rows alone: outputs and gradients, for full and sliding attention.

In double precision, but for transformers' norms and rotations, which are taken in single.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig, Qwen2Config, Qwen3NextConfig

from infra.errors import ConfigurationError
from tasks.train.data.order import Example
from tasks.train.data.packing import MicroBatch, pack, rows_side_by_side, use_packed_attention

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LENGTHS = (17, 3, 9, 16, 1, 8, 2)


def qwen() -> Any:
    return AutoModelForCausalLM.from_config(Qwen2Config(**SMALL, tie_word_embeddings=True))


def sliding() -> Any:
    return AutoModelForCausalLM.from_config(MistralConfig(**SMALL, sliding_window=5))


def some_sliding() -> Any:
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    return AutoModelForCausalLM.from_config(
        Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=4, layer_types=kinds)
    )


def _examples(lengths: tuple[int, ...] = LENGTHS) -> list[Example]:
    rng = np.random.default_rng(0)
    return [Example(f"row{n}", rng.integers(3, 97, size).tolist(), size // 2) for n, size in enumerate(lengths)]


def _hidden(model: Any, batch: MicroBatch) -> torch.Tensor:
    decoder = model.get_decoder()
    out: torch.Tensor = decoder(
        batch.input_ids_1T, position_ids=batch.position_ids_1T, rows=batch.rows, use_cache=False
    )[0]
    return out[0]


@pytest.mark.parametrize("make", [qwen, sliding, some_sliding])
def test_packed_rows_are_the_rows_alone(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = make().double()
    model.set_attn_implementation("eager")
    examples = _examples()
    alone = [model.get_decoder()(torch.tensor([example.ids]), use_cache=False)[0][0] for example in examples]
    weights = torch.randn(sum(LENGTHS), 32, dtype=torch.float64)
    (torch.cat(alone) * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    use_packed_attention(model)
    packed = _hidden(model, pack(examples))
    torch.testing.assert_close(packed, torch.cat(alone), atol=2e-6, rtol=1e-5)
    (packed * weights).sum().backward()
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4, msg=name)


def test_no_row_sees_another() -> None:
    torch.manual_seed(0)
    model = qwen().double()
    use_packed_attention(model)
    examples = _examples()
    before = _hidden(model, pack(examples))
    changed = [Example("row0", [5] * LENGTHS[0], 1), *examples[1:]]
    after = _hidden(model, pack(changed))
    assert torch.equal(before[LENGTHS[0] :], after[LENGTHS[0] :])
    assert not torch.equal(before[: LENGTHS[0]], after[: LENGTHS[0]])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_every_token_has_one_place_and_comes_back(lengths: list[int]) -> None:
    back, *groups = rows_side_by_side(np.array(lengths))
    tokens = torch.arange(sum(lengths))
    laid_out = torch.cat([tokens[group.flatten()] for group in groups])
    assert torch.equal(laid_out[back], tokens)
    assert sum(group.numel() for group in groups) <= sum(lengths) / 0.75 + len(groups)


def test_layers_that_mix_tokens_in_another_way_are_refused() -> None:
    kinds = ["linear_attention", "full_attention", "full_attention"]
    model = AutoModelForCausalLM.from_config(Qwen3NextConfig(**SMALL, layer_types=kinds))
    with pytest.raises(ConfigurationError, match="cannot be trained here"):
        _trained_hidden(model)


def _trained_hidden(model: Any) -> torch.Tensor:
    use_packed_attention(model)
    return _hidden(model, pack(_examples()))


def test_a_model_that_is_older_than_the_interface_still_works_or_is_refused() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        GPT2Config(
            vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0
        )
    ).double()
    model.eval()
    examples = _examples()
    alone = torch.cat([model.get_decoder()(torch.tensor([e.ids]), use_cache=False)[0][0] for e in examples])
    use_packed_attention(model)
    torch.testing.assert_close(_hidden(model, pack(examples)), alone, atol=2e-6, rtol=1e-5)
