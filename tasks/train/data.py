"""Examples, their order, and how a global batch is dealt to ranks and micro-batches.

The order depends on the seed alone, so a resumed run, or one on another number of ranks, sees the same rows
in the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Example:
    """A tokenised row, with the teacher's top K for each response token where there is a teacher.

    `ids` T tokens; `teacher_ids_RK` int32 and `teacher_logprobs_RK` float32 for the R response tokens.
    """

    row_id: str
    ids: Sequence[int]
    response_start: int
    teacher_ids_RK: np.ndarray | None = None
    teacher_logprobs_RK: np.ndarray | None = None

    @property
    def supervised_tokens(self) -> int:
        return len(self.ids) - self.response_start


@dataclass(frozen=True)
class MicroBatch:
    """B rows padded to T tokens; N supervised positions in all.

    `positions_N` indexes the flattened (B·T) hidden states that *predict* the labels: one before each label.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    positions_N: Tensor
    labels_N: Tensor
    teacher_ids_NK: Tensor | None
    teacher_logprobs_NK: Tensor | None


def total_steps(examples: int, epochs: float, global_batch: int, max_steps: int | None) -> int:
    return max_steps or max(1, round(epochs * examples / global_batch))


def global_batch_indices(examples: int, global_batch: int, step: int, seed: int) -> list[int]:
    """The rows of a step: a slice of the endless stream of shuffled epochs, so each row comes once an epoch."""
    first = step * global_batch
    indices: list[int] = []
    for epoch in range(first // examples, (first + global_batch - 1) // examples + 1):
        order = np.random.default_rng([seed, epoch]).permutation(examples)
        start, end = max(first - epoch * examples, 0), min(first + global_batch - epoch * examples, examples)
        indices.extend(int(i) for i in order[start:end])
    return indices


def deal(batch: Sequence[Example], rank: int, ranks: int, micro_batches: int) -> list[list[Example]]:
    """This rank's micro-batches: rows of similar length together, all ranks alike. Some may be empty."""
    by_length = sorted(batch, key=lambda example: (len(example.ids), example.row_id))
    mine = by_length[rank::ranks]
    size = -(-len(by_length) // (ranks * micro_batches))
    return [mine[i * size : (i + 1) * size] for i in range(micro_batches)]


def collate(examples: Sequence[Example], pad_id: int) -> MicroBatch:
    """Pad on the right; label i is predicted by position i−1."""
    longest = max(len(example.ids) for example in examples)
    input_ids = torch.full((len(examples), longest), pad_id, dtype=torch.long)
    attention = torch.zeros((len(examples), longest), dtype=torch.long)
    positions, labels = [], []
    for b, example in enumerate(examples):
        ids = torch.tensor(example.ids, dtype=torch.long)
        input_ids[b, : len(ids)] = ids
        attention[b, : len(ids)] = 1
        positions.append(torch.arange(example.response_start - 1, len(ids) - 1) + b * longest)
        labels.append(ids[example.response_start :])
    teacher_ids = teacher_logprobs = None
    if examples[0].teacher_ids_RK is not None:
        teacher_ids = torch.from_numpy(np.concatenate([_known(e.teacher_ids_RK) for e in examples])).long()
        teacher_logprobs = torch.from_numpy(np.concatenate([_known(e.teacher_logprobs_RK) for e in examples]))
    return MicroBatch(input_ids, attention, torch.cat(positions), torch.cat(labels), teacher_ids, teacher_logprobs)


def _known(array: np.ndarray | None) -> np.ndarray:
    assert array is not None, "rows with and without a teacher in one batch"
    return array
