"""The GPUs of this machine, without importing torch."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from itertools import takewhile

GPU = "gpu"  # the limit on how many of them all runs together may hold
_DRIVER_S = 60.0


@dataclass(frozen=True)
class Gpus:
    """GPUs of one machine: how many, and the bytes that each of them has at least (None: the driver does not say)."""

    number: int
    memory: int | None = None


def visible() -> list[str]:
    """The GPUs that a process of ours may use here, as CUDA_VISIBLE_DEVICES names them: by number or UUID, MIG's too.

    Those named to it, up to the first that is none, as CUDA reads them; else what the driver lists; none on a CPU.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        devices = [device.strip() for device in named.split(",") if device.strip()]
        return list(takewhile(lambda device: device not in ("-1", "NoDevFiles"), devices))
    try:
        return [str(number) for number in range(len(os.listdir("/proc/driver/nvidia/gpus")))]
    except FileNotFoundError:
        return []


def gpus() -> int:
    """How many GPUs a process of ours may use here."""
    return len(visible())


def here() -> Gpus | None:
    """Those of this machine; None on a CPU."""
    number = gpus()
    return Gpus(number, _memory()) if number else None


def gpu_slots(wanted: int) -> int:
    """Slots of the limit `gpu` for work on that many GPUs; a machine without one counts as one."""
    return wanted if gpus() else 1


def capability() -> tuple[int, int] | None:
    """The least compute capability of the GPUs here, such as (8, 0); None where the driver does not say."""
    versions = (re.fullmatch(r"(\d+)\.(\d+)", told) for told in _told_of_each("compute_cap"))
    return min(((int(version[1]), int(version[2])) for version in versions if version), default=None)


def _memory() -> int | None:
    if slices := _mig_memory():
        return min((slices[name] for name in visible() if name in slices), default=None)
    return min((int(mib) << 20 for mib in _told_of_each("memory.total") if mib.isdigit()), default=None)


def _mig_memory() -> dict[str, int]:
    """Bytes of each slice of a GPU (MIG) that is ours, as its profile (1g.10gb) is called, less a twentieth.

    Of a slice the driver's query tells what the whole card has.
    """
    if not any(name.startswith("MIG-") for name in visible()):
        return {}
    found = re.finditer(r"^\s+MIG \S*\.(\d+)gb\S*\s.*\(UUID: (MIG-[^)]+)\)", _smi("-L"), re.MULTILINE)
    return {slice_[2]: int(0.95 * 2**30) * int(slice_[1]) for slice_ in found}


def _told_of_each(field: str) -> list[str]:
    """What the driver's own tool says of each GPU: to ask torch would take memory of each."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    which = [f"--id={named}"] if named else []
    return _smi(f"--query-gpu={field}", "--format=csv,noheader,nounits", *which).split()


def _smi(*arguments: str) -> str:
    """What it prints; nothing where it is not there, or fails."""
    command = ["nvidia-smi", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_DRIVER_S).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
