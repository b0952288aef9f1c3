"""Sixty families of models: packed rows give each family's own loss and gradients; all others are refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from infra.errors import ConfigurationError
from tasks.train.data.order import Example
from tasks.train.data.packing import pack, use_packed_attention
from tasks.train.model.families import TRAINABLE, check_trainable
from tasks.train.model.logit_map import LogitMap, measured
from tasks.train.model.student import SupervisedLoss
from tests.support.families import VOCABULARY, tiny_config

LENGTHS = (17, 3, 9, 16, 2, 8, 2)
AROUND_THE_HEAD: dict[str, tuple[dict[str, Any], LogitMap]] = {
    "granite": ({"logits_scaling": 8.0}, LogitMap(0.125)),
    "granitemoe": ({"logits_scaling": 4.0}, LogitMap(0.25)),
    "hyperclovax": ({"logits_scaling": 3.0}, LogitMap(3.0)),
    "cohere": ({}, LogitMap(0.0625)),
    "gemma2": ({"attn_logit_softcapping": 0.5, "final_logit_softcapping": 3.0}, LogitMap(cap=3.0)),
    "gemma3_text": ({"final_logit_softcapping": 3.0}, LogitMap(cap=3.0)),
    "nanochat": ({}, LogitMap(cap=15.0)),
    "minicpm3": ({}, LogitMap(before=4.0)),
    "qwen2": ({}, LogitMap()),
}


@pytest.mark.parametrize("family", sorted(TRAINABLE))
def test_packed_rows_give_the_models_own_loss_and_gradients(family: str) -> None:
    others, around = AROUND_THE_HEAD.get(family, ({}, None))
    model = _model(family, **others)
    rng = np.random.default_rng(0)
    rows = [Example(str(n), rng.integers(3, VOCABULARY, size).tolist(), size // 2) for n, size in enumerate(LENGTHS)]
    plain = sum(_own_loss(model, row) for row in rows)
    plain.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    use_packed_attention(model)
    module, batch = SupervisedLoss(model, None), pack(rows)
    if around is not None:
        assert module.head.logit_map == around
    loss = module(*batch.inputs)
    loss.backward()
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=0)
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == wanted.keys()
    for name, gradient in got.items():
        assert float((gradient - wanted[name]).norm() / (wanted[name].norm() + 1e-6)) < 1e-3, name


@pytest.mark.parametrize("document", ["README.md", "docs/models.md"])
def test_documents_know_how_many_there_are(document: str) -> None:
    text = (Path(__file__).parents[4] / document).read_text()
    assert re.findall(r"(\d+) families can be trained", text) == [str(len(TRAINABLE))]


@pytest.mark.parametrize("family", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - TRAINABLE))
def test_every_other_family_is_refused_by_its_config_alone(family: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'mine' cannot be trained here: .*type '{family}'"):
        check_trainable("mine", {"model_type": family})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"layer_types": ["full_attention", "linear_attention", "conv"]}, "are conv, linear_attention, which mix"),
        ({"text_config": {"use_bidirectional_attention": "all"}}, "bidirectional"),
        ({"is_causal": False}, "bidirectional"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantised \(fp8\): choose the model in bf16"),
    ],
)
def test_a_trainable_familys_own_exceptions_are_refused(config: dict[str, Any], words: str) -> None:
    check_trainable("mine", {"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"]})
    with pytest.raises(ConfigurationError, match=f"'mine' cannot be trained here: .*{words}"):
        check_trainable("mine", {"model_type": "qwen2", **config})


@pytest.mark.parametrize("family", ["bert", "modernbert-decoder"])
def test_what_is_no_decoder_with_a_plain_head_is_not_measured(family: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be trained here"):
        measured(AutoModelForCausalLM.from_config(tiny_config(family)))


def _model(family: str, **others: Any) -> Any:
    """With a head large enough for a cap to show, and nothing that is drawn at random in training."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **others), attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.get_output_embeddings().parameters():
            parameter *= 20
    return model


def _own_loss(model: Any, row: Example) -> Any:
    """Of the row alone, by the family's own forward."""
    logits_TV = model(torch.tensor([row.ids]), use_cache=False).logits[0].float()
    return cross_entropy(
        logits_TV[row.response_start - 1 : -1], torch.tensor(row.ids[row.response_start :]), reduction="sum"
    )
