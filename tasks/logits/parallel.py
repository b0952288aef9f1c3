"""Over how many GPUs a model is spread that scores rows."""

from __future__ import annotations

from collections.abc import Callable

from infra.devices import Gpus
from tasks.engines.memory import fewest_gpus, gpu_width, scoring_memory, unheard
from tasks.engines.sizes import known_size
from tasks.logits.settings import Scoring
from tasks.models import ModelSource


def scoring_parallel(
    scoring: Scoring, model: ModelSource, gpus: Gpus | None, tell: Callable[[str], None] = unheard
) -> int:
    """As many as `scoring` says, else the fewest that hold the model; 1 on a CPU, and where its size is not known.

    `tell` hears of a number that was chosen. Raises ConfigurationError where all of them do not hold the model.
    """
    if scoring.tensor_parallel:
        return scoring.tensor_parallel
    if gpus is None or scoring.engine != "vllm" or (size := known_size(model)) is None:
        return 1

    def takes(parallel: int) -> int:
        return scoring_memory(size, gpu_width(scoring.dtype), scoring.max_length, scoring.max_batched_tokens, parallel)

    return fewest_gpus(size, gpus, scoring.gpu_memory, takes, "a lower scoring.max_batched_tokens", tell)
