"""Over how many GPUs a model is spread that answers, how many answer side by side, and what scoring them takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from infra.devices import Gpus
from infra.processes.shares import engines_on
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
    def engines(self) -> int: ...

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


def generation_engines(how: Generating, parallel: int, gpus: Gpus | None, settings: str = "evaluation") -> int:
    """Of `parallel` GPUs each: as many as `how` says, else as many as fit; ConfigurationError where they do not.

    The reference spreads one model over all GPUs, unless somebody asks for more.
    """
    if how.engine != "vllm" and not how.engines:
        return 1
    return engines_on(gpus.number if gpus else 0, how.engines, parallel, f"{settings}.engines")


def compared_memory(how: Evaluation, width: float, student: Size, teacher: Size, positions: float) -> int:
    """Bytes over all devices together of a batch: the logits of student and teacher at so many positions.

    A teacher whose stored scores are read (`evaluation.teacher` topk) is not loaded.
    """
    vocabularies = student.vocabulary + (teacher.vocabulary if how.teacher == "full" else 0)
    return int(positions * width * vocabularies) + CONTEXT


def evaluation_memory(
    how: Evaluation, width: float, student: Size, teacher: Size, positions: float, students: int = 1
) -> int:
    """Bytes over all devices together: so many students and the teacher beside each other, and a batch."""
    weights = students * int(student.weights(width)) + (int(teacher.weights(width)) if how.teacher == "full" else 0)
    return weights + compared_memory(how, width, student, teacher, positions)


def evaluation_gpus(how: Evaluation, models: Iterable[ModelSource], teacher: ModelSource | None, offered: Gpus) -> int:
    """The least power of two of GPUs on which each model is scored beside the teacher; else all.

    Or those of all engines that answer side by side, where these are more.
    """
    longest = how.max_length + how.max_new_tokens
    models = list(models)
    answering = answering_gpus(how, models, longest, offered)
    sizes = [size for model in models if model != teacher and (size := known_size(model))]
    student = max(sizes, key=lambda size: size.parameters) if sizes else None
    of_teacher = known_size(teacher) if teacher else student
    if student is None or of_teacher is None or offered.memory is None:
        return offered.number
    positions = max(how.max_length, LOGITS // max(student.vocabulary, of_teacher.vocabulary))
    takes = evaluation_memory(how, gpu_width(how.dtype), student, of_teacher, positions)
    room = how.gpu_memory * offered.memory
    powers = (2**exponent for exponent in range(offered.number.bit_length()))
    return max(answering, next((n for n in powers if takes <= n * room), offered.number))


def answering_gpus(how: Evaluation, models: Iterable[ModelSource], longest: int, gpus: Gpus | None) -> int:
    """Of all engines that answer side by side, for the model that takes most."""
    found = (generation_parallel(how, model, longest, gpus) for model in models)
    return max((parallel * generation_engines(how, parallel, gpus) for parallel in found), default=1)


def most_parallel(how: Evaluation, models: Iterable[ModelSource], longest: int, gpus: Gpus | None) -> int:
    """Of models that answer one after the other."""
    return max((generation_parallel(how, model, longest, gpus) for model in models), default=1)
