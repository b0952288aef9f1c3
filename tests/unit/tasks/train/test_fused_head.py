"""The fused head equals the loss on whole logits, in value and gradients, whatever the blocks, and finite differences.

`torch.autograd.gradcheck` runs a backward twice on one graph, which this one, scaling in place, refuses: the
differences are taken here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tasks.train.model import fused_head
from tasks.train.model.fused_head import FusedHead, fused_head_loss
from tasks.train.model.logit_map import LogitMap
from tasks.train.model.losses import DistillationLoss, Tail, cross_entropy_sum, distillation_sum

N, H, V, K = 7, 5, 23, 4
TAILS: list[tuple[Tail, float]] = [("renormalise", 1.0), ("renormalise", 2.0), ("bucket", 1.0)]
LOSSES = [
    None,
    *(
        DistillationLoss(divergence, tail, temperature, js_beta=0.3, kd_weight=0.7)
        for divergence in ("forward_kl", "reverse_kl", "jensen_shannon", "total_variation")
        for tail, temperature in TAILS
    ),
]
every_loss = pytest.mark.parametrize(
    "loss", LOSSES, ids=lambda x: f"{x.divergence}-{x.tail}-{x.temperature}" if x else "cross_entropy"
)
one_of_each_kind = pytest.mark.parametrize("loss", [None, DistillationLoss(), DistillationLoss(tail="bucket")])
every_block = pytest.mark.parametrize("block_rows", [1, 2, 3, N, 100])  # 2 and 3 do not divide N


@dataclass
class Case:
    hidden_NH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None
    labels_N: Tensor
    ids_NK: Tensor
    logprobs_NK: Tensor
    logit_map: LogitMap = fused_head.IDENTITY

    def leaves(self) -> list[Tensor]:
        return [x for x in (self.hidden_NH, self.weight_VH, self.bias_V) if x is not None]

    def fused(self, loss: DistillationLoss | None, block_rows: int = 3) -> Tensor:
        teacher: tuple[Tensor | None, Tensor | None] = (None, None) if loss is None else (self.ids_NK, self.logprobs_NK)
        row_bytes = len(self.weight_VH) * max(self.hidden_NH.element_size(), 4)
        head = self.hidden_NH, self.weight_VH, self.bias_V
        return fused_head_loss(*head, self.labels_N, *teacher, loss, self.logit_map, block_rows * row_bytes)

    def unfused(self, loss: DistillationLoss | None) -> Tensor:
        logits_NV = self.logit_map(nn.functional.linear(self.hidden_NH, self.weight_VH, self.bias_V))
        if loss is None:
            return cross_entropy_sum(logits_NV, self.labels_N)
        return distillation_sum(logits_NV, self.labels_N, self.ids_NK, self.logprobs_NK, loss)


def _case(bias: bool = False, dtype: torch.dtype = torch.float64, rows: int = N) -> Case:
    """Half of the labels are among the teacher's top K, half are not; the third position knows half of its K."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    top = (2 * normal(rows, V)).log_softmax(dim=1).topk(K + 1, dim=1)
    ids, logprobs = top.indices[:, :K].clone(), top.values[:, :K].clone()
    labels = torch.where(torch.arange(rows) % 2 == 0, ids[:, 1], top.indices[:, K])
    if rows > 2:
        ids[2, K // 2 :], logprobs[2, K // 2 :] = 0, -math.inf
    leaves = [x.to(dtype).requires_grad_() for x in (normal(rows, H), normal(V, H), normal(V))]
    return Case(leaves[0], leaves[1], leaves[2] if bias else None, labels, ids, logprobs)


def _gradients(case: Case, value: Tensor, scale: float = 0.25) -> list[Tensor]:
    return list(torch.autograd.grad(value * scale, case.leaves()))


@every_loss
@every_block
@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradients_are_those_of_whole_logits(
    loss: DistillationLoss | None, block_rows: int, bias: bool
) -> None:
    case = _case(bias)
    fused, unfused = case.fused(loss, block_rows), case.unfused(loss)
    assert float(fused.detach()) == pytest.approx(float(unfused.detach()), rel=1e-12)
    torch.testing.assert_close(_gradients(case, fused), _gradients(case, unfused), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES[1:], ids=str)
@pytest.mark.parametrize("block_rows", [2, N])
def test_rows_with_weights_of_their_own_are_the_weighted_sum_of_both_losses_apart(
    loss: DistillationLoss, block_rows: int
) -> None:
    case, weight_N = _case(bias=True), torch.linspace(0, 1, N, dtype=torch.float64)
    fused = fused_head_loss(
        *(case.hidden_NH, case.weight_VH, case.bias_V, case.labels_N, case.ids_NK, case.logprobs_NK, loss),
        buffer_bytes=block_rows * V * 8,
        kd_weight_N=weight_N,
    )
    logits_NV = nn.functional.linear(case.hidden_NH, case.weight_VH, case.bias_V)
    pure, apart = replace(loss, kd_weight=1.0), torch.zeros((), dtype=torch.float64)
    for n in range(N):
        one = slice(n, n + 1)
        teacher = case.ids_NK[one], case.logprobs_NK[one]
        divergence = distillation_sum(logits_NV[one], case.labels_N[one], *teacher, pure)
        cross_entropy = cross_entropy_sum(logits_NV[one], case.labels_N[one])
        apart = apart + weight_N[n] * divergence + (1 - weight_N[n]) * cross_entropy
    assert float(fused.detach()) == pytest.approx(float(apart.detach()), rel=1e-12)
    torch.testing.assert_close(_gradients(case, fused), _gradients(case, apart), rtol=1e-10, atol=1e-12)


@one_of_each_kind
@pytest.mark.parametrize("block_rows", [2, N])
@pytest.mark.parametrize("logit_map", [LogitMap(0.125), LogitMap(7.0), LogitMap(cap=1.5), LogitMap(3.0, 50.0)], ids=str)
def test_a_factor_and_a_cap_of_the_logits_are_part_of_it(
    logit_map: LogitMap, block_rows: int, loss: DistillationLoss | None
) -> None:
    case = replace(_case(bias=True), logit_map=logit_map)
    fused, unfused = case.fused(loss, block_rows), case.unfused(loss)
    assert float(fused.detach()) == pytest.approx(float(unfused.detach()), rel=1e-12)
    torch.testing.assert_close(_gradients(case, fused), _gradients(case, unfused), rtol=1e-9, atol=1e-12)


def test_a_cap_that_leaves_most_tokens_without_probability() -> None:
    case = replace(_case(dtype=torch.float32), logit_map=LogitMap(200.0, 400.0))  # e^-88 is the least of fp32
    gradients = _gradients(case, case.fused(None))
    torch.testing.assert_close(gradients, _gradients(case, case.unfused(None)), rtol=1e-3, atol=1e-4)


@every_loss
def test_gradients_are_finite_differences_of_the_value(loss: DistillationLoss | None) -> None:
    case, generator = _case(bias=True), torch.Generator().manual_seed(1)
    gradients = _gradients(case, case.fused(loss), scale=1.0)
    for leaf, gradient in zip(case.leaves(), gradients, strict=True):
        for _ in range(3):  # along directions that touch every entry
            step = 1e-5 * torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
            with torch.no_grad():
                leaf += step
                up = float(case.fused(loss))
                leaf -= 2 * step
                down = float(case.fused(loss))
                leaf += step
            assert float((gradient * step).sum()) == pytest.approx((up - down) / 2, rel=1e-6, abs=1e-12)


@one_of_each_kind
def test_a_tied_embedding_gets_the_heads_gradient_and_its_own(loss: DistillationLoss | None) -> None:
    case, tokens = _case(), torch.tensor([3, 1, 4, 1, 5, 9, 2])

    def gradient(value: Callable[[Case], Tensor]) -> Tensor:
        hidden_NH = torch.tanh(nn.functional.embedding(tokens, case.weight_VH))
        return torch.autograd.grad(value(replace(case, hidden_NH=hidden_NH)), case.weight_VH)[0]

    whole = gradient(lambda tied: tied.unfused(loss))
    torch.testing.assert_close(gradient(lambda tied: tied.fused(loss)), whole)
    apart = torch.autograd.grad(case.unfused(loss), case.weight_VH)[0]
    assert not torch.allclose(whole, apart)


@one_of_each_kind
def test_two_micro_batches_accumulate_to_one(loss: DistillationLoss | None) -> None:
    case = _case()
    whole = _gradients(case, case.fused(loss), scale=1.0)
    for part in (slice(0, 3), slice(3, N)):
        columns = case.hidden_NH[part], case.labels_N[part], case.ids_NK[part], case.logprobs_NK[part]
        hidden, labels, ids, logprobs = columns
        replace(case, hidden_NH=hidden, labels_N=labels, ids_NK=ids, logprobs_NK=logprobs).fused(loss).backward()
    for leaf, expected in zip(case.leaves(), whole, strict=True):
        torch.testing.assert_close(leaf.grad, expected)


@one_of_each_kind
def test_no_supervised_position_is_no_loss_and_zero_gradients(loss: DistillationLoss | None) -> None:
    case = _case(bias=True, rows=0)
    value = case.fused(loss)
    assert float(value.detach()) == 0
    for leaf, gradient in zip(case.leaves(), _gradients(case, value), strict=True):
        assert gradient.shape == leaf.shape
        assert bool((gradient == 0).all())


def test_a_shift_of_the_labels_or_of_the_teachers_rows_by_one_token_is_seen() -> None:
    """Hidden states that say their label nearly for sure, and a teacher that is the student."""
    case = _case()
    case = replace(
        case, hidden_NH=20 * torch.eye(V, dtype=torch.float64)[case.labels_N], weight_VH=torch.eye(V).double()
    )
    top = nn.functional.linear(case.hidden_NH, case.weight_VH).log_softmax(dim=1).topk(K, dim=1)
    case = replace(case, ids_NK=top.indices, logprobs_NK=top.values)
    alone = DistillationLoss(kd_weight=1.0)
    assert float(case.fused(None)) < 1e-3
    assert float(case.fused(alone)) < 1e-9
    assert float(replace(case, labels_N=case.labels_N.roll(1)).fused(None)) > 10
    shifted = replace(case, ids_NK=case.ids_NK.roll(1, 0), logprobs_NK=case.logprobs_NK.roll(1, 0))
    assert float(shifted.fused(alone)) > 10


@one_of_each_kind
def test_bf16_weights_sum_up_in_fp32(loss: DistillationLoss | None) -> None:
    half, full = _case(bias=True, dtype=torch.bfloat16), _case(bias=True)
    for rounded, exact in zip(half.leaves(), full.leaves(), strict=True):
        exact.data = rounded.data.double()
    value, expected = half.fused(loss, block_rows=1), full.fused(loss)
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for got, exact in zip(_gradients(half, value), _gradients(full, expected), strict=True):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=1e-6)  # one rounding, at the end


def test_fp32_is_close_to_fp64() -> None:
    single, double = _case(dtype=torch.float32), _case()
    a, b = single.fused(DistillationLoss()), double.fused(DistillationLoss())
    assert float(a.detach()) == pytest.approx(float(b.detach()), rel=1e-6)
    for got, exact in zip(_gradients(single, a), _gradients(double, b), strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-6)


def test_logits_far_apart_neither_overflow_nor_lose_the_label() -> None:
    case = _case(dtype=torch.float32)
    case.hidden_NH.data *= 1000  # thousands of nats: the label's softmax is 0 in fp32
    value, expected = case.fused(None), case.unfused(None)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    torch.testing.assert_close(_gradients(case, value), _gradients(case, expected), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("frozen", "products"), [("all", 1), ("weight", 2), ("hidden", 2), ("none", 3)])
def test_no_product_is_spent_on_a_gradient_that_nobody_wants(
    monkeypatch: pytest.MonkeyPatch, frozen: str, products: int
) -> None:
    case, multiplications, product = _case(), [], fused_head._product

    def counted(left: Tensor, right: Tensor, out: Tensor, add: bool = False) -> Tensor:
        multiplications.append(left.numel() * right.shape[1])
        return product(left, right, out, add)

    monkeypatch.setattr(fused_head, "_product", counted)
    expected = case.unfused(DistillationLoss())
    case.weight_VH.requires_grad_(frozen != "weight")
    case.hidden_NH.requires_grad_(frozen != "hidden")
    with torch.set_grad_enabled(frozen != "all"):
        value = case.fused(DistillationLoss(), block_rows=N)
    assert sum(multiplications) == products * N * H * V
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert value.requires_grad == (frozen != "all")
    if value.requires_grad:
        wanted = [leaf for leaf in case.leaves() if leaf.requires_grad]
        torch.testing.assert_close(torch.autograd.grad(value, wanted), torch.autograd.grad(expected, wanted))


def test_a_second_backward_is_refused_and_not_scaled_twice() -> None:
    case = _case()
    value = case.fused(None)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@given(rows=st.integers(0, 5000), row_bytes=st.integers(1, 10**6), buffer_bytes=st.integers(1, 10**9))
def test_blocks_keep_to_the_buffer_are_as_few_as_can_be_and_whole_tiles(
    rows: int, row_bytes: int, buffer_bytes: int
) -> None:
    block, most = fused_head._block_rows(rows, row_bytes, buffer_bytes), max(buffer_bytes // row_bytes, 1)
    assert 1 <= block <= most
    assert math.ceil(rows / block) == math.ceil(rows / most)
    assert block % 64 == 0 or block == most or rows == 0


def test_a_gpus_bf16_product_into_fp32_is_an_operation_of_this_torch() -> None:
    left, right = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((3, 4), (4, 5)))
    out = torch.empty(3, 5, device="meta")
    assert fused_head._product(left, right, out, add=True).dtype == torch.float32


def test_the_module_holds_the_heads_own_parameters() -> None:
    case, linear = _case(), nn.Linear(H, V, dtype=torch.float64)
    head = FusedHead(linear)
    assert head.weight is linear.weight
    assert head.bias is linear.bias
    bare = replace(case, weight_VH=linear.weight, bias_V=linear.bias).fused(DistillationLoss())
    got = head(case.hidden_NH, case.labels_N, case.ids_NK, case.logprobs_NK, DistillationLoss())
    assert float(got.detach()) == pytest.approx(float(bare.detach()), rel=1e-12)


def test_what_would_be_lost_silently_is_refused() -> None:
    case = _case()
    with pytest.raises(ValueError, match="teacher"):
        fused_head_loss(case.hidden_NH, case.weight_VH, None, case.labels_N, loss=DistillationLoss())
    with pytest.raises(ValueError, match="ZeRO-3"):
        fused_head_loss(case.hidden_NH, case.weight_VH[:0], None, case.labels_N)
    with pytest.raises(TypeError, match="no adapter"):
        FusedHead(nn.Sequential(nn.Linear(H, V)))
