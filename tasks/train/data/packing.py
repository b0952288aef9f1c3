"""Rows of a micro-batch one after the other in one sequence, without padding and without seeing each other.

Linear layers work on the T tokens alone. Attention runs within each row: rows of similar length are laid side by
side for it, padded on the right, where causal attention never looks. Position ids start anew in each row. That
is exact for causal attention of any window, and uses the fused kernels of every device, since no mask is needed.

T tokens in all, B rows in a group, L their longest, N supervised positions, K kept teacher tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from infra.errors import ConfigurationError
from tasks.train.data.order import Example
from tasks.train.model.attention import causal_attention
from tasks.train.model.families import check_trainable

ATTENTION = "packed"
_NOT_PLAIN = ("position_bias", "sinks")
_SHORTEST = 0.75  # of a group's longest row: attention's padding stays under a quarter


@dataclass(frozen=True)
class MicroBatch:
    """Packed rows. `positions_N` are those that *predict* the labels: one before each label, in the same row.

    `kd_weight_N` is what a token has of the divergence, where rows differ in it (1: no cross-entropy), `weight_N` what
    its whole loss counts.
    """

    input_ids_1T: Tensor
    position_ids_1T: Tensor
    rows: list[Tensor]
    positions_N: Tensor
    labels_N: Tensor
    teacher_ids_NK: Tensor | None
    teacher_logprobs_NK: Tensor | None
    kd_weight_N: Tensor | None = None
    weight_N: Tensor | None = None

    @property
    def inputs(self) -> tuple[Tensor | None, ...]:
        """What `SupervisedLoss` is called with."""
        return (
            self.input_ids_1T,
            self.position_ids_1T,
            self.positions_N,
            self.labels_N,
            self.teacher_ids_NK,
            self.teacher_logprobs_NK,
            self.kd_weight_N,
            self.weight_N,
            *self.rows,
        )


def pack(examples: Sequence[Example]) -> MicroBatch:
    """One micro-batch of these rows."""
    lengths = np.array([len(example.ids) for example in examples])
    starts = np.cumsum([0, *lengths[:-1]])
    places = [example.places_R for example in examples]
    positions = [places_R - 1 + start for places_R, start in zip(places, starts, strict=True)]
    ids = [np.asarray(example.ids, dtype=np.int64) for example in examples]
    labels = [row[places_R] for row, places_R in zip(ids, places, strict=True)]
    teacher_ids = teacher_logprobs = None
    if examples[0].teacher_ids_RK is not None:
        teacher_ids = torch.from_numpy(np.concatenate([_known(e.teacher_ids_RK) for e in examples])).long()
        teacher_logprobs = torch.from_numpy(np.concatenate([_known(e.teacher_logprobs_RK) for e in examples]))
    supervised = [len(places_R) for places_R in places]
    return MicroBatch(
        torch.from_numpy(np.concatenate(ids))[None],
        torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
        rows_side_by_side(lengths),
        torch.from_numpy(np.concatenate(positions)),
        torch.from_numpy(np.concatenate(labels)),
        teacher_ids,
        teacher_logprobs,
        _of_tokens([example.kd_weight for example in examples], supervised),
        _of_tokens([example.weight for example in examples], supervised),
    )


def _of_tokens(weights: list[float | None], tokens: list[int]) -> Tensor | None:
    """Each row's weight for each of its supervised tokens; None where rows have none."""
    return None if weights[0] is None else torch.from_numpy(np.repeat(np.array(weights, np.float32), tokens))


def rows_side_by_side(lengths: np.ndarray) -> list[Tensor]:
    """How attention lays the rows out: where each of the T tokens is in the groups laid end to end, then each group.

    A group is (B, L): the packed position of each of its places; a row's padding repeats its last token.
    """
    starts = np.cumsum([0, *lengths[:-1]])
    groups: list[np.ndarray] = []
    back = np.empty(int(lengths.sum()), dtype=np.int64)
    place = 0
    for rows in _similar(lengths):
        longest = int(lengths[rows[0]])
        step = np.arange(longest)
        groups.append(starts[rows, None] + np.minimum(step, lengths[rows, None] - 1))
        for row in rows:
            back[starts[row] : starts[row] + lengths[row]] = place + step[: lengths[row]]
            place += longest
    return [torch.from_numpy(back), *map(torch.from_numpy, groups)]


def _similar(lengths: np.ndarray) -> list[list[int]]:
    """Rows by length, the longest first, in groups of similar ones."""
    groups: list[list[int]] = []
    for row in np.argsort(-lengths, kind="stable").tolist():
        if not groups or lengths[row] < _SHORTEST * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(row)
    return groups


def packed_attention(
    module: Any,
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    attention_mask: None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    rows: Sequence[Tensor] = (),
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row, in transformers' attention interface; H query heads, G key heads.

    `s_aux` (H) are attention sinks, `softcap` caps the scores: see `tasks.train.model.attention`.
    """
    if unknown := [name for name in _NOT_PLAIN if others.get(name) is not None]:
        raise ConfigurationError(f"{type(module).__name__} cannot be trained here: its attention has {unknown[0]}")
    back_T, *groups = rows
    outputs = []
    for index_BL in groups:
        query, key, value = (_laid_out(x[0], index_BL) for x in (query_1HTD, key_1GTD, value_1GTD))
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        out = causal_attention(query, key, value, scaling, dropout, sliding_window, softcap, s_aux)
        outputs.append(out.transpose(1, 2).flatten(0, 1))  # (B·L, H, D)
    return torch.cat(outputs).index_select(0, back_T)[None], None


def _laid_out(x_HTD: Tensor, index_BL: Tensor) -> Tensor:
    """(B, H, L, D)."""
    gathered = x_HTD.index_select(1, index_BL.flatten())
    return gathered.unflatten(1, index_BL.shape).transpose(0, 1)


def use_packed_attention(model: Any) -> None:
    """Let the model's layers attend within rows; ConfigurationError where its layers mix tokens in another way."""
    check_trainable(type(model).__name__, model.config.to_dict())
    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)
    model.set_attn_implementation(ATTENTION)


def _known(array: np.ndarray | None) -> np.ndarray:
    assert array is not None, "rows with and without a teacher in one batch"
    return array
