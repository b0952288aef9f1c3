"""Causal attention of rows side by side: of any window, with sinks (GPT-OSS) or capped scores (Gemma 2).

Padding stands on the right, where causal attention never looks. Fused kernels do all of it but the cap.
B rows, H heads, L their longest, D a head's width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_SCORES_BYTES = 2**28  # of one block of queries, in fp32; the backward pass computes each block anew
_ALIGNED = 8  # the columns that fused kernels count heads' widths in


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    dropout: float = 0.0,
    window: int | None = None,
    cap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """All (B, H, L, D). A token sees itself and the tokens before it, `window` in all where there is one.

    With `cap`, scores s become cap · tanh(s / cap). With `sinks_H`, each softmax has one outcome more, of that score,
    which adds nothing to the output. Raises ValueError for both at once, which no model has.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if cap is not None and sinks_H is not None:
        raise ValueError("attention with a cap and sinks")
    if cap is not None:
        return _capped(query, key, value, scale, dropout, window, cap)
    if sinks_H is not None:
        query, key, wide_value = _behind_a_sink(query, key, value, sinks_H, scale)
        return _fused(query, key, wide_value, scale, dropout, window, sink=True)[:, :, 1:, : value.shape[-1]]
    return _fused(query, key, value, scale, dropout, window, sink=False)


def _fused(
    query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float, window: int | None, sink: bool
) -> Tensor:
    """With `sink` the first key is one that every query sees."""
    length = query.shape[2]
    band = None
    if window and window < length:
        band = _band(range(length), range(length), window, query.device)
        if sink:
            band[:, 0] = True
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=band, dropout_p=dropout, is_causal=band is None, scale=scale
    )


def _behind_a_sink(
    query: Tensor, key: Tensor, value: Tensor, sinks_H: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A place more before each row, whose key scores the sink with every query, and whose value is nothing.

    The score comes of columns that only that key has, so that causal attention is still all there is to compute.
    """
    width = query.shape[-1]
    wider = (width // _ALIGNED + 1) * _ALIGNED
    query, key, value = (F.pad(x, (0, wider - x.shape[-1], 1, 0)) for x in (query, key, value))
    query[..., width] = 1.0
    key[:, :, 0, width] = sinks_H / scale
    return query, key, value


def _capped(
    query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float, window: int | None, cap: float
) -> Tensor:
    """A block of queries after the other, with those of the keys that any of them sees."""
    rows, heads, length, _ = query.shape
    step = max(_SCORES_BYTES // (4 * rows * heads * length), 1)
    blocks = []
    for first in range(0, length, step):
        last = min(first + step, length)
        since = max(first + 1 - window, 0) if window else 0
        seen = _band(range(first, last), range(since, last), window or length, query.device)
        parts = query[:, :, first:last], key[:, :, since:last], value[:, :, since:last]
        blocks.append(checkpoint(_capped_block, *parts, seen, scale, dropout, cap, use_reentrant=False))
    return torch.cat(blocks, dim=2)


def _capped_block(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float, dropout: float, cap: float
) -> Tensor:
    scores = cap * torch.tanh(query @ key.transpose(2, 3) * (scale / cap))
    exact = torch.promote_types(query.dtype, torch.float32)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1, dtype=exact).to(query.dtype)
    return F.dropout(weights, dropout) @ value


def _band(queries: range, keys: range, window: int, device: torch.device) -> Tensor:
    """Which of the keys each query sees: itself and the `window` − 1 before it."""
    query, key = (torch.arange(part.start, part.stop, device=device) for part in (queries, keys))
    distance = query[:, None] - key[None, :]
    return (distance >= 0) & (distance < window)
