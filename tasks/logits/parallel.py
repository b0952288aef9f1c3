"""Over how many GPUs a model is spread that scores rows, and how many of it score side by side.

An engine has tensor_parallel × pipeline_parallel GPUs; on a CPU as many processes, which share its cores.
"""

from __future__ import annotations

from collections.abc import Callable

from infra.devices import Gpus
from infra.errors import ConfigurationError
from infra.processes.shares import engines_on
from tasks.engines.memory import fewest_gpus, gpu_width, scoring_memory, unheard
from tasks.engines.sizes import check_splits, known_size
from tasks.logits.settings import Scoring
from tasks.models import ModelSource

NOT_ON_A_CPU = (
    "vLLM's CPU engine cannot compute a model's layers in parts: leave it at 1 (scoring.tensor_parallel works on a CPU)"
)


def scoring_parallel(
    scoring: Scoring, model: ModelSource, gpus: Gpus | None, tell: Callable[[str], None] = unheard
) -> int:
    """`tensor_parallel`: as `scoring` says, else the fewest GPUs that hold the model; 1 on a CPU, and of unknown size.

    0 where a server holds it. `tell` hears of a number that was chosen. Raises ConfigurationError where all of them do
    not hold the model.
    """
    if scoring.tensor_parallel or scoring.is_elsewhere:
        return scoring.tensor_parallel
    if gpus is None or scoring.engine != "vllm" or (size := known_size(model)) is None:
        return 1

    def takes(parallel: int) -> int:
        width, longest, batched = gpu_width(scoring.dtype), scoring.max_length, scoring.max_batched_tokens
        return scoring_memory(size, width, longest, batched, parallel, scoring.pipeline_parallel)

    of_a_part = Gpus(max(1, gpus.number // scoring.pipeline_parallel), gpus.memory)
    return fewest_gpus(size, of_a_part, scoring.gpu_memory, takes, "a lower scoring.max_batched_tokens", tell)


def scoring_engines(scoring: Scoring, parallel: int, gpus: Gpus | None) -> int:
    """As many as `scoring` says, else as many as fit; ConfigurationError where they do not.

    Each has a `tensor_parallel` of `parallel`; those that ask a server take no GPU.
    """
    if scoring.is_elsewhere:
        return scoring.engines or 1
    gpus_each = parallel * scoring.pipeline_parallel
    return engines_on(gpus.number if gpus else 0, scoring.engines, gpus_each, "scoring.engines")


def check_spread(scoring: Scoring, model: ModelSource, *, on_gpu: bool) -> None:
    """Raises ConfigurationError where vLLM cannot spread the model as `scoring` says."""
    if scoring.pipeline_parallel > 1 and not on_gpu:
        raise ConfigurationError(f"scoring.pipeline_parallel is {scoring.pipeline_parallel}, and {NOT_ON_A_CPU}")
    if scoring.engine == "vllm":
        check_splits(model, scoring.tensor_parallel, "scoring")
