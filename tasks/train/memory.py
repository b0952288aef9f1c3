"""How much memory a training takes on each device, from the model's config alone.

Model states after DeepSpeed's own estimators (bf16 weights, fp32 master weights, Adam's two moments), activations
after Korthikanti et al. (2205.05198), without the attention matrix, which fused kernels never write. Good to about
a fifth: enough to choose a ZeRO stage before a GPU is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.train.settings import TrainingRun

_GIB = 2**30
_LOSS_BUFFERS = 300 << 20  # of the fused head, see `tasks.train.fused_head`


@dataclass(frozen=True)
class ModelShape:
    """A decoder as far as memory goes; `largest_layer` in parameters, the embedding if that is it."""

    parameters: int
    largest_layer: int
    layers: int
    hidden: int
    intermediate: int

    @staticmethod
    def of(config: Mapping[str, Any]) -> ModelShape:
        """From a Hugging Face `config.json` of the Llama kind (Qwen, Mistral, Gemma …)."""
        hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
        heads = config["num_attention_heads"]
        head = config.get("head_dim") or hidden // heads
        query, key = heads * head, config.get("num_key_value_heads", heads) * head
        layer = 2 * hidden * query + 2 * hidden * key + 3 * hidden * inner + 2 * hidden
        embedding = config["vocab_size"] * hidden
        outer = embedding if config.get("tie_word_embeddings") else 2 * embedding
        return ModelShape(layers * layer + outer + hidden, max(layer, embedding), layers, hidden, inner)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device."""

    states: int
    activations: int

    @property
    def total(self) -> int:
        return self.states + self.activations


def estimate(shape: ModelShape, run: TrainingRun, ranks: int, tokens: int) -> MemoryEstimate:
    """For a micro-batch of so many tokens on each of `ranks` devices."""
    return MemoryEstimate(_states(shape, run, ranks), _activations(shape, run, tokens))


def advice(shape: ModelShape, run: TrainingRun, ranks: int, tokens: int) -> str:
    """What is needed, and what to change, in one sentence."""
    needed = estimate(shape, run, ranks, tokens)
    changes = []
    if run.micro_batch > 1:
        changes.append(f"lower run.micro_batch (now {run.micro_batch})")
    if not run.gradient_checkpointing:
        changes.append("switch on run.gradient_checkpointing")
    if run.zero_stage < 3 and ranks > 1:
        other = estimate(shape, run.model_copy(update={"zero_stage": 3}), ranks, tokens)
        changes.append(f"set run.zero_stage to 3 (states {other.states / _GIB:.1f} GiB)")
    if run.offload == "none":
        changes.append("set run.offload to optimizer")
    return (
        f"ZeRO-{run.zero_stage} on {ranks} devices takes about {needed.states / _GIB:.1f} GiB a device for a model of "
        f"{shape.parameters / 1e9:.2f} billion parameters, and {needed.activations / _GIB:.1f} GiB for "
        f"{tokens:,} tokens at once: {', or '.join(changes) or 'use more or larger devices'}"
    )


def _states(shape: ModelShape, run: TrainingRun, ranks: int) -> int:
    """Weights 2 bytes, gradients 2 + 4, master weights and moments 12: what is split depends on the stage."""
    whole, split = shape.parameters, shape.parameters / ranks
    offloaded = run.offload != "none"
    if run.zero_stage == 3:
        gathered = 4 * shape.largest_layer
        if run.offload == "parameters":
            return gathered
        return gathered + int(2 * split if offloaded else 18 * split)
    if run.zero_stage == 2:
        return 2 * whole + (0 if offloaded else int(18 * split))
    gradients = 6 * whole
    return 2 * whole + gradients + (0 if offloaded else int(12 * (split if run.zero_stage == 1 else whole)))


def _activations(shape: ModelShape, run: TrainingRun, tokens: int) -> int:
    in_a_layer = 2 * (10 * shape.hidden + 4 * shape.intermediate)
    if run.gradient_checkpointing:
        of_a_token = shape.layers * 2 * shape.hidden + in_a_layer
    else:
        of_a_token = shape.layers * in_a_layer
    return tokens * of_a_token + _LOSS_BUFFERS
