"""How large a model is, from its config alone; nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.errors import ConfigurationError
from tasks.models import ModelSource
from tasks.precision import Quantised


@dataclass(frozen=True)
class ModelShape:
    """A decoder as far as memory goes; `largest_layer` in parameters, the embedding if that is it.

    Of a mixture of experts all count among the `parameters`, and those that a token meets are `active`; `intermediate`
    is what a token meets too. `linear_widths` is the sum of inputs and outputs over all linear layers but the head
    (and experts, which are no such layers): what adapters have for every unit of their rank.
    """

    parameters: int
    active: int
    largest_layer: int
    layers: int
    hidden: int
    intermediate: int
    linear_widths: int

    @staticmethod
    def of(config: Mapping[str, Any]) -> ModelShape:
        """From a Hugging Face config of the Llama kind (Qwen, Mistral, Gemma …), experts too; KeyError for others."""
        hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
        heads = config["num_attention_heads"]
        head = config.get("head_dim") or hidden // heads
        query, key = heads * head, (config.get("num_key_value_heads") or heads) * head
        attention = 2 * hidden * query + 2 * hidden * key + 2 * hidden
        embedding = config["vocab_size"] * hidden
        outer = (embedding if config.get("tie_word_embeddings") else 2 * embedding) + hidden
        experts, sparse = _Experts.of(config), _sparse_layers(config)
        dense = layers - sparse
        widths = layers * (2 * (hidden + query) + 2 * (hidden + key)) + dense * 3 * (hidden + inner)
        every = sparse * 3 * hidden * experts.width(experts.number) + dense * 3 * hidden * inner
        met = sparse * 3 * hidden * experts.width(experts.met) + dense * 3 * hidden * inner
        largest = max(inner if dense else 0, experts.width(experts.number) if sparse else 0)
        return ModelShape(
            parameters=layers * attention + every + outer,
            active=layers * attention + met + outer,
            largest_layer=max(attention + 3 * hidden * largest, embedding),
            layers=layers,
            hidden=hidden,
            intermediate=max(inner if dense else 0, experts.width(experts.met) if sparse else 0),
            linear_widths=widths,
        )

    def adapters(self, rank: int) -> int:
        """Parameters of low-rank adapters on every linear layer but the head."""
        return rank * self.linear_widths


@dataclass(frozen=True)
class _Experts:
    """Of a layer: how many there are, how many a token meets, the inner width of one and of what all tokens share."""

    number: int
    met: int
    inner: int
    shared: int

    @staticmethod
    def of(config: Mapping[str, Any]) -> _Experts:
        inner = config.get("moe_intermediate_size") or config["intermediate_size"]
        shared = config.get("shared_expert_intermediate_size") or config.get("shared_intermediate_size")
        count = _first(config, "n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
        number = _first(config, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
        met = _first(config, "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
        return _Experts(number, min(met or 1, number), inner, shared or count * inner)

    def width(self, experts: int) -> int:
        return experts * self.inner + self.shared


def _sparse_layers(config: Mapping[str, Any]) -> int:
    """Layers that have experts, as Qwen, DeepSeek and Llama 4 say it."""
    layers = config["num_hidden_layers"]
    if not _Experts.of(config).number:
        return 0
    if kinds := config.get("mlp_layer_types"):
        return sum(kind == "sparse" for kind in kinds)
    if (given := config.get("moe_layers")) is not None:
        return len(given)
    step = _first(config, "decoder_sparse_step", "moe_layer_freq", "interleave_moe_layer_step") or 1
    dense = {
        *(config.get("mlp_only_layers") or ()),
        *range(_first(config, "first_k_dense_replace", "moe_layer_start_index")),
    }
    return sum(layer not in dense and (layer + 1) % step == 0 for layer in range(layers))


def _first(config: Mapping[str, Any], *names: str) -> int:
    """The first that is there and a number."""
    return next((config[name] for name in names if isinstance(config.get(name), int)), 0)


@dataclass(frozen=True)
class Size:
    """A decoder's measures. `from_table` where its own config could not be read; `quantised_bytes` of its weights."""

    name: str
    shape: ModelShape
    heads: int
    kv_heads: int
    kv_width: int
    vocabulary: int
    from_table: bool = False
    quantised_bytes: int | None = None

    @property
    def parameters(self) -> int:
        return self.shape.parameters

    @property
    def active(self) -> int:
        """Those that a token meets: fewer than all in a mixture of experts."""
        return self.shape.active

    def weights(self, width: float) -> float:
        """Bytes of all weights at `width` bytes each, or of quantised ones, which nobody computes in."""
        return self.quantised_bytes or width * self.parameters

    def splits_over(self, parallel: int) -> bool:
        """Whether vLLM can spread it over so many GPUs: whole heads, each key/value head once or on equally many."""
        heads, kv_heads = self.heads, self.kv_heads
        shared = kv_heads % parallel == 0 or parallel % kv_heads == 0
        return heads % parallel == 0 and shared and self.shape.intermediate % parallel == 0

    @staticmethod
    def of(name: str, config: Mapping[str, Any], *, from_table: bool = False) -> Size:
        """From a Hugging Face config of the Llama kind; KeyError for others."""
        heads = config["num_attention_heads"]
        head = config.get("head_dim") or config["hidden_size"] // heads
        kv_heads = config.get("num_key_value_heads") or heads
        shape, vocabulary, quantised = ModelShape.of(config), config["vocab_size"], Quantised.of(config)
        outer = vocabulary * config["hidden_size"] * (1 if config.get("tie_word_embeddings") else 2)
        held = quantised.weight_bytes(shape.parameters, outer) if quantised else None
        return Size(name, shape, heads, kv_heads, head * kv_heads, vocabulary, from_table, held)


def known_size(source: ModelSource) -> Size | None:
    """The model's size; None where its config has names of its own."""
    try:
        return Size.of(source.name, source.config())
    except KeyError:
        return None


def check_splits(model: ModelSource, parallel: int, settings: str) -> None:
    """Raises ConfigurationError where vLLM cannot spread the model over so many GPUs (0: nobody asked for a number)."""
    if parallel > 1 and (size := known_size(model)) and not size.splits_over(parallel):
        fit = " or ".join(str(n) for n in range(1, 2 * parallel) if size.splits_over(n))
        raise ConfigurationError(
            f"{settings}.tensor_parallel {parallel} does not divide the {size.heads} attention heads and "
            f"{size.kv_heads} key/value heads of {model.name}: use {fit}"
        )
