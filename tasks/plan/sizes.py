"""How large a model is: from its config, or from a table of Qwen2.5 where the hub cannot be reached."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from infra.errors import ConfigurationError
from tasks.engines.sizes import Size
from tasks.models import ModelSource


def _qwen(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int, tied: bool) -> Any:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


QWEN2_5: Mapping[str, Mapping[str, Any]] = {
    "0.5B": _qwen(896, 4864, 24, 14, 2, 151_936, True),
    "1.5B": _qwen(1536, 8960, 28, 12, 2, 151_936, True),
    "3B": _qwen(2048, 11_008, 36, 16, 2, 151_936, True),
    "7B": _qwen(3584, 18_944, 28, 28, 4, 152_064, False),
    "14B": _qwen(5120, 13_824, 48, 40, 8, 152_064, False),
    "32B": _qwen(5120, 27_648, 64, 40, 8, 152_064, False),
    "72B": _qwen(8192, 29_568, 80, 64, 8, 152_064, False),
}
_NAMED = re.compile(r"^(?:Qwen/Qwen2\.5-)?(0\.5B|1\.5B|3B|7B|14B|32B|72B)(?:-Instruct)?$")


def size_of(name: str, source: ModelSource | None) -> Size:
    """The model's size; without a source, that of the Qwen2.5 that `name` means (ConfigurationError for others)."""
    if source is not None:
        try:
            return Size.of(name, source.config())
        except KeyError as error:
            raise ConfigurationError(
                f"the config.json of {name!r} has no {error}: only decoders of the Llama kind are planned for"
            ) from error
    if (known := _NAMED.match(name)) is None:
        raise ConfigurationError(f"{name!r} cannot be reached and is no Qwen2.5, so its size is not known")
    return Size.of(name, QWEN2_5[known[1]], from_table=True)
