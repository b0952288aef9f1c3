"""How a training is laid out on its devices where nobody said it: the fastest way that fits. Maths alone.

Which is faster is told by operations: those that a step computes, and those that a device could compute while it waits
for bytes from other devices, for bytes of the machine's memory, or for kernels to be launched. What that is worth is
assumed (an H100 at 30 % of its peak, NVLink, PCIe); only the order of the ways hangs on it, never the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from tasks.engines.memory import CONTEXT
from tasks.engines.sizes import ModelShape
from tasks.train.memory import Placement, estimate
from tasks.train.settings import LEAST_STAGE, Lora, Offload, TrainingRun

_A_BYTE_BETWEEN_DEVICES = 1e3  # operations: 3e14 a second, 300 GB a second
_A_BYTE_OF_THE_MACHINE = 1e4  # 30 GB a second
_A_LAYER_LAUNCHED = 1e11  # 0.3 ms
_STEP_BYTES = 32  # of an offloaded parameter: gradient down, weight up, and Adam reads and writes its states
_UNCERTAIN = 1.25  # activations are known to about a fifth
_EQUAL = 1.05  # by so much ways are not told apart


@dataclass(frozen=True)
class Demand:
    """What a training asks of each of its `ranks`, with `memory` bytes each.

    Weights in use are bf16 if they take `half`; each rank has a GPU, or its part of a CPU.
    `row_tokens` is the mean of a row; `longest(n)` the tokens of a micro-batch of n rows, if they are long.
    """

    shape: ModelShape
    ranks: int
    memory: int
    global_batch: int
    row_tokens: float
    longest: Callable[[int], int]
    lora: Lora | None = None
    half: bool = True
    on_gpu: bool = True

    @property
    def rows(self) -> int:
        """Of a rank in a step."""
        return -(-self.global_batch // self.ranks)

    def takes(self, way: Placement) -> int:
        """Bytes on a device."""
        need = estimate(self.shape, way, self.ranks, self.longest(way.micro_batch), self.lora, half=self.half)
        return need.states + round(_UNCERTAIN * need.activations) + CONTEXT


def choose(run: TrainingRun, demand: Demand, stage_before: int | None = None) -> Placement:
    """What `run` says, and for what it leaves open the fastest that fits; where none does, what takes least.

    A training that has a checkpoint stays at its ZeRO stage (`stage_before`), which is the only one that can go on from
    it, while that fits. On a CPU it is as it always was (ZeRO-2, 16 rows, everything kept) while that fits.
    """
    ways = list(_ways(run, demand))
    if run.zero_stage == "auto" and stage_before is not None:
        same = list(_ways(run.model_copy(update={"zero_stage": stage_before}), demand))
        ways = same if any(demand.takes(way) <= demand.memory for way in same) else ways
    fitting = [way for way in ways if demand.takes(way) <= demand.memory]
    if not fitting:
        return min(ways, key=demand.takes)
    if not demand.on_gpu:
        return fitting[0]
    fastest = min(cost(way, demand) for way in fitting)
    return min((way for way in fitting if cost(way, demand) <= _EQUAL * fastest), key=demand.takes)


def cost(way: Placement, demand: Demand) -> float:
    """What a step costs a rank, in operations."""
    shape, lora = demand.shape, demand.lora
    trained = shape.adapters(lora.rank) if lora else shape.parameters
    micro_batches = math.ceil(demand.rows / way.micro_batch)
    passes = (4 if lora else 6) + 2 * way.gradient_checkpointing
    operations = passes * shape.active * demand.row_tokens * demand.global_batch / demand.ranks
    operations += micro_batches * shape.layers * passes / 2 * _A_LAYER_LAUNCHED
    if demand.ranks > 1:
        gradients = 2 * trained * (micro_batches if way.zero_stage >= 2 else 1)
        weights = 4 * shape.parameters * micro_batches if way.zero_stage == 3 else 2 * trained
        operations += (gradients + weights) * _A_BYTE_BETWEEN_DEVICES
    if way.offload != "none":
        operations += _STEP_BYTES * trained / demand.ranks * _A_BYTE_OF_THE_MACHINE
    if way.offload == "parameters":
        operations += 4 * shape.parameters / demand.ranks * micro_batches * _A_BYTE_OF_THE_MACHINE
    return operations


def describe(way: Placement) -> str:
    """In words."""
    words = [f"ZeRO-{way.zero_stage}", f"{way.micro_batch} rows at once"]
    words += ["activations computed twice"] if way.gradient_checkpointing else []
    words += [f"{way.offload} in the machine's memory"] if way.offload != "none" else []
    return ", ".join(words)


def _ways(run: TrainingRun, demand: Demand) -> Iterator[Placement]:
    """All that leave what is set as it is; those of a CPU in the order in which they cost more."""
    offloads: list[Offload] = [run.offload] if run.offload != "auto" else ["none"]
    if run.offload == "auto" and demand.on_gpu:
        offloads += ["optimizer", "parameters"]
    checkpointing = [run.gradient_checkpointing] if run.gradient_checkpointing != "auto" else [False, True]
    rows = [run.micro_batch] if run.micro_batch != "auto" else _micro_batches(demand)
    for offload in offloads:
        for stage, twice, micro_batch in product(_stages(run, demand, offload), checkpointing, rows):
            yield Placement(zero_stage=stage, offload=offload, micro_batch=micro_batch, gradient_checkpointing=twice)


def _stages(run: TrainingRun, demand: Demand, offload: Offload) -> list[int]:
    """One device alone has nobody to share with: the least stage that can offload will do."""
    least = max(1, LEAST_STAGE[offload])
    if run.zero_stage != "auto":
        return [run.zero_stage] if run.zero_stage >= LEAST_STAGE[offload] else []
    if not demand.on_gpu:
        return [stage for stage in (2, 3) if stage >= least]
    return list(range(least, 4)) if demand.ranks > 1 else [least]


def _micro_batches(demand: Demand) -> list[int]:
    """A rank's whole share of the global batch, and powers of two below it; at most 16 on a CPU."""
    most = demand.rows if demand.on_gpu else Placement().micro_batch
    return [most, *(2**exponent for exponent in reversed(range((most - 1).bit_length())))]
