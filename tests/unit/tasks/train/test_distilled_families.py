"""The families that people distil: each trained, scored, evaluated and exported as its own fp32 forward says.

With whatever is particular to one: tied and scaled heads, caps, windows that rows are longer than, sinks, experts,
rotations that depend on the length. The table is in docs/families.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from tasks.engines.scoring import TransformersEngine
from tasks.evaluate.heldout.scoring import load_model, logits_of
from tasks.models import ModelSource
from tasks.tokens.rows import TokenisedRow
from tasks.train.data.order import Example
from tasks.train.data.packing import pack, use_packed_attention
from tasks.train.model.adapters import merged, with_adapters
from tasks.train.model.export import write_model
from tasks.train.model.losses import DistillationLoss, distillation_sum
from tasks.train.model.student import SupervisedLoss
from tasks.train.settings import Lora
from tests.support.families import DISTILLED, ORIGINAL, VOCABULARY, distilled

LENGTHS = (17, 3, 9, ORIGINAL, 2, 8, 2)
K = 5
LOSS = DistillationLoss(tail="bucket", kd_weight=0.5)
every_family = pytest.mark.parametrize("name", DISTILLED)


def _examples() -> list[Example]:
    rng = np.random.default_rng(0)
    examples = []
    for n, size in enumerate(LENGTHS):
        ids, supervised = rng.integers(3, VOCABULARY, size), size - size // 2
        teacher = rng.permuted(np.tile(np.arange(VOCABULARY), (supervised, 1)), axis=1)[:, :K]
        logprobs = np.log(rng.dirichlet(np.ones(K + 1), supervised)[:, :K]).astype(np.float32)
        examples.append(Example(str(n), ids.tolist(), size // 2, teacher.astype(np.int32), logprobs))
    return examples


EXAMPLES = _examples()
BATCH = pack(EXAMPLES)


def _own_logits(model: Any, example: Example) -> torch.Tensor:
    """(T, V), of the row alone, by the family's own forward."""
    logits: torch.Tensor = model(torch.tensor([example.ids]), use_cache=False).logits[0].float()
    return logits


def _own_loss(model: Any) -> torch.Tensor:
    total = torch.zeros(())
    for example in EXAMPLES:
        alone = pack([example])
        teacher: tuple[Any, Any] = alone.teacher_ids_NK, alone.teacher_logprobs_NK
        total = total + distillation_sum(_own_logits(model, example)[alone.positions_N], alone.labels_N, *teacher, LOSS)
    return total


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@every_family
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_loss_and_gradients_are_those_of_the_rows_alone(name: str, checkpointing: bool) -> None:
    model = distilled(name)
    plain = _own_loss(model)
    plain.backward()
    wanted = _gradients(model)
    use_packed_attention(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loss = SupervisedLoss(model, LOSS).train()(*BATCH.inputs)
    loss.backward()
    torch.testing.assert_close(loss, plain, rtol=2e-5, atol=0)
    got = _gradients(model)
    assert got.keys() == wanted.keys()
    for part, gradient in got.items():
        assert float((gradient - wanted[part]).norm() / (wanted[part].norm() + 1e-6)) < 1e-3, part


@every_family
def test_scores_and_evaluation_are_its_own_forward(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of many lengths in one padded batch, by the reference engine, a few tokens at a time, and by evaluation."""
    monkeypatch.setattr("tasks.engines.scoring._POSITIONS_AT_ONCE", 3)
    model = distilled(name)
    model.save_pretrained(tmp_path)
    rows = [TokenisedRow(e.row_id, list(e.ids), e.response_start) for e in EXAMPLES]
    scored = TransformersEngine(tmp_path).score(rows, K)
    with torch.inference_mode():
        logits_BTV = logits_of(load_model(ModelSource(name=name, path=str(tmp_path))), rows)
        for b, (row, example) in enumerate(zip(scored, EXAMPLES, strict=True)):
            own_TV = _own_logits(model, example)
            torch.testing.assert_close(logits_BTV[b, : len(example.ids)], own_TV, rtol=1e-4, atol=1e-4)
            own = own_TV.log_softmax(dim=1)[row.places_R - 1].topk(K, dim=1)
            np.testing.assert_allclose(row.logprobs_RK, own.values, rtol=1e-4, atol=1e-4)
            assert (row.topk_ids_RK == own.indices.numpy()).all()


@every_family
@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_what_is_exported_is_what_was_trained(name: str, lora: Lora | None, tmp_path: Path) -> None:
    base, target = tmp_path / "base", tmp_path / "target"
    target.mkdir()
    distilled(name).save_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if lora is not None:
        model = with_adapters(model, lora)
    use_packed_attention(model)
    before = _hidden(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.02)
    for _ in range(2):  # an adapter's second matrix is zero at first
        SupervisedLoss(model, LOSS)(*BATCH.inputs).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    after = _hidden(model)
    assert not torch.allclose(before, after, atol=1e-3)
    state = model.state_dict()
    if lora is not None:
        model, state = model.get_base_model(), merged(base, state, lora)
    write_model(model, state, base, target, (1,), torch.float32)
    again: Any = AutoModelForCausalLM.from_pretrained(target)
    assert again.dtype == torch.float32
    torch.testing.assert_close(_hidden(_packed(again)), after, rtol=1e-4, atol=1e-4)
    assert _tensors(target) == _tensors(base)  # by their names on the hub, which vLLM knows


def _packed(model: Any) -> Any:
    use_packed_attention(model)
    return model


@torch.no_grad()
def _hidden(model: Any) -> torch.Tensor:
    hidden: torch.Tensor = model.get_decoder()(
        BATCH.input_ids_1T, position_ids=BATCH.position_ids_1T, rows=BATCH.rows, use_cache=False
    )[0]
    return hidden


def _tensors(folder: Path) -> dict[str, list[int]]:
    with safe_open(folder / "model.safetensors", "np") as file:
        return {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}


def test_the_table_in_the_documents_has_them_all() -> None:
    table = (Path(__file__).parents[4] / "docs" / "families.md").read_text()
    for name, (family, _) in DISTILLED.items():
        assert f"| {name} | `{family}` |" in table


def test_a_routers_bias_is_exported_in_full(tmp_path: Path) -> None:
    """DeepSeek-V3 and its heirs choose experts by a bias in fp32, whose steps bf16 would swallow."""
    base, target = tmp_path / "base", tmp_path / "target"
    target.mkdir()
    distilled("DeepSeek-V3").save_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.model.layers[1].mlp.gate.e_score_correction_bias += 8.0
    state = model.state_dict()
    write_model(model, {name: tensor.float() for name, tensor in state.items()}, base, target, (1,), torch.bfloat16)
    again = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16).state_dict()
    for name, tensor in state.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor), name
    assert {str(tensor.dtype) for tensor in state.values()} == {"torch.bfloat16", "torch.float32"}
