"""The LM head and the loss in one: logits of a block of rows at a time, turned into gradients where they stand.

N supervised positions, H hidden size, V vocabulary, K kept teacher tokens, R rows of a block. Full logits and
their gradient cost 2 × 4 bytes × N × V; here one buffer of R × V holds the logits, then their softmax, then the
loss's gradient with respect to them, which is multiplied into the gradients of the hidden states and of the
weight before the next block overwrites it. Beside the three matrix products that any backward pass needs, the
buffer is read or written six times, in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tasks.train.losses import DistillationLoss, full_precision, objective_sum

BUFFER_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}  # larger blocks rewrite the weight's gradient less often


def fused_head_loss(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    labels_N: Tensor,
    teacher_ids_NK: Tensor | None = None,
    teacher_logprobs_NK: Tensor | None = None,
    loss: DistillationLoss | None = None,
    buffer_bytes: int | None = None,
) -> Tensor:
    """The loss of `hidden_NH @ weight_VH.T + bias_V`, summed over N, in nats: an fp32 (fp64) scalar.

    Cross-entropy where `loss` is None, else `loss`; equal to `cross_entropy_sum` and `distillation_sum` on the
    whole logits. `hidden_NH` holds the positions that *predict* `labels_N`, and no others.

    Gradients are computed here, in fp32, and only where they are wanted: none under `no_grad`, none for a frozen
    weight. `backward` scales them in place and can run once. A tied embedding's gradient adds to the head's as
    in any graph. bf16 weights meet bf16 logit gradients, as in an unfused backward, and sum up in fp32; a CPU,
    which has no such product, upcasts the weight, 4 · V · H bytes more.

    The weight must be whole while this runs, and so is its gradient: under ZeRO-3 call it through `FusedHead`.

    Raises ValueError for a `loss` without a teacher and for a weight that ZeRO-3 has not gathered.
    """
    if loss is not None and (teacher_ids_NK is None or teacher_logprobs_NK is None):
        raise ValueError("a distillation loss needs the teacher's ids and log-probabilities")
    if weight_VH.numel() == 0:
        raise ValueError("the LM head's weight is empty: gather it first (ZeRO-3)")
    columns_NC = labels_N[:, None]
    if loss is not None and teacher_ids_NK is not None:
        columns_NC = torch.cat([columns_NC, teacher_ids_NK], dim=1)
    buffer_bytes = buffer_bytes or BUFFER_BYTES.get(hidden_NH.device.type, BUFFER_BYTES["cpu"])
    return _HeadLoss.apply(
        hidden_NH, weight_VH, bias_V, columns_NC, teacher_logprobs_NK, loss, buffer_bytes, torch.is_grad_enabled()
    )


class FusedHead(nn.Module):
    """The LM head's own parameters under a module whose forward is the loss.

    ZeRO-3 gathers a parameter around the forward and the backward of the module that owns it, so a part of the
    model that the engine wraps has to be this module, and to be called within the engine's forward, in evaluation
    too. `deepspeed.zero.GatheredParameters` around a bare `fused_head_loss` is refused by DeepSpeed 0.19 where the
    weight is tied. Raises TypeError for a head that is more than weight and bias (adapters on it would be lost).
    """

    def __init__(self, head: nn.Module):
        super().__init__()
        if not isinstance(head, nn.Linear):
            raise TypeError(f"the LM head is a {type(head).__name__}, not a plain linear layer: put no adapter on it")
        self.weight, self.bias = head.weight, head.bias

    def forward(
        self,
        hidden_NH: Tensor,
        labels_N: Tensor,
        teacher_ids_NK: Tensor | None = None,
        teacher_logprobs_NK: Tensor | None = None,
        loss: DistillationLoss | None = None,
    ) -> Tensor:
        """See `fused_head_loss`."""
        return fused_head_loss(hidden_NH, self.weight, self.bias, labels_N, teacher_ids_NK, teacher_logprobs_NK, loss)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        columns_NC: Tensor,
        teacher_logprobs_NK: Tensor | None,
        loss: DistillationLoss | None,
        buffer_bytes: int,
        grad_enabled: bool,
    ) -> Tensor:
        ctx.dtypes = hidden_NH.dtype, weight_VH.dtype, weight_VH.dtype if bias_V is None else bias_V.dtype
        of_hidden, of_weight, of_bias = (grad_enabled and wanted for wanted in ctx.needs_input_grad[:3])
        if not hidden_NH.is_cuda:
            hidden_NH, weight_VH = full_precision(hidden_NH), full_precision(weight_VH)
        exact = torch.promote_types(hidden_NH.dtype, torch.float32)
        (rows, _), (vocabulary, _) = hidden_NH.shape, weight_VH.shape
        block_rows = _block_rows(rows, vocabulary * exact.itemsize, buffer_bytes)

        buffer_RV = hidden_NH.new_empty(block_rows, vocabulary, dtype=exact)
        total = hidden_NH.new_zeros((), dtype=exact)
        d_hidden_NH = torch.empty_like(hidden_NH, dtype=exact) if of_hidden else None
        d_weight_VH = torch.empty_like(weight_VH, dtype=exact) if of_weight else None
        d_bias_V = hidden_NH.new_zeros(vocabulary, dtype=exact) if of_bias else None
        if d_weight_VH is not None and rows == 0:
            d_weight_VH.zero_()
        for start in range(0, rows, block_rows):
            block = slice(start, start + block_rows)
            hidden_RH = hidden_NH[block]
            logits_RV = _product(hidden_RH, weight_VH.t(), buffer_RV[: len(hidden_RH)])
            if bias_V is not None:
                logits_RV.add_(bias_V)
            picked_RC = logits_RV.gather(1, columns_NC[block])
            softmax_RV, lse_R = _softmax_in_place(logits_RV)
            teacher_RK = None if teacher_logprobs_NK is None else teacher_logprobs_NK[block]
            value, d_picked_RC, d_lse_R = _objective(picked_RC, lse_R, teacher_RK, loss)
            total += value
            if not (of_hidden or of_weight or of_bias):
                continue
            # ∂lse/∂logits is the softmax: all the loss knows of the other logits is their logsumexp
            d_logits_RV = softmax_RV.mul_(d_lse_R[:, None]).scatter_add_(1, columns_NC[block], d_picked_RC)
            if d_bias_V is not None:
                d_bias_V += d_logits_RV.sum(dim=0)
            d_logits_RV = d_logits_RV.to(weight_VH.dtype)
            if d_hidden_NH is not None:
                _product(d_logits_RV, weight_VH, d_hidden_NH[block])
            if d_weight_VH is not None:
                _product(d_logits_RV.t(), hidden_RH, d_weight_VH, add=start > 0)
        ctx.save_for_backward(d_hidden_NH, d_weight_VH, d_bias_V)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
        # in place: a scaled copy of the weight's gradient would be another V × H
        gradients = (
            None if gradient is None else gradient.mul_(d_total).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *gradients, None, None, None, None, None


def _block_rows(rows: int, row_bytes: int, buffer_bytes: int) -> int:
    """Rows of a block: blocks as equal as they can be, none above `buffer_bytes` (but of one row at least)."""
    blocks = -(-rows // max(buffer_bytes // row_bytes, 1))
    return -(-rows // blocks) if blocks else 1


def _product(left: Tensor, right: Tensor, out: Tensor, add: bool = False) -> Tensor:
    """left @ right into `out`, or added to it; bf16 factors (CUDA only) multiply into fp32."""
    if left.dtype == out.dtype:
        return torch.addmm(out, left, right, beta=int(add), out=out)
    return torch.addmm(out, left, right, beta=int(add), out_dtype=out.dtype, out=out)


def _softmax_in_place(logits_RV: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax, written over the logits, and their logsumexp: max − log(softmax at the max)."""
    peak_R = logits_RV.amax(dim=1)
    torch.softmax(logits_RV, dim=1, out=logits_RV)
    return logits_RV, peak_R - logits_RV.amax(dim=1).log()


def _objective(
    picked_RC: Tensor, lse_R: Tensor, teacher_logprobs_RK: Tensor | None, loss: DistillationLoss | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a block, and its gradients with respect to the picked logits and the logsumexp."""
    with torch.enable_grad():
        picked_RC, lse_R = picked_RC.requires_grad_(), lse_R.requires_grad_()
        value = objective_sum(picked_RC[:, 0], picked_RC[:, 1:], lse_R, teacher_logprobs_RK, loss)
        d_picked_RC, d_lse_R = torch.autograd.grad(value, (picked_RC, lse_R), materialize_grads=True)
    return value.detach(), d_picked_RC, d_lse_R
