"""Over how many GPUs a model is spread that scores rows, and how many of it score side by side."""

from __future__ import annotations

from collections.abc import Callable

from infra.devices import Gpus
from infra.processes.shares import engines_on
from tasks.engines.memory import fewest_gpus, gpu_width, scoring_memory, unheard
from tasks.engines.sizes import known_size
from tasks.logits.settings import Scoring
from tasks.models import ModelSource


def scoring_parallel(
    scoring: Scoring, model: ModelSource, gpus: Gpus | None, tell: Callable[[str], None] = unheard
) -> int:
    """As many as `scoring` says, else the fewest that hold the model; 1 on a CPU, and where its size is not known.

    0 where a server holds it. `tell` hears of a number that was chosen. Raises ConfigurationError where all of them do
    not hold the model.
    """
    if scoring.tensor_parallel or scoring.is_elsewhere:
        return scoring.tensor_parallel
    if gpus is None or scoring.engine != "vllm" or (size := known_size(model)) is None:
        return 1

    def takes(parallel: int) -> int:
        return scoring_memory(size, gpu_width(scoring.dtype), scoring.max_length, scoring.max_batched_tokens, parallel)

    return fewest_gpus(size, gpus, scoring.gpu_memory, takes, "a lower scoring.max_batched_tokens", tell)


def scoring_engines(scoring: Scoring, parallel: int, gpus: Gpus | None) -> int:
    """Of `parallel` GPUs each: as many as `scoring` says, else as many as fit; ConfigurationError where they do not.

    Those that ask a server take none.
    """
    if scoring.is_elsewhere:
        return scoring.engines or 1
    return engines_on(gpus.number if gpus else 0, scoring.engines, parallel, "scoring.engines")
