"""The LM head and the loss in one: logits of a block of rows at a time, turned into gradients where they stand.

N supervised positions, H hidden size, V vocabulary, K kept teacher tokens, R rows of a block. Full logits and
their gradient cost 2 × 4 bytes × N × V. Here V × R holds a block's logits, then their softmax, then the loss's
gradient with respect to them, which is multiplied into the gradients of the hidden states and of the weight, a
tile of the vocabulary after the other.

The first block needs no memory of its own: it lies in the weight's gradient (V × H), whose row v holds what the
block's rows make of token v until that tile's product, computed aside, replaces it. Later blocks have a buffer.
Each block rewrites the weight's gradient, and its matrix products are slower the fewer its rows: few is fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tasks.train.model.logit_map import LogitMap
from tasks.train.model.losses import DistillationLoss, objective_sum, token_weights

BUFFER_BYTES = {"cpu": 240 * 2**20, "cuda": 2**30}
IDENTITY = LogitMap()
_TILE_SHARE = 16  # a tile of the weight's gradient takes at most this part of the buffer's bytes


def fused_head_loss(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    labels_N: Tensor,
    teacher_ids_NK: Tensor | None = None,
    teacher_logprobs_NK: Tensor | None = None,
    loss: DistillationLoss | None = None,
    logit_map: LogitMap = IDENTITY,
    buffer_bytes: int | None = None,
    kd_weight_N: Tensor | None = None,
    weight_N: Tensor | None = None,
) -> Tensor:
    """The loss of `logit_map(hidden_NH @ weight_VH.T + bias_V)`, summed over N, in nats: an fp32 (fp64) scalar.

    Cross-entropy where `loss` is None, else `loss`; equal to `cross_entropy_sum` and `distillation_sum` on the
    whole logits. `hidden_NH` holds the positions that *predict* `labels_N`, and no others. `kd_weight_N` is each
    position's own `loss.kd_weight`, where they differ; `weight_N` is what each counts (default: 1).

    Gradients are computed here, in fp32, and only where they are wanted: none under `no_grad`, none for a frozen
    weight. `backward` scales them in place and can run once. A tied embedding's gradient adds to the head's as
    in any graph. bf16 weights meet bf16 logit gradients, as in an unfused backward, and sum up in fp32; a CPU,
    which has no such product, upcasts both.

    Memory: the gradients, in fp32, and at most `buffer_bytes` (default: BUFFER_BYTES) and a sixteenth more.

    The weight must be whole while this runs, and so is its gradient: under ZeRO-3 call it through `FusedHead`.

    Raises ValueError for a `loss` without a teacher, a weight that ZeRO-3 has not gathered, two dtypes.
    """
    if loss is not None and (teacher_ids_NK is None or teacher_logprobs_NK is None):
        raise ValueError("a distillation loss needs the teacher's ids and log-probabilities")
    if weight_VH.numel() == 0:
        raise ValueError("the LM head's weight is empty: gather it first (ZeRO-3)")
    if hidden_NH.dtype != weight_VH.dtype:
        raise ValueError(f"the hidden states are {hidden_NH.dtype}, the LM head is {weight_VH.dtype}")
    columns_CN = labels_N[None]
    if loss is not None and teacher_ids_NK is not None:
        columns_CN = torch.cat([columns_CN, teacher_ids_NK.t()])
    buffer_bytes = buffer_bytes or BUFFER_BYTES.get(hidden_NH.device.type, BUFFER_BYTES["cpu"])
    how = loss, logit_map, buffer_bytes, torch.is_grad_enabled()
    weights = kd_weight_N, weight_N
    return _HeadLoss.apply(hidden_NH, weight_VH, bias_V, columns_CN, teacher_logprobs_NK, *weights, *how)


@torch.no_grad()
def measured_weights(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    teacher_ids_NK: Tensor,
    teacher_logprobs_NK: Tensor,
    loss: DistillationLoss,
    logit_map: LogitMap = IDENTITY,
    buffer_bytes: int | None = None,
) -> Tensor:
    """`token_weights` of each position, fp32 (fp64), from the same logits; in at most `buffer_bytes`."""
    buffer_bytes = buffer_bytes or BUFFER_BYTES.get(hidden_NH.device.type, BUFFER_BYTES["cpu"])
    exact = torch.promote_types(hidden_NH.dtype, torch.float32)
    (rows, width), vocabulary = hidden_NH.shape, len(weight_VH)
    tile_tokens = max(buffer_bytes // _TILE_SHARE // (width * exact.itemsize), 1)
    tiles = [slice(start, start + tile_tokens) for start in range(0, vocabulary, tile_tokens)]
    at_once = _block_rows(rows, vocabulary * exact.itemsize, buffer_bytes)
    buffer_VR = hidden_NH.new_empty(vocabulary, at_once, dtype=exact)
    found = [hidden_NH.new_empty(0, dtype=exact)]
    for block in _blocks(rows, 0, at_once):
        logits_VR = buffer_VR[:, : len(hidden_NH[block])]
        peak_R = _logits(hidden_NH[block], weight_VH, bias_V, tiles, logit_map, logits_VR)
        kept_RK = logits_VR.gather(0, teacher_ids_NK[block].t()).t()
        sum_R, moment_R = torch.zeros_like(peak_R), torch.zeros_like(peak_R)
        for tile in tiles:
            below_peak = logits_VR[tile].sub_(peak_R)
            sum_R += (exponentials := below_peak.exp()).sum(dim=0)
            moment_R += exponentials.mul_(below_peak).sum(dim=0)
        entropy_R = sum_R.log() - moment_R / sum_R
        found.append(token_weights(kept_RK, peak_R + sum_R.log(), entropy_R, teacher_logprobs_NK[block], loss))
    return torch.cat(found)


class FusedHead(nn.Module):
    """The LM head's own parameters under a module whose forward is the loss.

    ZeRO-3 gathers a parameter around the forward and the backward of the module that owns it, so a part of the
    model that the engine wraps has to be this module, and to be called within the engine's forward, in evaluation
    too. `deepspeed.zero.GatheredParameters` around a bare `fused_head_loss` is refused by DeepSpeed 0.19 where the
    weight is tied. Raises TypeError for a head that is more than weight and bias (adapters on it would be lost).
    """

    def __init__(self, head: nn.Module, logit_map: LogitMap = IDENTITY):
        super().__init__()
        if not isinstance(head, nn.Linear):
            raise TypeError(f"the LM head is a {type(head).__name__}, not a plain linear layer: put no adapter on it")
        self.weight, self.bias, self.logit_map = head.weight, head.bias, logit_map

    def forward(
        self,
        hidden_NH: Tensor,
        labels_N: Tensor,
        teacher_ids_NK: Tensor | None = None,
        teacher_logprobs_NK: Tensor | None = None,
        loss: DistillationLoss | None = None,
        kd_weight_N: Tensor | None = None,
        weight_N: Tensor | None = None,
        measure: bool = False,
    ) -> Tensor:
        """See `fused_head_loss`; with `measure`, `measured_weights`."""
        hidden_NH = hidden_NH if self.logit_map.before == 1.0 else hidden_NH * self.logit_map.before
        head, teacher = (hidden_NH, self.weight, self.bias), (teacher_ids_NK, teacher_logprobs_NK)
        if measure:
            assert loss is not None, "only of a distillation are tokens weighed"
            assert teacher_ids_NK is not None
            assert teacher_logprobs_NK is not None
            return measured_weights(*head, teacher_ids_NK, teacher_logprobs_NK, loss, self.logit_map)
        return fused_head_loss(
            *head, labels_N, *teacher, loss, self.logit_map, kd_weight_N=kd_weight_N, weight_N=weight_N
        )


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        columns_CN: Tensor,
        teacher_logprobs_NK: Tensor | None,
        kd_weight_N: Tensor | None,
        weight_N: Tensor | None,
        loss: DistillationLoss | None,
        logit_map: LogitMap,
        buffer_bytes: int,
        grad_enabled: bool,
    ) -> Tensor:
        ctx.dtypes = hidden_NH.dtype, weight_VH.dtype, weight_VH.dtype if bias_V is None else bias_V.dtype
        of_hidden, of_weight, of_bias = (grad_enabled and wanted for wanted in ctx.needs_input_grad[:3])
        exact = torch.promote_types(hidden_NH.dtype, torch.float32)
        (rows, width), (vocabulary, _) = hidden_NH.shape, weight_VH.shape
        d_hidden_NH = torch.empty_like(hidden_NH, dtype=exact) if of_hidden else None
        d_weight_VH = torch.empty_like(weight_VH, dtype=exact) if of_weight else None
        d_bias_V = hidden_NH.new_zeros(vocabulary, dtype=exact) if of_bias else None
        if d_weight_VH is not None and rows == 0:
            d_weight_VH.zero_()

        total = hidden_NH.new_zeros((), dtype=exact)
        tile_tokens = max(buffer_bytes // _TILE_SHARE // (width * exact.itemsize), 1)
        tiles = [slice(start, start + tile_tokens) for start in range(0, vocabulary, tile_tokens)]
        in_gradient = min(rows, width) if of_weight else 0
        buffered = _block_rows(rows - in_gradient, vocabulary * exact.itemsize, buffer_bytes)
        buffer_VR = None
        for block in _blocks(rows, in_gradient, buffered):
            hidden_RH, columns_CR = hidden_NH[block], columns_CN[:, block]
            teacher_RK = None if teacher_logprobs_NK is None else teacher_logprobs_NK[block]
            weights_R = [None if weights is None else weights[block] for weights in (kd_weight_N, weight_N)]
            if d_weight_VH is not None and block.start == 0:
                logits_VR = d_weight_VH[:, : len(hidden_RH)]
            else:
                if buffer_VR is None:
                    buffer_VR = hidden_NH.new_empty(vocabulary, buffered, dtype=exact)
                logits_VR = buffer_VR[:, : len(hidden_RH)]
            peak_R = _logits(hidden_RH, weight_VH, bias_V, tiles, logit_map, logits_VR)
            picked_RC = logits_VR.gather(0, columns_CR).t()
            sum_R = _exponentials_in_place(logits_VR, peak_R, tiles)
            value, d_picked_RC, d_lse_R = _objective(picked_RC, peak_R + sum_R.log(), teacher_RK, loss, weights_R)
            total += value
            if not (of_hidden or of_weight or of_bias):
                continue
            # ∂lse/∂logits is the softmax: all the loss knows of the other logits is their logsumexp
            if logit_map.cap is not None:
                _slopes_in_place(logits_VR, peak_R, logit_map.cap, tiles)
                d_picked_RC = d_picked_RC * (1 - (picked_RC / logit_map.cap) ** 2)
            d_lse_R, d_picked_RC = d_lse_R * logit_map.scale, d_picked_RC * logit_map.scale
            d_logits_VR = logits_VR.mul_(d_lse_R / sum_R).scatter_add_(0, columns_CR, d_picked_RC.t())
            d_block_RH = None if d_hidden_NH is None else d_hidden_NH[block]
            _gradients(d_logits_VR, hidden_RH, weight_VH, tiles, d_block_RH, d_weight_VH, d_bias_V, block.start == 0)
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
        return *gradients, None, None, None, None, None, None, None, None


def _blocks(rows: int, first: int, others: int) -> Iterator[slice]:
    """A block of `first` rows, where there are such, and then blocks of `others` rows."""
    if first:
        yield slice(0, first)
    for start in range(first, rows, others):
        yield slice(start, min(start + others, rows))


def _block_rows(rows: int, row_bytes: int, buffer_bytes: int) -> int:
    """Rows of a block: few and nearly equal blocks, in whole tiles of 64, none above `buffer_bytes` (or one row).

    A block that is no multiple of the matrix product's own tile costs up to 1.4 times as much a row on a CPU.
    """
    most = max(buffer_bytes // row_bytes, 1)
    equal = -(-rows // max(-(-rows // most), 1))
    return max(min(-(-equal // 64) * 64, most), 1)


def _logits(
    hidden_RH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    tiles: list[slice],
    logit_map: LogitMap,
    logits_VR: Tensor,
) -> Tensor:
    """Writes the logits; their maximum over V."""
    peaks = []
    for tile in tiles:
        logits = _product(weight_VH[tile], hidden_RH.t(), logits_VR[tile])
        if bias_V is not None:
            logits.add_(bias_V[tile, None])
        if logit_map.scale != 1.0:
            logits.mul_(logit_map.scale)
        if logit_map.cap is not None:
            logits.div_(logit_map.cap).tanh_().mul_(logit_map.cap)
        peaks.append(logits.amax(dim=0))
    return torch.stack(peaks).amax(dim=0)


def _exponentials_in_place(logits_VR: Tensor, peak_R: Tensor, tiles: list[slice]) -> Tensor:
    """exp(logits − peak), written over the logits, tile by tile for the cache's sake; their sum over V."""
    return torch.stack([logits_VR[tile].sub_(peak_R).exp_().sum(dim=0) for tile in tiles]).sum(dim=0)


def _slopes_in_place(exponentials_VR: Tensor, peak_R: Tensor, cap: float, tiles: list[slice]) -> None:
    """Times ∂logits/∂(logits before the cap) = 1 − (logits / cap)²; the logits are read off their exponentials."""
    for tile in tiles:
        exponentials = exponentials_VR[tile]
        smallest = torch.finfo(exponentials.dtype).tiny  # one that is lost below it has no gradient anyway
        capped = exponentials.clamp(min=smallest).log_().add_(peak_R).div_(cap)
        exponentials.mul_(capped.square_().neg_().add_(1).clamp_(min=0))


def _gradients(
    d_logits_VR: Tensor,
    hidden_RH: Tensor,
    weight_VH: Tensor,
    tiles: list[slice],
    d_hidden_RH: Tensor | None,
    d_weight_VH: Tensor | None,
    d_bias_V: Tensor | None,
    first: bool,
) -> None:
    """Writes the block's gradients, or adds them, to those that are wanted; the `first` lies in `d_weight_VH`."""
    aside_VH = torch.empty_like(d_weight_VH[tiles[0]]) if d_weight_VH is not None and first else None
    for tile in tiles:
        d_tile_VR = d_logits_VR[tile]
        if d_bias_V is not None:
            d_bias_V[tile] += d_tile_VR.sum(dim=1)
        if d_hidden_RH is not None:
            _product(d_tile_VR.t(), weight_VH[tile], d_hidden_RH, add=tile.start > 0)
        if d_weight_VH is not None and aside_VH is not None:  # the tile is still a factor of what replaces it
            d_weight_VH[tile] = _product(d_tile_VR, hidden_RH, aside_VH[: len(d_tile_VR)])
        elif d_weight_VH is not None:
            _product(d_tile_VR, hidden_RH, d_weight_VH[tile], add=True)


def _product(left: Tensor, right: Tensor, out: Tensor, add: bool = False) -> Tensor:
    """left @ right into `out`, or added to it: in `out`'s precision, or of bf16 into fp32 where the device can."""
    if right.dtype == out.dtype or right.device.type == "cpu":
        return torch.addmm(out, left.to(out.dtype), right.to(out.dtype), beta=int(add), out=out)
    return torch.addmm(out, left.to(right.dtype), right, beta=int(add), out_dtype=out.dtype, out=out)


def _objective(
    picked_RC: Tensor,
    lse_R: Tensor,
    teacher_logprobs_RK: Tensor | None,
    loss: DistillationLoss | None,
    weights_R: list[Tensor | None],
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a block, and its gradients with respect to the picked logits and the logsumexp."""
    with torch.enable_grad():
        picked_RC, lse_R = picked_RC.detach().requires_grad_(), lse_R.detach().requires_grad_()
        value = objective_sum(picked_RC[:, 0], picked_RC[:, 1:], lse_R, teacher_logprobs_RK, loss, *weights_R)
        d_picked_RC, d_lse_R = torch.autograd.grad(value, (picked_RC, lse_R), materialize_grads=True)
    return value.detach(), d_picked_RC, d_lse_R
