"""Random models of any family of transformers, small enough to be had by the dozen."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

VOCABULARY = 96
_SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "model_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "ffn_hidden_size"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_dim"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("head_dim", "v_head_dim", "kv_channels"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "seq_length", "max_seq_len"), 64),
    **dict.fromkeys(("pad_token_id", "bos_token_id"), 0),
    **dict.fromkeys(("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout"), 0.0),
    **dict.fromkeys(("dropout", "activation_dropout", "layerdrop", "embedding_dropout"), 0.0),
    "eos_token_id": 1,
    "vocab_size": VOCABULARY,
    "sliding_window": 5,
    "word_embed_proj_dim": 64,
}

_MLA = {"head_dim": 8, "num_key_value_heads": 4}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
_OF_FAMILY: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu"), _MLA),
    "deepseek_v2": {**_MLA, "num_experts_per_tok": 2, "n_routed_experts": 4},
    **{family: {**_ROPE, "head_dim": 16} for family in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
}


def tiny_config(family: str, **others: Any) -> PreTrainedConfig:
    """Its default configuration with everything small; `others` come on top."""
    kind = CONFIG_MAPPING[family]
    known = kind().to_dict()
    small = {name: value for name, value in _SMALL.items() if name in known and known[name] is not None}
    for name in ("text_config", "decoder_config"):
        if isinstance(known.get(name), dict):
            text = {key: value for key, value in _SMALL.items() if known[name].get(key)}
            small[name] = {**text, "model_type": known[name]["model_type"]}
        if isinstance(known.get("vision_config"), dict):
            vision = {key: _SMALL[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
            small["vision_config"] = {**vision, "num_attention_heads": 4}
    config: PreTrainedConfig = kind(**{**small, **_OF_FAMILY.get(family, {}), **others})
    return config


def smallest_qwen2() -> PreTrainedConfig:
    """70 tokens, two layers of 32: for exact references in double precision."""
    return tiny_config("qwen2", hidden_size=32, intermediate_size=64, vocab_size=70, tie_word_embeddings=True)


def _rope(kind: str, **others: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **others}}


def _longrope(rotary: float) -> dict[str, Any]:
    """As the long Phi have it: another factor for every pair of dimensions, up to `ORIGINAL` tokens and beyond."""
    pairs = int(16 * rotary) // 2
    factors = {"short_factor": [1.0 + n / 4 for n in range(pairs)], "long_factor": [2.0 + n for n in range(pairs)]}
    rope = _rope("longrope", **factors, original_max_position_embeddings=ORIGINAL, partial_rotary_factor=rotary)
    return {**rope, "original_max_position_embeddings": ORIGINAL}


ORIGINAL = 32  # tokens that a model with a longer context was first made for
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": ORIGINAL}
_WINDOWS = {"layer_types": ["sliding_attention", "full_attention"]}
# What people distil, each with what is particular to it: the table in docs/families.md.
DISTILLED: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2.5": ("qwen2", {"tie_word_embeddings": True}),
    "Qwen2.5 with windows": ("qwen2", {"use_sliding_window": True, "layer_types": _WINDOWS["layer_types"][::-1]}),
    "Qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "Qwen3 MoE": ("qwen3_moe", {"norm_topk_prob": True, "output_router_logits": True}),
    "Llama 3": ("llama", {"tie_word_embeddings": True, **_rope("llama3", **_LLAMA3)}),
    "Gemma 2": ("gemma2", {**_WINDOWS, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 3.0}),
    "Gemma 3": ("gemma3_text", _WINDOWS),
    "Mistral": ("mistral", {"sliding_window": 5}),
    "Mixtral": ("mixtral", {"output_router_logits": True}),
    "Phi-3": ("phi3", {"sliding_window": 5, **_longrope(1.0)}),
    "Phi-4": ("phi3", {"tie_word_embeddings": True, **_longrope(0.75)}),
    "Phi-2": ("phi", {}),
    "Granite": (
        "granite",
        {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.2, "attention_multiplier": 0.1},
    ),
    "OLMo 2": ("olmo2", {}),
    "SmolLM3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "GLM-4": ("glm4", {}),
    "DeepSeek-V2": ("deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}),
    "DeepSeek-V3": ("deepseek_v3", _rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "GPT-OSS": ("gpt_oss", _rope("yarn", factor=4.0, original_max_position_embeddings=16)),
}


def distilled(name: str) -> Any:
    """A random model of one of the `DISTILLED`, whose every part shows: attention that looks, experts that differ."""
    torch.manual_seed(0)
    family, others = DISTILLED[name]
    model = AutoModelForCausalLM.from_config(tiny_config(family, **others), attn_implementation="eager").float().eval()
    with torch.no_grad():
        for part, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" not in part and "scale" not in part:
                noise = torch.randn_like(tensor)
                tensor.copy_(tensor + 0.3 * noise if tensor.ndim < 2 else 0.3 * noise)
    return model
