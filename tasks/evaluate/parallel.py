"""Over how many GPUs a model is spread that answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from infra.devices import Gpus
from tasks.engines.memory import BF16, fewest_gpus, generation_memory, unheard
from tasks.engines.sizes import known_size
from tasks.evaluate.settings import Evaluation
from tasks.models import ModelSource


def generation_parallel(
    how: Evaluation, model: ModelSource, longest: int, gpus: Gpus | None, tell: Callable[[str], None] = unheard
) -> int:
    """As many as `how` says, else the fewest that hold the model; 1 on a CPU, and where its size is not known.

    Prompt and answer have at most `longest` tokens together; `tell` hears of a number that was chosen. Raises
    ConfigurationError where all GPUs do not hold the model.
    """
    if how.tensor_parallel:
        return how.tensor_parallel
    if gpus is None or how.engine != "vllm" or (size := known_size(model)) is None:
        return 1

    def takes(parallel: int) -> int:
        return generation_memory(size, BF16, longest, parallel)

    return fewest_gpus(size, gpus, how.gpu_memory, takes, "a lower evaluation.max_length", tell)


def most_parallel(how: Evaluation, models: Iterable[ModelSource], longest: int, gpus: Gpus | None) -> int:
    """Of models that answer one after the other."""
    return max((generation_parallel(how, model, longest, gpus) for model in models), default=1)
