"""What inference takes of each GPU, and over how many of them vLLM spreads a model. Maths alone.

`width` is the bytes of a parameter, of a cached key or value and of an activation: 2 in bf16, 4 in fp32.
"""

from __future__ import annotations

from collections.abc import Callable

from infra.devices import Gpus
from infra.errors import ConfigurationError
from tasks.engines.sizes import Size
from tasks.precision import BYTES, Dtype

CONTEXT = 2**30  # on each device: CUDA, NCCL, the allocator's fragments
BF16 = 2
GENERATED_AT_ONCE = 8192  # batched tokens of the engine that generates
_LOGITS_ENTRY = 6.5  # bytes a batched token and vocabulary entry: 7.5 GiB at 8192 × 152k (vllm#52054)
_GIB = 2**30


def gpu_width(dtype: Dtype) -> int:
    """Bytes of a number in what a GPU computes in."""
    return BF16 if dtype == "auto" else BYTES[dtype]


def unheard(text: str) -> None:
    """Where nobody is to be told."""


def scoring_memory(model: Size, width: float, longest: int, batched_tokens: int, parallel: int, parts: int = 1) -> int:
    """Bytes on each of `parallel` GPUs of the last of equal `parts` of the layers: weights, a step's cache and
    activations, and its logits, whole.

    Rows have at most `longest` tokens, and a step `batched_tokens`.
    """
    tokens = max(batched_tokens, longest + 1)
    logits = batched_tokens * model.vocabulary * _LOGITS_ENTRY
    return int(_split(model, width, tokens, tokens, parallel) / parts + logits) + CONTEXT


def generation_memory(model: Size, width: float, longest: int, parallel: int) -> int:
    """Bytes on each of `parallel` GPUs that generate: the weights, and the cache of one text of `longest` tokens."""
    return int(_split(model, width, longest, GENERATED_AT_ONCE, parallel)) + CONTEXT


def least_parallel(model: Size, gpus: Gpus, share: float, takes: Callable[[int], int]) -> int | None:
    """The least power of two of the GPUs over which the model splits, and each holds what it `takes(parallel)`.

    Of a GPU's memory `share` may be taken; where nobody knows how much that is, it is as many GPUs as the model splits
    over. None where not even those hold it.
    """
    possible = splits(model, gpus.number)
    if gpus.memory is None:
        return possible[-1]
    room = share * gpus.memory
    return next((parallel for parallel in possible if takes(parallel) <= room), None)


def splits(model: Size, devices: int) -> list[int]:
    """Powers of two of so many devices over which vLLM can spread the model."""
    powers = (2**exponent for exponent in range(devices.bit_length()))
    return [parallel for parallel in powers if model.splits_over(parallel)]


def fewest_gpus(
    model: Size, gpus: Gpus, share: float, takes: Callable[[int], int], remedy: str, tell: Callable[[str], None]
) -> int:
    """As `least_parallel`, and `tell` it; raises ConfigurationError, with the `remedy`, where none holds the model."""
    if (parallel := least_parallel(model, gpus, share, takes)) is not None:
        of = f" of {gpus.memory / _GIB:,.0f} GiB" if gpus.memory else ""
        tell(f"{model.name} is spread over {parallel} of {gpus.number} GPUs{of}: the fewest that hold it")
        return parallel
    most = splits(model, gpus.number)[-1]
    each, weights = takes(most) / _GIB, model.weights(BF16) / _GIB
    kind = "as they are quantised" if model.quantised_bytes else "in bf16"
    over = f"each of {most} GPUs" if most > 1 else "one GPU"
    raise ConfigurationError(
        f"{model.name} ({weights:,.0f} GiB of weights {kind}) takes {each:,.0f} GiB of {over}, and vLLM may take "
        f"{share:.0%} of {(gpus.memory or 0) / _GIB:,.0f} GiB: use more or larger GPUs, a smaller model, or {remedy}"
    )


def _split(model: Size, width: float, cached: int, computed: int, parallel: int) -> float:
    """Bytes on each GPU of weights, of `cached` tokens' keys and values and of `computed` tokens' activations."""
    cache = cached * model.shape.layers * 2 * model.kv_width * width
    activations = computed * width * (10 * model.shape.hidden + 4 * model.shape.intermediate)
    return (model.weights(width) + activations) / parallel + cache / min(parallel, model.kv_heads)
