"""Over how many GPUs a model is spread that answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from infra.devices import Gpus
from tasks.engines.memory import CONTEXT, fewest_gpus, generation_memory, gpu_width, unheard
from tasks.engines.sizes import Size, known_size
from tasks.evaluate.heldout.groups import LOGITS
from tasks.evaluate.settings import Evaluation
from tasks.models import ModelSource
from tasks.precision import Dtype


class Generating(Protocol):
    """What settings say of the engine that answers: of evaluation, or of on-policy rounds."""

    @property
    def engine(self) -> str: ...

    @property
    def dtype(self) -> Dtype: ...

    @property
    def tensor_parallel(self) -> int: ...

    @property
    def gpu_memory(self) -> float: ...


def generation_parallel(
    how: Generating,
    model: ModelSource,
    longest: int,
    gpus: Gpus | None,
    tell: Callable[[str], None] = unheard,
    remedy: str = "a lower evaluation.max_length",
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
        return generation_memory(size, gpu_width(how.dtype), longest, parallel)

    return fewest_gpus(size, gpus, how.gpu_memory, takes, remedy, tell)


def evaluation_memory(width: float, student: Size, teacher: Size, positions: float) -> int:
    """Bytes over all devices together: student and teacher beside each other, and both their logits at so many."""
    weights = student.weights(width) + teacher.weights(width)
    logits = positions * width * (student.vocabulary + teacher.vocabulary)
    return int(weights + logits) + CONTEXT


def evaluation_gpus(how: Evaluation, models: Iterable[ModelSource], teacher: ModelSource, offered: Gpus) -> int:
    """The least power of two of GPUs on which all models answer, and each is scored beside the teacher; else all."""
    longest = how.max_length + how.max_new_tokens
    answering = most_parallel(how, models, longest, offered)
    sizes = [size for model in models if model != teacher and (size := known_size(model))]
    of_teacher = known_size(teacher)
    if not sizes or of_teacher is None or offered.memory is None:
        return offered.number
    student = max(sizes, key=lambda size: size.parameters)
    positions = max(how.max_length, LOGITS // max(student.vocabulary, of_teacher.vocabulary))
    takes = evaluation_memory(gpu_width(how.dtype), student, of_teacher, positions)
    room = how.gpu_memory * offered.memory
    powers = (2**exponent for exponent in range(offered.number.bit_length()))
    return next((n for n in powers if n >= answering and takes <= n * room), offered.number)


def most_parallel(how: Evaluation, models: Iterable[ModelSource], longest: int, gpus: Gpus | None) -> int:
    """Of models that answer one after the other."""
    return max((generation_parallel(how, model, longest, gpus) for model in models), default=1)
