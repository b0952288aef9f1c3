"""Tokens that count more: the gradient is that of the weighted mean over the whole batch, however it is cut up."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen2Config

from tasks.rollout.settings import Rounds
from tasks.rows import Row
from tasks.tokens.rows import TokenisedRow
from tasks.tokens.written import Written
from tasks.train import loop
from tasks.train.data.feed import Step
from tasks.train.data.order import Example
from tasks.train.data.packing import MicroBatch, pack, use_packed_attention
from tasks.train.model.fused_head import measured_weights
from tasks.train.model.losses import DistillationLoss, distillation_sum
from tasks.train.model.student import SupervisedLoss
from tasks.train.settings import Distillation

V, K = 40, 4
LOSSES = [
    DistillationLoss(weighting="gap", tail="bucket", kd_weight=0.7),
    DistillationLoss(weighting="gap", temperature=2.0, divergence="reverse_kl"),
    DistillationLoss(weighting="entropy", divergence="jensen_shannon"),
    DistillationLoss(weighting="none"),
]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda x: f"{x.weighting}-{x.divergence}")


def _reference_weights(logits_NV: Tensor, ids_NK: Tensor, logprobs_NK: Tensor, loss: DistillationLoss) -> Tensor:
    """From whole logits, a token after the other."""
    if loss.weighting == "entropy":
        return torch.distributions.Categorical(logits=logits_NV).entropy().detach()
    if loss.weighting == "none":
        return torch.ones(len(logits_NV), dtype=logits_NV.dtype)
    alone = DistillationLoss(loss.divergence, loss.tail, loss.temperature, loss.js_beta, kd_weight=1.0)
    label = torch.zeros(1, dtype=torch.long)
    each = [
        distillation_sum(logits[None], label, ids[None], logprobs[None], alone)
        for logits, ids, logprobs in zip(logits_NV, ids_NK, logprobs_NK, strict=True)
    ]
    return torch.stack(each).detach()


@every_loss
@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_what_a_token_counts_is_that_of_whole_logits(loss: DistillationLoss, rows_at_once: int) -> None:
    if loss.weighting == "none":
        return
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((7, 5), (V, 5), (V,)))
    top = torch.randn(7, V, generator=generator, dtype=torch.float64).log_softmax(dim=1).topk(K, dim=1)
    found = measured_weights(hidden, weight, bias, top.indices, top.values, loss, buffer_bytes=rows_at_once * V * 8)
    wanted = _reference_weights(nn.functional.linear(hidden, weight, bias), top.indices, top.values, loss)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": V}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    made = AutoModelForCausalLM.from_config(Qwen2Config(**sizes, **heads)).double()
    use_packed_attention(made)
    return made


def _rows(weights: list[float | None]) -> list[Example]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for number, weight in enumerate(weights):
        length = 5 + 2 * number
        ids = torch.randint(0, V, (length,), generator=generator).tolist()
        top = torch.randn(length - 3, V, generator=generator).mul(3).log_softmax(dim=1).topk(K, dim=1)
        ids_RK, logprobs_RK = top.indices.int().numpy(), top.values.numpy()
        kd_weight = 1.0 if number % 2 else 0.25  # as of the parts of a mixture
        found.append(Example(str(number), ids, 3, ids_RK, logprobs_RK, kd_weight=kd_weight, weight=weight))
    return found


class _Rank:
    """What DeepSpeed does with a module: gradients averaged over micro-batches (and, by the test, over ranks)."""

    device = torch.device("cpu")

    def __init__(self, module: SupervisedLoss, micro_batches: int):
        self.module, self._micro_batches = module, micro_batches

    def __call__(self, *inputs: Any, **how: Any) -> Tensor:
        found: Tensor = self.module(*inputs, **how)
        return found

    def backward(self, loss: Tensor) -> None:
        (loss / self._micro_batches).backward()

    def step(self) -> None:
        pass


def _gradient_of_ranks(
    model: Any, loss: DistillationLoss, cut: list[list[list[Example]]], monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Tensor], float]:
    """`cut`: of each rank, the rows of each micro-batch; a rank without rows holds one that must not count."""
    everything = [row for rank in cut for micro in rank for row in micro]
    supervised = sum(len(row.ids) - row.response_start for row in everything)
    barrier, sums = threading.Barrier(len(cut)), [torch.zeros((), dtype=torch.float64)] * len(cut)
    here = threading.local()

    def summed(value: Tensor) -> Tensor:
        sums[here.rank] = value
        barrier.wait(20)
        total = torch.stack(sums).sum(dim=0)
        barrier.wait(20)
        return total

    monkeypatch.setattr(loop, "_summed_over_ranks", summed)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: len(cut))
    modules = [SupervisedLoss(copy.deepcopy(model), loss) for _ in cut]
    losses = [0.0] * len(cut)

    def run(rank: int) -> None:
        here.rank = rank
        engine = _Rank(modules[rank], len(cut[rank]))
        micro = [pack(rows or everything[:1]) for rows in cut[rank]]
        fed = Step(micro, [not rows for rows in cut[rank]], supervised, 0)
        losses[rank] = float(loop._run_step(engine, loop._weighed(engine, fed)))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(cut))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    gradients = [dict(module.model.named_parameters()) for module in modules]
    mean = {name: torch.stack([of[name].grad for of in gradients]).mean(dim=0) for name in gradients[0]}
    return mean, sum(losses) / supervised


def _reference(model: Any, loss: DistillationLoss, rows: list[Example]) -> tuple[dict[str, Tensor], float]:
    """Σ w ℓ / Σ w over all tokens, in plain torch on whole logits, each row alone."""
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    plain.zero_grad()
    total = weights = torch.zeros((), dtype=torch.float64)
    for row in rows:
        logits_NV = plain(torch.tensor([row.ids])).logits[0, row.response_start - 1 : -1]
        batch: MicroBatch = pack([row])
        teacher = batch.teacher_ids_NK, batch.teacher_logprobs_NK
        assert teacher[0] is not None
        assert teacher[1] is not None
        weight_N = _reference_weights(logits_NV, teacher[0], teacher[1], loss) * (row.weight or 1.0)
        for place, weight in enumerate(weight_N):
            at = slice(place, place + 1)
            one = distillation_sum(
                logits_NV[at],
                batch.labels_N[at],
                teacher[0][at],
                teacher[1][at],
                loss,
                torch.tensor([row.kd_weight], dtype=torch.float64),
            )
            total, weights = total + weight * one, weights + weight
    (total / weights).backward()
    return {name: p.grad.clone() for name, p in plain.named_parameters()}, float((total / weights).detach())


@every_loss
@pytest.mark.parametrize("weights", [[None] * 5, [1.0, 3.0, 1.0, 0.5, 3.0]], ids=["no rows", "rows"])
def test_however_a_batch_is_cut_the_gradient_is_that_of_the_weighted_mean_over_all_of_it(
    model: Any, loss: DistillationLoss, weights: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c, d, e = rows = _rows(weights)
    wanted, mean = _reference(model, loss, rows)
    cuts: list[list[list[list[Example]]]] = [
        [[rows]],
        [[[a, b], [c], [d, e]]],
        [[[a], [e]], [[b, d], [c]]],
        [[[a, b, c], [d, e]], [[], []]],
    ]
    for cut in cuts:
        found, value = _gradient_of_ranks(model, loss, cut, monkeypatch)
        assert value == pytest.approx(mean, rel=1e-6)
        for name, gradient in wanted.items():
            assert float((found[name] - gradient).norm() / gradient.norm().clamp_min(1e-9)) < 1e-5, (name, len(cut))


def test_where_no_token_is_to_count_all_count_the_same(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _rows([None] * 3)
    monkeypatch.setattr(SupervisedLoss, "forward", _all_zero(SupervisedLoss.forward))
    even, _value = _gradient_of_ranks(model, LOSSES[0], [[rows]], monkeypatch)
    plain, _value = _gradient_of_ranks(model, DistillationLoss(tail="bucket", kd_weight=0.7), [[rows]], monkeypatch)
    for name, gradient in plain.items():
        torch.testing.assert_close(even[name], gradient)


def _all_zero(forward: Any) -> Any:
    def measuring_nothing(self: Any, *inputs: Any, measure: bool = False) -> Tensor:
        found: Tensor = forward(self, *inputs, measure=measure)
        return found * 0 if measure else found

    return measuring_nothing


def test_weights_are_off_by_default_and_then_no_part_of_what_a_training_is() -> None:
    kd = Distillation()
    assert not {"weighting", "wrong_weight"} & kd.identity().keys()
    assert Distillation(weighting="gap").identity() == {**kd.identity(), "weighting": "gap"}
    assert Rounds(wrong_weight=3).distillation(kd).identity()["wrong_weight"] == 3
    assert (kd.looks_first, Distillation(weighting="entropy").looks_first) == (False, True)


def test_an_answer_is_wrong_where_its_result_was_found_to_be() -> None:
    verdicts: tuple[dict[str, str], ...] = ({"execution": "wrong"}, {"execution": "right"}, {})
    answers = [Written(Row(instruction="a", response="b", verdicts=of), TokenisedRow("0", [1], 0)) for of in verdicts]
    assert [answer.is_wrong for answer in answers] == [True, False, False]
