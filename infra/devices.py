"""The GPUs of this machine, without importing torch."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

GPU = "gpu"  # the limit on how many of them all runs together may hold
_DRIVER_S = 60.0


@dataclass(frozen=True)
class Gpus:
    """GPUs of one machine: how many, and the bytes that each of them has at least (None: the driver does not say)."""

    number: int
    memory: int | None = None


def gpus() -> int:
    """How many GPUs a process of ours may use here: those named to it, else what the driver lists; 0 on a CPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip()])
    try:
        return len(os.listdir("/proc/driver/nvidia/gpus"))
    except FileNotFoundError:
        return 0


def here() -> Gpus | None:
    """Those of this machine; None on a CPU."""
    number = gpus()
    return Gpus(number, _memory()) if number else None


def gpu_slots(wanted: int) -> int:
    """Slots of the limit `gpu` for work on that many GPUs; a machine without one counts as one."""
    return wanted if gpus() else 1


def _memory() -> int | None:
    """What the driver's own tool says: to ask torch would take memory of each GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    command += [f"--id={visible}"] if visible else []
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_DRIVER_S).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return min((int(mib) << 20 for mib in told.split() if mib.isdigit()), default=None)
