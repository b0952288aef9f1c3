"""How much memory a training takes on each device, from the model's config alone; nothing heavy is imported.

Model states after DeepSpeed's own estimators (bf16 weights, fp32 master weights, Adam's two moments), activations
after Korthikanti et al. (2205.05198), without the attention matrix, which fused kernels never write. Good to about
a fifth: enough to choose a ZeRO stage before a GPU is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from infra.errors import OutOfMemoryError
from tasks.engines.sizes import ModelShape
from tasks.train.settings import Lora, Offload

_GIB = 2**30
_LOSS_BUFFERS = 300 << 20  # of the fused head, see `tasks.train.model.fused_head`


class Placement(BaseModel):
    """Where a training's states lie, and how much is computed at once: the settings of `TrainingRun`, all known."""

    model_config = ConfigDict(frozen=True)

    zero_stage: int = 2
    offload: Offload = "none"
    micro_batch: int = 16
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device."""

    states: int
    activations: int

    @property
    def total(self) -> int:
        return self.states + self.activations


def estimate(
    shape: ModelShape, way: Placement, ranks: int, tokens: int, lora: Lora | None = None, *, half: bool = True
) -> MemoryEstimate:
    """For a micro-batch of so many tokens on each of `ranks` devices, in bf16 (GPUs) or fp32 (`half=False`, CPUs)."""
    return MemoryEstimate(_states(shape, way, ranks, lora, half), _activations(shape, way, tokens, half))


def held_in_memory(shape: ModelShape, way: Placement, ranks: int, lora: Lora | None) -> int:
    """Bytes in the memory of a machine with so many ranks: the weights that each loads, and what is offloaded.

    Of a trained parameter its gradient, master weight and moments in fp32; of the parameters their bf16.
    """
    trained = shape.parameters if lora is None else shape.adapters(lora.rank)
    offloaded = {"none": 0, "optimizer": 16 * trained, "parameters": 16 * trained + 2 * shape.parameters}
    return ranks * 2 * shape.parameters + offloaded[way.offload]


def checkpoint_bytes(parameters: int, lora: Lora | None) -> int:
    """One checkpoint of all ranks: weights, fp32 master weights, two moments; with adapters the weights count."""
    return (2 if lora else 14) * parameters


def check_fits(
    shape: ModelShape, way: Placement, ranks: int, tokens: int, lora: Lora | None, memory: int, *, half: bool = True
) -> None:
    """Raises OutOfMemoryError where the states alone are more than a device's `memory` in bytes."""
    states = estimate(shape, way, ranks, 0, lora, half=half).states
    if states > memory:
        changes_advised = advice(shape, way, ranks, tokens, lora, half=half)
        raise OutOfMemoryError(f"this training does not fit into {memory / _GIB:.1f} GiB a device: {changes_advised}")


def advice(
    shape: ModelShape, way: Placement, ranks: int, tokens: int, lora: Lora | None = None, *, half: bool = True
) -> str:
    """What is needed, and what to change, in one sentence."""

    def with_(**changed: Any) -> MemoryEstimate:
        return estimate(shape, way.model_copy(update=changed), ranks, tokens, lora, half=half)

    needed = with_()
    changes = []
    if way.micro_batch > 1:
        changes.append(f"lower run.micro_batch (now {way.micro_batch})")
    if not way.gradient_checkpointing:
        changes.append("switch on run.gradient_checkpointing")
    if (split := with_(zero_stage=3)).states < needed.states:
        changes.append(f"set run.zero_stage to 3 (states {split.states / _GIB:.1f} GiB)")
    if half and way.offload == "none":
        changes.append(f"set run.offload to optimizer (states {with_(offload='optimizer').states / _GIB:.1f} GiB)")
    if lora is None:
        adapters = estimate(shape, way, ranks, tokens, Lora(), half=half).states
        changes.append(f"train adapters (lora.rank, states {adapters / _GIB:.1f} GiB)")
    trained = f", {shape.adapters(lora.rank) / 1e6:.1f} million of them trained" if lora else ""
    return (
        f"ZeRO-{way.zero_stage} on {ranks} devices takes about {needed.states / _GIB:.1f} GiB a device for a model of "
        f"{shape.parameters / 1e9:.2f} billion parameters{trained}, and {needed.activations / _GIB:.1f} GiB for "
        f"{tokens:,} tokens at once: {', or '.join([*changes, 'use more or larger devices'])}"
    )


def _states(shape: ModelShape, way: Placement, ranks: int, lora: Lora | None, half: bool) -> int:
    """What is split depends on the stage. Weights that adapters leave frozen have no gradient, master or moments.

    In bytes a parameter: in bf16 weights 2, gradients 2 + 4 (those of a backward pass and their sum), master weights
    and moments 4 + 8, split at stage 0 as at 1; in fp32 weights 4, gradients 4 and moments 8, with a copy of the
    weights in their optimizer's partition from stage 1 on. Loading takes less: weights, and at stage 3 one module.
    """
    trained = shape.parameters if lora is None else shape.adapters(lora.rank)
    frozen = 0 if lora is None else shape.parameters
    weight, gradient, moments = (2, 6, 12) if half else (4, 4, 12 if way.zero_stage else 8)
    in_memory = way.offload != "none"
    if way.zero_stage == 3:
        gathered = 2 * weight * shape.largest_layer
        if way.offload == "parameters":
            return gathered
        of_trained = weight if in_memory else gradient + moments
        return gathered + int(of_trained * trained / ranks) + int(weight * frozen / ranks)
    weights = weight * (trained + frozen)
    if way.zero_stage == 2:
        return weights + (0 if in_memory else int((gradient + moments) * trained / ranks))
    owned = trained / ranks if way.zero_stage == 1 or half else trained
    return weights + gradient * trained + (0 if in_memory else int(moments * owned))


def _activations(shape: ModelShape, way: Placement, tokens: int, half: bool) -> int:
    size = 2 if half else 4
    in_a_layer = size * (10 * shape.hidden + 4 * shape.intermediate)
    if way.gradient_checkpointing:
        of_a_token = shape.layers * size * shape.hidden + in_a_layer
    else:
        of_a_token = shape.layers * in_a_layer
    return tokens * of_a_token + _LOSS_BUFFERS
