"""Random models of any family of transformers, small enough to be had by the dozen."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

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
