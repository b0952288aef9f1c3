"""Over how many GPUs a student is spread that answers, and how many of it answer side by side."""

from __future__ import annotations

from collections.abc import Callable

from infra.devices import Gpus
from tasks.engines.memory import unheard
from tasks.evaluate.parallel import generation_engines, generation_parallel
from tasks.models import ModelSource
from tasks.rollout.settings import Rounds


def rollout_parallel(
    how: Rounds, student: ModelSource, longest: int, gpus: Gpus | None, tell: Callable[[str], None] = unheard
) -> int:
    """As `generation_parallel`, with what helps where no GPUs hold the student."""
    return generation_parallel(how, student, longest, gpus, tell, "a lower kd.max_length")


def rollout_engines(how: Rounds, parallel: int, gpus: Gpus | None) -> int:
    """Of `parallel` GPUs each: as many as `how` says, else as many as fit; ConfigurationError where they do not."""
    return generation_engines(how, parallel, gpus, "rounds")
