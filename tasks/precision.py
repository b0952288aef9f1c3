"""In which precision a model computes: what was asked for, what a device can do, what quantised weights take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from infra.errors import ConfigurationError

Precision = Literal["auto", "bf16", "fp32"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Known = Literal["bfloat16", "float16", "float32"]
Capability = tuple[int, int]  # CUDA's compute capability

BYTES: Mapping[Known, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
_DTYPES: Mapping[Precision, Dtype] = {"auto": "auto", "bf16": "bfloat16", "fp32": "float32"}
BF16_SINCE = (8, 0)  # Ampere; before it bf16 is emulated by PyTorch and refused by vLLM
_SCALES = 1.05  # what scales and zeros of groups of 128 weights add to 4 bits a weight


def dtype_of(asked: Dtype, device: Capability | None, setting: str) -> Known:
    """The dtype to compute in on a GPU of that capability, or on a CPU (None).

    "auto" is bf16 on GPUs that have it, and fp32 on a CPU and on older GPUs (V100, T4). Raises ConfigurationError for
    bf16 on those, in which `setting` is named.
    """
    has_bf16 = device is None or device >= BF16_SINCE
    if asked == "auto":
        return "bfloat16" if device is not None and has_bf16 else "float32"
    if asked == "bfloat16" and not has_bf16:
        raise ConfigurationError(f"{setting}: {_without_bf16(device)}: choose fp32, or a GPU from Ampere on (A100, L4)")
    return asked


def training_dtype(asked: Precision, device: Capability | None) -> Known:
    """Of the weights in a training; see `dtype_of`."""
    return dtype_of(_DTYPES[asked], device, "run.precision=bf16")


def note(asked: Dtype | Precision, device: Capability | None) -> str | None:
    """What people ought to know of the choice that "auto" made, if anything."""
    if asked == "auto" and device is not None and device < BF16_SINCE:
        return f"{_without_bf16(device)}: computing in fp32, which takes twice the memory and far longer"
    return None


def _without_bf16(device: Capability | None) -> str:
    major, minor = device or (0, 0)
    return f"a GPU of compute capability {major}.{minor} has no bf16"


@dataclass(frozen=True)
class Quantised:
    """Weights in few bits, as config.json's `quantization_config` tells; `bits` of one, where it says so."""

    method: str
    bits: int | None

    @staticmethod
    def of(config: Mapping[str, Any]) -> Quantised | None:
        """None for weights that are not quantised."""
        told = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
        if not told:
            return None
        method = str(told.get("quant_method", "of an unknown kind"))
        groups = (told.get("config_groups") or {}).values()
        grouped = [(group.get("weights") or {}).get("num_bits") for group in groups]
        named = 8 if "fp8" in method or told.get("load_in_8bit") else 4 if told.get("load_in_4bit") else None
        bits = [told.get("bits"), told.get("w_bit"), named, *grouped]
        return Quantised(method, max((number for number in bits if isinstance(number, int)), default=None))

    @property
    def runs_on_a_cpu(self) -> bool:
        """INT8 and FP8 as compressed-tensors, in vLLM and in transformers: the formats of `tasks/quantise`."""
        return (self.method, self.bits) == ("compressed-tensors", 8)

    def weight_bytes(self, parameters: int, outer: int) -> int:
        """Of a model whose embedding and head, `outer` of its parameters, stay in two bytes each."""
        bits = self.bits or 16
        return int((parameters - outer) * bits / 8 * (_SCALES if bits < 8 else 1)) + 2 * outer
