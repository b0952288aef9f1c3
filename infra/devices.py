"""The GPUs of this machine, without importing torch."""

from __future__ import annotations

import os

GPU = "gpu"  # the limit on how many of them all runs together may hold


def gpus() -> int:
    """How many GPUs a process of ours may use here: those named to it, else what the driver lists; 0 on a CPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip()])
    try:
        return len(os.listdir("/proc/driver/nvidia/gpus"))
    except FileNotFoundError:
        return 0


def gpu_slots(wanted: int) -> int:
    """Slots of the limit `gpu` for work on that many GPUs; a machine without one counts as one."""
    return wanted if gpus() else 1
