"""How a tokenizer cuts texts before it merges bytes, in the names that llama.cpp has for that."""

from __future__ import annotations

import json
from typing import Any

from infra.errors import ConfigurationError

# How texts are cut before BPE: llama.cpp knows a tokenizer by a digest, which only those of published models have.
# fmt: off
_SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",  # noqa: E501
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",  # noqa: E501
}
# fmt: on


def pre_tokenizer(tokenizer: Any, name: str) -> str | None:
    """What llama.cpp calls the way in which a byte-level tokenizer cuts texts; None of one that is of another kind.

    Raises ConfigurationError for a way that it does not know.
    """
    from conversion.base import TextModel

    described: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    if described["model"]["type"] != "BPE" or described["model"].get("byte_fallback"):
        return None
    try:
        return str(TextModel.get_vocab_base_pre(None, tokenizer))
    except NotImplementedError as error:
        cut = described.get("pre_tokenizer") or {}
        splits = [part["pattern"].get("Regex") for part in cut.get("pretokenizers", ()) if part["type"] == "Split"]
        if len(splits) == 1 and (known := _SPLITS.get(splits[0])):
            return known
        raise ConfigurationError(
            f"{name!r} cannot be written as GGUF: llama.cpp does not know how its tokenizer cuts texts: leave q8_0 and "
            "q4_k_m out of quantise.formats"
        ) from error
