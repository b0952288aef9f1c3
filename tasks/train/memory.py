"""How much memory a training takes on each device, from the model's config alone; nothing heavy is imported.

Model states after DeepSpeed's own estimators (bf16 weights, fp32 master weights, Adam's two moments), activations
after Korthikanti et al. (2205.05198), without the attention matrix, which fused kernels never write. Good to about
a fifth: enough to choose a ZeRO stage before a GPU is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.errors import OutOfMemoryError
from tasks.train.settings import Lora, TrainingRun

_GIB = 2**30
_LOSS_BUFFERS = 300 << 20  # of the fused head, see `tasks.train.model.fused_head`


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

    def adapters(self, lora: Lora) -> int:
        """Parameters of the adapters of `tasks.train.model.adapters`."""
        return lora.rank * self.linear_widths


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
class MemoryEstimate:
    """Bytes on each device."""

    states: int
    activations: int

    @property
    def total(self) -> int:
        return self.states + self.activations


def estimate(
    shape: ModelShape, run: TrainingRun, ranks: int, tokens: int, lora: Lora | None = None, *, half: bool = True
) -> MemoryEstimate:
    """For a micro-batch of so many tokens on each of `ranks` devices, in bf16 (GPUs) or fp32 (`half=False`, CPUs)."""
    return MemoryEstimate(_states(shape, run, ranks, lora, half), _activations(shape, run, tokens, half))


def checkpoint_bytes(parameters: int, lora: Lora | None) -> int:
    """One checkpoint of all ranks: weights, fp32 master weights, two moments; with adapters the weights count."""
    return (2 if lora else 14) * parameters


def check_fits(
    shape: ModelShape, run: TrainingRun, ranks: int, tokens: int, lora: Lora | None, memory: int, *, half: bool = True
) -> None:
    """Raises OutOfMemoryError where the states alone are more than a device's `memory` in bytes."""
    states = estimate(shape, run, ranks, 0, lora, half=half).states
    if states > memory:
        changes_advised = advice(shape, run, ranks, tokens, lora, half=half)
        raise OutOfMemoryError(f"this training does not fit into {memory / _GIB:.1f} GiB a device: {changes_advised}")


def advice(
    shape: ModelShape, run: TrainingRun, ranks: int, tokens: int, lora: Lora | None = None, *, half: bool = True
) -> str:
    """What is needed, and what to change, in one sentence."""

    def with_(**changed: Any) -> MemoryEstimate:
        return estimate(shape, run.model_copy(update=changed), ranks, tokens, lora, half=half)

    needed = with_()
    changes = []
    if run.micro_batch > 1:
        changes.append(f"lower run.micro_batch (now {run.micro_batch})")
    if not run.gradient_checkpointing:
        changes.append("switch on run.gradient_checkpointing")
    if (split := with_(zero_stage=3)).states < needed.states:
        changes.append(f"set run.zero_stage to 3 (states {split.states / _GIB:.1f} GiB)")
    if half and run.offload == "none":
        changes.append(f"set run.offload to optimizer (states {with_(offload='optimizer').states / _GIB:.1f} GiB)")
    if lora is None:
        adapters = estimate(shape, run, ranks, tokens, Lora(), half=half).states
        changes.append(f"train adapters (lora.rank, states {adapters / _GIB:.1f} GiB)")
    trained = f", {shape.adapters(lora) / 1e6:.1f} million of them trained" if lora else ""
    return (
        f"ZeRO-{run.zero_stage} on {ranks} devices takes about {needed.states / _GIB:.1f} GiB a device for a model of "
        f"{shape.parameters / 1e9:.2f} billion parameters{trained}, and {needed.activations / _GIB:.1f} GiB for "
        f"{tokens:,} tokens at once: {', or '.join([*changes, 'use more or larger devices'])}"
    )


def _states(shape: ModelShape, run: TrainingRun, ranks: int, lora: Lora | None, half: bool) -> int:
    """What is split depends on the stage. Weights that adapters leave frozen have no gradient, master or moments.

    In bytes a parameter: in bf16 weights 2, gradients 2 + 4, master weights and moments 4 + 8; in fp32 weights 4,
    gradients 4 and moments 8, with a copy of the weights in their optimizer's partition from stage 1 on.
    """
    trained = shape.parameters if lora is None else shape.adapters(lora)
    frozen = 0 if lora is None else shape.parameters
    weight, gradient, moments = (2, 6, 12) if half else (4, 4, 12 if run.zero_stage else 8)
    in_memory = run.offload != "none"
    if run.zero_stage == 3:
        gathered = 2 * weight * shape.largest_layer
        if run.offload == "parameters":
            return gathered
        of_trained = weight if in_memory else gradient + moments
        return gathered + int(of_trained * trained / ranks) + int(weight * frozen / ranks)
    weights = weight * (trained + frozen)
    if run.zero_stage == 2:
        return weights + (0 if in_memory else int((gradient + moments) * trained / ranks))
    owned = trained / ranks if run.zero_stage == 1 else trained
    return weights + gradient * trained + (0 if in_memory else int(moments * owned))


def _activations(shape: ModelShape, run: TrainingRun, tokens: int, half: bool) -> int:
    size = 2 if half else 4
    in_a_layer = size * (10 * shape.hidden + 4 * shape.intermediate)
    if run.gradient_checkpointing:
        of_a_token = shape.layers * size * shape.hidden + in_a_layer
    else:
        of_a_token = shape.layers * in_a_layer
    return tokens * of_a_token + _LOSS_BUFFERS
