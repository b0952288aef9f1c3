"""The hardware that a plan is made for: what a device computes, holds and reads, and how much of it is used.

Peaks are dense bf16 from the vendors' data sheets, memory is what the driver reports. No training reaches the
peak: the share that is reached (model FLOPs utilisation, 2204.02311, appendix B) is assumed, and said in the plan.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from infra import memory
from infra.devices import Gpus
from infra.errors import ConfigurationError

Device = Literal["here", "cpu", "L4", "A10G", "L40S", "A100-40", "A100-80", "H100", "H200", "B200"]
CPU = "cpu"
_GIB = 2**30
_CPU_RANKS = 2
_UTILISATION = 0.3


@dataclass(frozen=True)
class _Peak:
    """One device: dense bf16 TFLOP/s, memory in GiB, memory bandwidth in GB/s."""

    tflops: float
    memory_gib: float
    bandwidth: float


_GPUS: dict[str, _Peak] = {
    "L4": _Peak(121, 22.5, 300),
    "A10G": _Peak(70, 22.5, 600),
    "L40S": _Peak(362, 45, 864),
    "A100-40": _Peak(312, 39.5, 1555),
    "A100-80": _Peak(312, 79.2, 2039),
    "H100": _Peak(989, 79.6, 3350),
    "H200": _Peak(989, 140.4, 4800),
    "B200": _Peak(2250, 179, 8000),
}
# Measured on AVX2 cores: fp32 matrix products of a large LM head. The demo's models are too small to come near.
_CPU_CORE = _Peak(0.065, 0, 10)


class Hardware(BaseModel):
    """What to plan for, and what machines elsewhere are; never changes a result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Device = Field("here", description="the devices to plan for; here: this machine's GPUs, or its CPU")
    devices: int | None = Field(None, ge=1, description="how many of them (default: 1, or all that are here)")
    utilisation: float | None = Field(
        None, gt=0, le=1, description=f"share of the peak that is reached (default: {_UTILISATION:g}, assumed)"
    )
    usd_per_device_hour: float | None = Field(None, ge=0, description="price of a device for an hour")


@dataclass(frozen=True)
class Machine:
    """Devices as the plan counts them. A CPU counts as `devices` ranks that share its cores and its memory."""

    name: str
    devices: int
    tflops: float
    memory: int
    bandwidth: float
    utilisation: float
    usd_per_device_hour: float | None = None

    @property
    def is_cpu(self) -> bool:
        return self.name == CPU

    @property
    def flops_s(self) -> float:
        """What one device really computes in a second."""
        return self.tflops * 1e12 * self.utilisation


def machine(hardware: Hardware, processes: int = 0) -> Machine:
    """The hardware in numbers; ConfigurationError for a GPU of this machine that is in no table.

    `processes` are the DeepSpeed ranks that were asked for (0: not).
    """
    name, found = _here() if hardware.device == "here" else (hardware.device, 1)
    used = hardware.utilisation or _UTILISATION
    if name == CPU:
        ranks, cores = processes or hardware.devices or _CPU_RANKS, os.cpu_count() or 1
        return Machine(
            name=name,
            devices=ranks,
            tflops=_CPU_CORE.tflops * cores / ranks,
            memory=memory.total() // ranks,
            bandwidth=_CPU_CORE.bandwidth * 1e9 * cores / ranks,
            utilisation=used,
            usd_per_device_hour=hardware.usd_per_device_hour,
        )
    peak = _GPUS[name]
    return Machine(
        name=name,
        devices=hardware.devices or found,
        tflops=peak.tflops,
        memory=int(peak.memory_gib * _GIB),
        bandwidth=peak.bandwidth * 1e9,
        utilisation=used,
        usd_per_device_hour=hardware.usd_per_device_hour,
    )


def offered(hardware: Hardware | None) -> Gpus | None:
    """The GPUs of a machine that `hardware` names; None where it names none."""
    if hardware is None or hardware.device not in _GPUS:
        return None
    return Gpus(hardware.devices or 1, int(_GPUS[hardware.device].memory_gib * _GIB))


def _here(driver: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[str, int]:
    """This machine's kind of device as the driver names it (without importing torch), and how many there are."""
    names = [_model(card / "information") for card in sorted(driver.iterdir())] if driver.is_dir() else []
    if not names:
        return CPU, 1
    return gpu_named(names[0]), len(names)


def gpu_named(model: str) -> str:
    """The table's name of a driver's "NVIDIA A100-SXM4-80GB"."""
    words = model.replace("-", " ").split()
    for name in _GPUS:
        kind, _, size = name.partition("-")
        if kind in words and (not size or f"{size}GB" in words):
            return name
    raise ConfigurationError(f"the plan knows no {model!r}: name the nearest of {', '.join(_GPUS)} as hardware.device")


def _model(information: Path) -> str:
    lines = information.read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), "GPU without a name")
