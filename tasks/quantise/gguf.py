"""A student as GGUF: written by llama.cpp's own converter, quantised by llama.cpp, read back by transformers.

What is evaluated is what is read back: the weights that the file holds, as numbers, in the student's own dtype.
The converter's package brings a newer `gguf` along than the one on PyPI, without its name, so that transformers, which
asks for that name, is told.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from infra.errors import ConfigurationError
from tasks.quantise.pre_tokenizer import pre_tokenizer
from tasks.quantise.settings import Format

# What llama.cpp gives a matrix whose rows the format divides (Q4_K_M: some layers, and the head, in Q6_K).
_MEANT: dict[Format, frozenset[str]] = {"q8_0": frozenset({"Q8_0"}), "q4_k_m": frozenset({"Q4_K", "Q6_K"})}
_FTYPES: dict[Format, int] = {"q8_0": 7, "q4_k_m": 15}  # enum llama_ftype
_ARCHITECTURES = {"mistral": "llama"}  # what llama.cpp takes a family for


def convert(folder: Path, to: Path, name: str) -> None:
    """Write the model in `folder` as GGUF, in its own dtype. Raises ConfigurationError where the converter does."""
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
    from gguf import LlamaFileType

    config = ModelBase.load_hparams(folder, False)
    known: Any = get_model_class(get_model_architecture(config, ModelType.TEXT))

    class _Converter(known):  # type: ignore[misc]
        model_arch = known.model_arch

        def get_vocab_base_pre(self, tokenizer: Any) -> str | None:
            return pre_tokenizer(tokenizer, name)

    dtype = {"bfloat16": LlamaFileType.MOSTLY_BF16, "float16": LlamaFileType.MOSTLY_F16}.get(str(config.get("dtype")))
    try:
        with torch.inference_mode():
            _Converter(folder, dtype or LlamaFileType.ALL_F32, to, model_name="student").write()
    except (KeyError, NotImplementedError, ValueError) as error:
        raise ConfigurationError(
            f"{name!r} cannot be written as GGUF ({type(error).__name__}: {error}): leave q8_0 and q4_k_m out of "
            "quantise.formats"
        ) from error


def quantise(source: Path, to: Path, form: Format, threads: int) -> None:
    """llama.cpp's own, of a GGUF file, without an importance matrix."""
    from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, model_quantize

    how = LlamaModelQuantizeParams()
    how.ftype, how.nthread = _FTYPES[form], threads
    model_quantize(str(source), str(to), how)


def tensor_types(path: Path) -> Counter[str]:
    """How many matrices a file has of each type."""
    from gguf import GGUFReader

    return Counter(tensor.tensor_type.name for tensor in GGUFReader(path).tensors if len(tensor.shape) > 1)


def fell_back(types: Counter[str], form: Format) -> int:
    """Matrices of another type than the format means, since it does not divide their rows: of more bits."""
    return sum(count for name, count in types.items() if name not in _MEANT[form] and name != "F32")


def dequantised(path: Path, model: Any, name: str) -> Any:
    """`model`, with the weights that the file holds.

    Raises ConfigurationError where the file has not each weight of the model.
    """
    from transformers import modeling_gguf_pytorch_utils as reading

    reading.is_gguf_available = lambda *version: True
    family = model.config.model_type
    model.config.model_type = _ARCHITECTURES.get(family, family)
    weights = reading.load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    model.config.model_type = family
    expected = {part for part, _tensor in model.named_parameters()}  # a tied head once
    if missing := sorted(expected - weights.keys()):
        raise ConfigurationError(
            f"{name!r} cannot be read back from GGUF: {missing[0]} and {len(missing) - 1:,} other weights are missing: "
            "leave q8_0 and q4_k_m out of quantise.formats"
        )
    model.load_state_dict(weights, strict=False)
    return model
