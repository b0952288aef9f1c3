"""Which models can be trained: those whose packed loss and gradients are proven equal to their own forward.

`tests/unit/tasks/train/test_families.py` walks all families of transformers. What is not here mixes tokens by more than
causal attention (recurrence, convolution, masks of its own) or takes positions from a mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.errors import ConfigurationError

ATTENTION_KINDS = frozenset({"full_attention", "sliding_attention"})
# fmt: off
TRAINABLE = frozenset({
    "afmoe", "apertus", "arcee", "aria_text", "axk1", "bitnet", "cohere", "cohere2", "cohere2_moe", "cwm",
    "deepseek_v2", "deepseek_v3", "diffllama", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "flex_olmo", "fuyu",
    "gemma", "gemma2", "gemma3", "gemma3_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "gpt-sw3", "gpt2",
    "gpt_bigcode", "gpt_neox", "gpt_oss", "granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared",
    "helium", "hrm_text", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax", "jais2", "jetmoe", "laguna",
    "llama", "mellum", "mimo_v2_flash", "minicpm3", "minimax_m2", "minimax_m3_vl_text", "ministral", "ministral3",
    "mistral", "mixtral", "nanochat", "olmo", "olmo2", "olmo3", "olmoe", "persimmon", "phi", "phi3", "phimoe", "qwen2",
    "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "solar_open", "starcoder2", "vaultgemma", "youtu",
})
# fmt: on


def check_trainable(name: str, config: Mapping[str, Any]) -> None:
    """Refuse by its config.json what could only be trained wrongly; raises ConfigurationError."""
    family, text = config.get("model_type"), {**config, **(config.get("text_config") or {})}
    if family not in TRAINABLE:
        raise ConfigurationError(
            f"{name!r} cannot be trained here: no proof that packed rows are the rows alone for models of type "
            f"{family!r}: choose a student of another family (Qwen, Llama, Mistral, Gemma, Phi, Granite, OLMo …)"
        )
    others = sorted({*(text.get("layer_types") or ())} - ATTENTION_KINDS)
    if others:
        raise ConfigurationError(
            f"{name!r} cannot be trained here: some of its layers are {', '.join(others)}, which mix packed rows: "
            "choose a student whose layers are attention"
        )
    if text.get("use_bidirectional_attention") or text.get("is_causal") is False:
        raise ConfigurationError(
            f"{name!r} cannot be trained here: its attention is bidirectional, as of an encoder: choose a causal model"
        )
    if quantised := config.get("quantization_config"):
        raise ConfigurationError(
            f"{name!r} cannot be trained here: its weights are quantised ({quantised.get('quant_method', 'unknown')}): "
            "choose the model in bf16 or fp32"
        )
