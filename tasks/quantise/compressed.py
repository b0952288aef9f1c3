"""A student in INT8 or FP8, as vLLM and transformers load it: compressed-tensors, rounded to nearest, without data.

Every linear layer but the head has a scale for each of its outputs; what comes into it is rounded as it comes, with a
scale for each token (W8A8). Embedding, head and norms stay as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tasks.quantise.settings import Format

_SCHEMES: dict[Format, str] = {"int8": "W8A8", "fp8": "FP8_DYNAMIC"}
_HEAD = "lm_head"


@torch.inference_mode()
def compress(model: Any, form: Format) -> int:
    """Round the layers of `model` in place; how many there are. `write` writes it."""
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationStatus,
        apply_quantization_config,
        preset_name_to_scheme,
    )
    from compressed_tensors.quantization.utils import calculate_qparams, is_module_quantized

    groups = {"group_0": preset_name_to_scheme(_SCHEMES[form], ["Linear"])}
    apply_quantization_config(model, QuantizationConfig(config_groups=groups, ignore=[_HEAD]))
    layers = [layer for layer in model.modules() if is_module_quantized(layer)]
    for layer in layers:
        weight_OI = layer.weight.float()
        ends = weight_OI.amin(1, keepdim=True), weight_OI.amax(1, keepdim=True)
        scale_O1, zero_O1 = calculate_qparams(*ends, layer.quantization_scheme.weights)
        layer.weight_scale.data.copy_(scale_O1)
        if hasattr(layer, "weight_zero_point"):
            layer.weight_zero_point.data.copy_(zero_O1)
        layer.quantization_status = QuantizationStatus.FROZEN
    return len(layers)


def write(model: Any, to: Path) -> None:
    """The compressed model as a Hugging Face folder."""
    from compressed_tensors.compressors import ModelCompressor

    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(to, safe_serialization=True)
    compressor.update_config(str(to))
