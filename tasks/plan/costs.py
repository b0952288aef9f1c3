"""What a stage takes, from sizes and counts alone: floating-point operations, bytes, seconds.

Training computes 6 operations a parameter and token (Kaplan et al., 2001.08361), 4 where the weights are frozen (LoRA),
and 2 more for each further forward pass: with gradient checkpointing, and where tokens are weighed by what the student
makes of them (kd.weighting); a forward pass 2. Attention's own operations are left out: under a tenth at the lengths
that rows have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tasks.engines import memory
from tasks.engines.sizes import Size
from tasks.evaluate.heldout.groups import groups, room
from tasks.evaluate.parallel import compared_memory, evaluation_memory
from tasks.evaluate.settings import Evaluation
from tasks.logits.settings import Scoring
from tasks.logits.store.format import MAX_ERROR
from tasks.plan.hardware import Machine
from tasks.precision import Dtype
from tasks.quantise.settings import GGUF, Format, bits
from tasks.rollout.settings import Rounds
from tasks.train.memory import Placement
from tasks.train.settings import Training

# Measured with `python -m tests.bench store` at K = 1, 2, 5, 10, 20 and 50 on a vocabulary of 262,144: within 4 %.
_STORE_BASE, _STORE_IDS, _STORE_GAPS = 2.4, 1.26, 0.755  # bytes a token, and a token and rank
_STORE_VOCABULARY_BITS = 18.0
_STORE_HALVING = 0.11  # a rank, for half the error
_STORE_PROMPT = 1.5
_READ_BYTES_S = 1e9  # weights from disk
_BANDWIDTH_USED = 0.6
# Of each generated token, beside its arithmetic. Transformers launches kernels one by one, vLLM replays CUDA graphs.
_STEP_PER_LAYER_S = {"transformers": 1e-3, "vllm": 1e-4}
_VLLM_AT_ONCE = 256  # its default of `max_num_seqs`
_QUANTISED_S = {"gguf": 4e6, "compressed": 2e7}  # parameters, on two cores
_START_S = {"train": 60.0, "logits": 60.0, "evaluate": 20.0}
_START_CPU_S = {"train": 25.0, "logits": 20.0, "evaluate": 30.0}


def training_flops(student: Size, training: Training, way: Placement, tokens: float) -> float:
    """Operations of a training on so many tokens, all epochs together."""
    per_token = 4 if training.lora else 6
    return (per_token + 2 * (way.gradient_checkpointing + training.looks_first)) * student.active * tokens


def forward_flops(model: Size, tokens: float) -> float:
    """Operations of scoring so many tokens."""
    return 2.0 * model.active * tokens


def seconds(machine: Machine, flops: float, devices: int) -> float:
    """How long so many devices compute."""
    return flops / (machine.flops_s * devices)


def quantising_seconds(student: Size, form: Format) -> float:
    """Of one student in one format; the devices take no part in it."""
    return _START_S["evaluate"] + student.parameters / _QUANTISED_S["gguf" if form in GGUF else "compressed"]


def quantised_bytes(student: Size, form: Format, width: int) -> int:
    """Of the artifact: a GGUF file lies beside the weights that are read back from it, of `width` bytes."""
    return int(student.parameters * (bits(form) / 8 + (width if form in GGUF else 0)))


def weight_bytes(machine: Machine, dtype: Dtype) -> int:
    """Of a parameter at work: bf16 on GPUs, fp32 on a CPU, where no dtype is asked for."""
    return 4 if machine.is_cpu and dtype == "auto" else memory.gpu_width(dtype)


def start_seconds(machine: Machine, kind: str, model: Size) -> float:
    """Until a stage's engine computes: its libraries, and its weights from disk."""
    start = _START_CPU_S if machine.is_cpu else _START_S
    return start[kind] + 2 * model.parameters / _READ_BYTES_S


def generation_seconds(machine: Machine, model: Size, answers: int, tokens: int, how: Evaluation | Rounds) -> float:
    """Answers of `tokens` each, the longest kind: every token of a batch reads all weights once."""
    at_once = min(_VLLM_AT_ONCE if how.engine == "vllm" else how.batch_rows, max(answers, 1))
    reading = model.weights(weight_bytes(machine, how.dtype)) / (machine.bandwidth * _BANDWIDTH_USED)
    computing = seconds(machine, forward_flops(model, at_once), 1)
    step = max(reading, computing) + model.shape.layers * _STEP_PER_LAYER_S[how.engine]
    return math.ceil(answers / at_once) * tokens * step


def agents_seconds(
    requests: int,
    completion_tokens: int,
    tokens: int,
    tokens_s: float,
    concurrency: int,
    processes: int,
    per_minute: tuple[int | None, int | None],
) -> float:
    """The slowest of: writing answers, LiteLLM's CPU (300 requests a second a process, 200 in ours), the limits."""
    requests_m, tokens_m = per_minute
    return max(
        completion_tokens / (tokens_s * concurrency),
        requests / (300.0 * processes if processes else 200.0),
        60.0 * requests / requests_m if requests_m else 0.0,
        60.0 * tokens / tokens_m if tokens_m else 0.0,
    )


def store_bytes(teacher: Size, k: int, max_error: float, responses: float, prompts: float) -> int:
    """The top-K store (FORMAT.md): linear in K; an id takes bits as the vocabulary does, a gap as the error does."""
    ids = _STORE_IDS * math.log2(teacher.vocabulary) / _STORE_VOCABULARY_BITS
    gaps = max(0.25, _STORE_GAPS + _STORE_HALVING * math.log2(MAX_ERROR / max_error))
    return round(responses * (_STORE_BASE + k * (ids + gaps)) + prompts * _STORE_PROMPT)


def scoring_memory(machine: Machine, model: Size, scoring: Scoring) -> int:
    """Bytes on each of the GPUs that score together."""
    longest, batched, width = scoring.max_length, scoring.max_batched_tokens, weight_bytes(machine, scoring.dtype)
    return memory.scoring_memory(model, width, longest, batched, scoring.tensor_parallel, scoring.pipeline_parallel)


def generation_memory(machine: Machine, model: Size, how: Evaluation) -> int:
    """Bytes on each of the `tensor_parallel` GPUs that generate together."""
    longest = how.max_length + how.max_new_tokens
    return memory.generation_memory(model, weight_bytes(machine, how.dtype), longest, how.tensor_parallel)


def rollout_memory(machine: Machine, student: Size, how: Rounds, longest: int, parallel: int) -> int:
    """Bytes on each of `parallel` GPUs where the student answers; prompt and answer have at most `longest` tokens."""
    return memory.generation_memory(student, weight_bytes(machine, how.dtype), longest, parallel)


@dataclass(frozen=True)
class Scored:
    """How evaluation scores: bytes on all devices together, and how often the teacher goes through the rows."""

    memory: int
    passes: int


def evaluation(
    machine: Machine, student: Size, teacher: Size, students: int, how: Evaluation, long_row: float
) -> Scored:
    """As many students beside each other as fit with the teacher, and the logits of both: a pass for each group.

    A teacher whose stored scores are read (`evaluation.teacher` topk) is not loaded, and takes no pass.
    """
    width, is_loaded = weight_bytes(machine, how.dtype), how.teacher == "full"
    theirs, ours = int(teacher.weights(width)) if is_loaded else 0, int(student.weights(width))
    positions = how.batch_rows * long_row
    batch = compared_memory(how, width, student, teacher, positions)
    sizes = {str(number): ours for number in range(students)}
    found = groups(sizes, room(machine.memory * machine.devices, theirs, batch))
    most = evaluation_memory(how, width, student, teacher, positions, max(map(len, found)))
    return Scored(most, len(found) if is_loaded else 0)
