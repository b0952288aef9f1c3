"""What a machine of a stage's own has to give it: a pod asks Kubernetes for that much."""

from __future__ import annotations

from dataclasses import dataclass

_GIB = 2**30
# Of an engine's process on a GPU. Python, torch and CUDA's pinned buffers; what NCCL and vLLM's workers pass to each
# other; cores for the process, its data and its compression.
_PROCESS = 8 * _GIB
_SHARED_MEMORY = 8 * _GIB
_CORES = 4


@dataclass(frozen=True)
class Needs:
    """GPUs; bytes of memory, those of /dev/shm among them; bytes of /dev/shm; cores."""

    gpus: int
    memory: int
    shared_memory: int
    cores: int

    @staticmethod
    def without_gpus() -> Needs:
        """Of a process that has another machine compute."""
        return Needs(0, _PROCESS, _GIB, _CORES)

    @staticmethod
    def of_engine(gpus: int, held: int = 0) -> Needs:
        """Of an engine with a process on each GPU; all of them together hold so many bytes in the machine's memory.

        Weights that are read from mapped files on their way to a GPU are not held.
        """
        shared = gpus * _SHARED_MEMORY
        return Needs(gpus, held + gpus * _PROCESS + shared, shared, gpus * _CORES)
