"""What one GPU shows in eight minutes, without vLLM: the loss beside its floor, training's speed, memory, precision.

    python -m tests.bench gpu [--minutes 8] [--tiny]

Needs torch, transformers, DeepSpeed and what the light installation has; no server is started. Each part goes to
stderr as it is done; one that fails, or for which no time is left, is named under `left_out`, and the others go on.
`--tiny` is for a machine without a GPU: the same way with a tiny model, whose figures tell nothing.

- `head`: forward and backward of the fused LM head and KD loss over the three bare matrix products, at the hidden sizes
  of Qwen2.5 0.5B and 7B and a vocabulary of 152,000 (bf16, median of rounds).
- `training`: tokens a second of SFT and of KD (K = 10) for a Qwen2.5-0.5B of random weights on rows packed to 2,048
  tokens, the share of the peak that this is (6 operations a parameter and token), the same rows one at a time, and the
  peak of memory beside the plan's estimate.
- `precision`: by how much losses of bf16 (fp32 master weights) and of fp32 differ at most over the same steps, in nats.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra import settings
from infra.services.server import free_ports
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.engines.sizes import ModelShape
from tasks.models import ModelSource
from tasks.plan.hardware import Hardware, machine
from tasks.precision import Known
from tasks.train.data.feed import Step
from tasks.train.data.order import Example
from tasks.train.data.packing import pack
from tasks.train.launch.ranks import Rank
from tasks.train.loop import StepPlan, _run_step
from tasks.train.memory import Placement, estimate
from tasks.train.model.fused_head import fused_head_loss
from tasks.train.model.losses import DistillationLoss
from tasks.train.model.student import Student
from tasks.train.program import join
from tasks.train.run import TrainingContext
from tasks.train.settings import Distillation, TrainingRun

K = 10
QWEN = {  # 2.5-0.5B
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32_768,
}
TINY = QWEN | {"hidden_size": 56, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}


@dataclasses.dataclass(frozen=True)
class Size:
    """Of what is measured: rows of `tokens` in all a step, `rows` of them, and positions at the loss."""

    model: dict[str, Any]
    tokens: int
    rows: int
    positions: int
    hidden: tuple[int, ...]
    vocabulary: int
    steps: int


FULL = Size(QWEN, 2048, 8, 4096, (896, 3584), 151_936, 20)
SMALL = Size(TINY, 128, 8, 64, (32, 64), 512, 3)


def run(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="gpu")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--tiny", action="store_true", help="for a machine without a GPU")
    options = parser.parse_args(arguments)
    if not (options.tiny or torch.cuda.is_available()):
        raise SystemExit("gpu: there is no GPU here (--tiny shows the way without one)")
    size, until = SMALL if options.tiny else FULL, time.monotonic() + 60 * options.minutes
    found: dict[str, Any] = {"device": _device(), "versions": {"torch": torch.__version__}, "left_out": {}}
    with tempfile.TemporaryDirectory() as scratch, _one_rank(Path(scratch)):
        base = Path(scratch) / "base"
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "head": lambda: _head(size),
            "training": lambda: _training(size, base),
            "precision": lambda: _precision(size, base),
        }
        for name, measure in parts.items():
            if time.monotonic() > until:
                found["left_out"][name] = "no time was left"
                continue
            try:
                found[name] = measure()
            except Exception as error:  # the next part may work, and an hour of a GPU is dear
                found["left_out"][name] = f"{type(error).__name__}: {error}".partition("\n")[0]
            _free()
            print(json.dumps({name: found.get(name, found["left_out"].get(name))}), file=sys.stderr, flush=True)
    return found


def _device() -> str:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"


def _place() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _one_rank(folder: Path) -> Iterator[None]:
    [port] = free_ports(1)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "TORCH_EXTENSIONS_DIR": str(settings.torch_extensions_dir())}
    join(Rank(0, 1, 1), folder, on_gpu=torch.cuda.is_available())
    yield
    torch.distributed.destroy_process_group()


def _seconds(work: Callable[[], Any], rounds: int) -> float:
    """Median of so many, after one that nobody counts."""
    taken = []
    for _ in range(rounds + 1):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def _head(size: Size) -> dict[str, Any]:
    return {str(hidden): _head_at(size, hidden) for hidden in size.hidden}


def _head_at(size: Size, hidden: int) -> dict[str, float]:
    device, half = _place(), torch.bfloat16
    N, V = size.positions, size.vocabulary
    hidden_NH = torch.randn(N, hidden, device=device, dtype=half).requires_grad_()
    weight_VH = (0.02 * torch.randn(V, hidden, device=device, dtype=half)).requires_grad_()
    labels_N = torch.randint(0, V, (N,), device=device)
    ids_NK = torch.randint(0, V, (N, K), device=device)
    logprobs_NK = torch.randn(N, K, device=device).log_softmax(dim=1)

    def fused() -> None:
        hidden_NH.grad = weight_VH.grad = None
        loss = fused_head_loss(hidden_NH, weight_VH, None, labels_N, ids_NK, logprobs_NK, DistillationLoss())
        (loss / N).backward()

    own_NH, own_VH = hidden_NH.detach(), weight_VH.detach()
    logits_NV = torch.empty(N, V, device=device, dtype=half)
    d_hidden_NH, d_weight_VH = torch.empty_like(own_NH), torch.empty_like(own_VH)

    def products() -> None:
        torch.mm(own_NH, own_VH.t(), out=logits_NV)
        torch.mm(logits_NV, own_VH, out=d_hidden_NH)
        torch.mm(logits_NV.t(), own_NH, out=d_weight_VH)

    ours, floor = _seconds(fused, 5), _seconds(products, 5)
    return {"fused_s": round(ours, 5), "matmul_floor_s": round(floor, 5), "ratio_to_floor": round(ours / floor, 2)}


def _training(size: Size, base: Path) -> dict[str, Any]:
    rows, shape = _rows(size), ModelShape.of(size.model)
    packed, alone = [pack(rows)], [pack([row]) for row in rows]
    speeds = {}
    for name, batches, loss in (
        ("sft", packed, None),
        ("kd", packed, Distillation()),
        ("sft_row_by_row", alone, None),
    ):
        student = _student(size, base, "bfloat16", len(batches), loss)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        step = Step(batches, [False] * len(batches), sum(len(b.labels_N) for b in batches), size.tokens)
        seconds = _seconds(functools.partial(_run_step, student.engine, step), size.steps)
        speeds[name] = sum(batch.input_ids_1T.shape[1] for batch in batches) / seconds
        if name == "kd":
            peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        del student
        _free()
    need = estimate(shape, Placement(zero_stage=1, micro_batch=size.rows), 1, size.tokens).total
    used = 6 * shape.parameters * speeds["sft"] / (machine(Hardware()).tflops * 1e12)
    return {
        **{f"{name}_tokens_s": round(speed) for name, speed in speeds.items()},
        "mfu": round(used, 3) if torch.cuda.is_available() else None,
        "kd_over_sft": round(speeds["kd"] / speeds["sft"], 3),
        "packed_over_row_by_row": round(speeds["sft"] / speeds["sft_row_by_row"], 2),
        "peak_gib": round(peak / 2**30, 2) if peak else None,
        "estimate_gib": round(need / 2**30, 2),
    }


def _precision(size: Size, base: Path) -> dict[str, Any]:
    """The same rows again and again, so that losses fall."""
    losses: dict[Known, list[float]] = {}
    precisions: tuple[Known, ...] = ("bfloat16", "float32")
    batch = pack(_rows(size))
    step = Step([batch], [False], len(batch.labels_N), size.tokens)
    for precision in precisions:
        student = _student(size, base, precision, 1, Distillation())
        losses[precision] = [float(_run_step(student.engine, step)) / len(batch.labels_N) for _ in range(size.steps)]
        del student
        _free()
    ours, whole = (np.array(losses[precision]) for precision in precisions)
    return {
        "first_loss": round(float(whole[0]), 4),
        "last_loss": round(float(whole[-1]), 4),
        "largest_difference_nats": round(float(np.abs(ours - whole).max()), 4),
    }


def _rows(size: Size) -> list[Example]:
    """Of many lengths; a response is the second half of its row, with the teacher's top K for each token."""
    random = np.random.default_rng(0)
    shares = random.dirichlet([4.0] * size.rows)
    rows = []
    for number, length in enumerate(np.maximum(8, (shares * size.tokens).astype(int))):
        supervised = int(length) - int(length) // 2
        ids_RK = np.stack([random.choice(size.vocabulary, K, replace=False) for _ in range(supervised)])
        logits_RK = np.sort(random.normal(size=(supervised, K)).astype(np.float32), axis=1)[:, ::-1]
        logprobs_RK = logits_RK - np.log(np.exp(logits_RK).sum(axis=1, keepdims=True)) - 0.05
        rows.append(
            Example(
                str(number),
                random.integers(0, size.vocabulary, int(length)),
                int(length) // 2,
                ids_RK.astype(np.int32),
                logprobs_RK,
            )
        )
    return rows


def _student(size: Size, base: Path, precision: Known, micro_batches: int, kd: Distillation | None) -> Student:
    """One of random weights, which are made once; a rate at which its losses fall."""
    if not base.exists():
        from transformers import AutoModelForCausalLM, Qwen2Config

        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(Qwen2Config(**size.model)).bfloat16().save_pretrained(base)
    steadily = {"learning_rate": 1e-4, "schedule": "constant", "warmup_share": 0.0, "global_batch": size.rows}
    training = (kd or Distillation()).model_copy(update=steadily)
    context = TrainingContext(
        training=training,
        kd=training if kd else None,
        how=TrainingRun(zero_stage=1),
        work=Workspace("bench", 1, {}, {}),
        source=ModelSource(name="random"),
        data=ArtifactRef(kind="augment", uri="s3://none/none/", sha256="", fingerprint=""),
        turns="last",
        only=None,
        also=(),
        launch="bench",
        seed=0,
        rank=Rank(0, 1, 1),
        on_gpu=torch.cuda.is_available(),
        precision=precision,
        precision_note=None,
        placement=Placement(zero_stage=1, micro_batch=size.rows),
    )
    return Student(context, StepPlan(10**6, size.rows, micro_batches), base, universal=False)
