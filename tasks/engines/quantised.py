"""Which engine can run a model whose weights are quantised (FP8, AWQ, GPTQ …): vLLM does on GPUs, transformers may."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.errors import ConfigurationError
from tasks.precision import Quantised


def check_device(name: str, config: Mapping[str, Any], *, on_gpu: bool) -> None:
    """Raises ConfigurationError for a model `name` with this config.json that has no kernels on a CPU."""
    quantised = Quantised.of(config)
    if quantised and not on_gpu and not quantised.runs_on_a_cpu:
        raise ConfigurationError(
            f"{name!r} cannot run on a CPU: its weights are quantised ({quantised.method}): "
            "run it on a GPU, or choose the model in bf16 or fp32"
        )


def check_transformers(name: str, config: Mapping[str, Any], doing: str, otherwise: str) -> None:
    """Raises ConfigurationError for a model that transformers cannot load here, which it needs when `doing` that."""
    if (quantised := Quantised.of(config)) is None:
        return
    from transformers.quantizers.auto import AutoHfQuantizer  # which takes seconds to import

    try:
        told = dict(config.get("quantization_config") or config["text_config"]["quantization_config"])
        AutoHfQuantizer.from_config(told, pre_quantized=True).validate_environment()
    except (ImportError, RuntimeError, ValueError) as error:
        why = str(error).partition("\n")[0].rstrip(". ")
        raise ConfigurationError(
            f"{name!r} cannot be used here: its weights are quantised ({quantised.method}), and transformers, which "
            f"{doing} needs, says: {why}: install that, choose the model in bf16 or fp32, or {otherwise}"
        ) from error
