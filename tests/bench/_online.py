"""The training program with a teacher that computes its top K in every step, for `python -m tests.bench train`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from infra.processes import child
from tasks.train import program
from tasks.train.data.packing import use_packed_attention
from tasks.train.model import student


class OnlineLoss(student.SupervisedLoss):
    """The same loss on what the teacher says now."""

    def __init__(self, model: Any, loss: Any):
        super().__init__(model, loss)
        teacher: Any = AutoModelForCausalLM.from_pretrained(os.environ["BENCH_ONLINE_TEACHER"], dtype=torch.float32)
        use_packed_attention(teacher)
        self._teacher = [teacher.eval()]  # in a list: not a part of what is trained

    def forward(
        self,
        input_ids_1T: Tensor,
        position_ids_1T: Tensor,
        positions_N: Tensor,
        labels_N: Tensor,
        teacher_ids_NK: Tensor | None,
        teacher_logprobs_NK: Tensor | None,
        kd_weight_N: Tensor | None,
        weight_N: Tensor | None,
        *rows: Tensor,
        measure: bool = False,
    ) -> Tensor:
        assert teacher_ids_NK is not None
        with torch.no_grad():
            decoder = self._teacher[0].get_decoder()
            hidden_1TH = decoder(input_ids=input_ids_1T, position_ids=position_ids_1T, rows=rows, use_cache=False)[0]
            logits_NV = self._teacher[0].lm_head(hidden_1TH[0].index_select(0, positions_N))
            top = logits_NV.log_softmax(dim=1).topk(teacher_ids_NK.shape[1], dim=1)
        scored = top.indices, top.values, kd_weight_N, weight_N
        return super().forward(input_ids_1T, position_ids_1T, positions_N, labels_N, *scored, *rows, measure=measure)


if __name__ == "__main__":
    vars(student)["SupervisedLoss"] = OnlineLoss
    child.run(program.main, Path(sys.argv[-1]), writes=int(os.environ["LOCAL_RANK"]) == 0)
