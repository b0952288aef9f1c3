"""How engines that work side by side share a machine: each its own GPUs, or its own cores."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from infra import devices
from infra.errors import ConfigurationError

_BIND = "VLLM_CPU_OMP_THREADS_BIND"


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

    Each engine has `gpus_each` GPUs, or as many processes on its cores. More engines than cores have a core each all
    the same, and share it.
    """
    if visible := devices.visible():
        parts = (visible[number * gpus_each : (number + 1) * gpus_each] for number in range(engines))
        return [Share({"CUDA_VISIBLE_DEVICES": ",".join(part)}) for part in parts]
    return [_of_cores(cores, gpus_each) for cores in _parts(sorted(os.sched_getaffinity(0)), engines)]


def bind_ranks(ranks: int) -> None:
    """Before a vLLM engine of so many processes starts here: on a CPU each has its own part of our cores.

    What is set stays. With nothing set vLLM wants a NUMA node for each.
    """
    if ranks > 1 and not devices.visible():
        os.environ.setdefault(_BIND, _cores_of_ranks(sorted(os.sched_getaffinity(0)), ranks))


def _cores_of_ranks(cores: list[int], ranks: int) -> str:
    """The cores of each process of a vLLM engine on a CPU, as VLLM_CPU_OMP_THREADS_BIND wants them."""
    return "|".join(",".join(map(str, part)) for part in _parts(cores, ranks))


def _parts(cores: list[int], number: int) -> list[list[int]]:
    each = max(1, len(cores) // number)
    return [[cores[(part * each + n) % len(cores)] for n in range(each)] for part in range(number)]


def _of_cores(cores: list[int], ranks: int) -> Share:
    """Fewer threads than cores where the user asked for fewer: two engines' threads must not wait for one core."""
    threads = min(len(cores), int(os.environ.get("OMP_NUM_THREADS") or len(cores)))
    bound = {"OMP_NUM_THREADS": str(threads), _BIND: _cores_of_ranks(cores, ranks)}
    return Share(bound, frozenset(cores))
