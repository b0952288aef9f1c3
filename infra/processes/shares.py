"""How engines that work side by side share a machine: each its own GPUs, or its own cores."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from infra import devices
from infra.errors import ConfigurationError


@dataclass(frozen=True)
class Share:
    """What one engine has of the machine: the cores that it may run on (none: all), and the variables that say so."""

    environment: dict[str, str] = field(default_factory=dict)
    cores: frozenset[int] = frozenset()


def engines_on(gpus: int, wanted: int, gpus_each: int, setting: str) -> int:
    """How many engines of `gpus_each` GPUs run side by side: `wanted`, or where that is 0 as many as fit.

    A CPU has as many as are wanted, else one. ConfigurationError, which names the `setting`, where they do not fit.
    """
    if not gpus:
        return wanted or 1
    if wanted > 1 and wanted * gpus_each > gpus:
        raise ConfigurationError(
            f"{setting} is {wanted}, each on {gpus_each} of the {gpus} GPUs here: at most {gpus // gpus_each} fit "
            "(0 takes as many as fit)"
        )
    return wanted or max(1, gpus // gpus_each)


def shares(engines: int, gpus_each: int = 1) -> list[Share]:
    """The machine in as many parts: of its visible GPUs in their order, or of the cores that we may run on.

    More engines than cores have a core each all the same, and share it.
    """
    if visible := devices.visible():
        parts = (visible[number * gpus_each : (number + 1) * gpus_each] for number in range(engines))
        return [Share({"CUDA_VISIBLE_DEVICES": ",".join(part)}) for part in parts]
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // engines)
    return [_of_cores([cores[(number * each + n) % len(cores)] for n in range(each)]) for number in range(engines)]


def _of_cores(cores: list[int]) -> Share:
    """Fewer threads than cores where the user asked for fewer: two engines' threads must not wait for one core."""
    threads = min(len(cores), int(os.environ.get("OMP_NUM_THREADS") or len(cores)))
    bound = {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores))}
    return Share(bound, frozenset(cores))
