"""Attention with windows, sinks and capped scores, beside the whole matrix written out; gradients too."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tasks.train.model import attention
from tasks.train.model.attention import causal_attention

ROWS, HEADS, LENGTH, WIDTH = 2, 3, 11, 8


def _written_out(
    query: Tensor, key: Tensor, value: Tensor, window: int | None, cap: float | None, sinks_H: Tensor | None
) -> Tensor:
    scores = query @ key.transpose(2, 3) / math.sqrt(WIDTH)
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)[None, :]
    scores = scores.masked_fill((distance < 0) | (distance >= (window or LENGTH)), -torch.inf)
    if sinks_H is not None:
        sink = sinks_H[None, :, None, None].expand(ROWS, HEADS, LENGTH, 1)
        return torch.cat([scores, sink], dim=3).softmax(dim=3)[..., :-1] @ value
    return scores.softmax(dim=3) @ value


@pytest.mark.parametrize("block", [1, 4, LENGTH])
@pytest.mark.parametrize("window", [None, 1, 3, LENGTH, 50])
@pytest.mark.parametrize("kind", ["plain", "cap", "sinks"])
def test_it_is_the_matrix_written_out(
    kind: str, window: int | None, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many queries are computed at once."""
    monkeypatch.setattr(attention, "_SCORES_BYTES", 4 * ROWS * HEADS * LENGTH * block)
    generator = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in [(ROWS, HEADS, LENGTH, WIDTH)] * 3 + [(HEADS,)]
    ]
    query, key, value, sinks = parts
    wanted_of = parts if kind == "sinks" else parts[:3]
    how = {"cap": 0.7 if kind == "cap" else None, "sinks_H": sinks if kind == "sinks" else None}
    weights = torch.randn(ROWS, HEADS, LENGTH, WIDTH, dtype=torch.float64, generator=generator)
    wanted = _written_out(query, key, value, window, **how)  # type: ignore[arg-type]
    got = causal_attention(query, key, value, None, window=window, **how)  # type: ignore[arg-type]
    torch.testing.assert_close(got, wanted)
    for ours, theirs in zip(
        torch.autograd.grad((got * weights).sum(), wanted_of),
        torch.autograd.grad((wanted * weights).sum(), wanted_of),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_cap_is_computed_in_blocks_that_do_not_grow_with_the_rows() -> None:
    """The scores of all queries at once would be 64 GiB a layer for a row of 32,768 tokens and 16 heads."""
    shapes: list[tuple[int, ...]] = []

    def seen(query: Tensor, key: Tensor, *_: object) -> Tensor:
        shapes.append((*query.shape[:3], key.shape[2]))
        return query

    patch = pytest.MonkeyPatch()
    patch.setattr(attention, "_capped_block", seen)
    patch.setattr(attention, "_band", lambda *_: torch.zeros(1))
    x = torch.zeros(1, 16, 32_768, 1)
    causal_attention(x, x, x, 1.0, cap=1.0)
    patch.undo()
    assert sum(queries for _, _, queries, _ in shapes) == 32_768
    assert max(4 * math.prod(shape) for shape in shapes) <= attention._SCORES_BYTES
