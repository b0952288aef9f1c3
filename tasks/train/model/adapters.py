"""Low-rank adapters through peft: put on before training, merged into the weights on export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tasks.train.settings import Lora


def with_adapters(model: Any, lora: Lora) -> Any:
    """The model with adapters on every linear layer but the head; only they are trained."""
    from peft import LoraConfig, get_peft_model  # a second of imports that most trainings do not need

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def merged(base: Path, state: dict[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """`state` of a model `with_adapters` as that of the plain model in folder `base`, in fp32."""
    model = with_adapters(
        AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False, dtype=torch.float32), lora
    )
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    plain: dict[str, Tensor] = model.merge_and_unload().state_dict()
    return plain
