"""What this process computes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra import devices
from tasks.precision import BF16_SINCE, Capability, Dtype, Quantised, dtype_of


def capability() -> Capability | None:
    """The compute capability of the least of the GPUs here, of Ampere where nobody says; None on a CPU."""
    import torch

    return devices.capability() or BF16_SINCE if torch.cuda.is_available() else None


def dtype_here(asked: Dtype, config: Mapping[str, Any], setting: str) -> str:
    """What an engine is told of a model with this config.json: a quantised one keeps what it names itself.

    Raises ConfigurationError as `dtype_of` does.
    """
    if asked == "auto" and Quantised.of(config):
        return "auto"
    return dtype_of(asked, capability(), setting)
