"""The training program: run by the DeepSpeed launcher, one process a rank.

    deepspeed --module tasks.train.program FOLDER

reads FOLDER/spec.json (see `tasks.train.stage`), trains, keeps checkpoints in the artifact's workspace, and
uploads the finished model there. SFT and KD differ by loss and batch only.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from infra import child
from infra.artifacts import ArtifactRef, Workspace
from infra.errors import ConfigurationError
from infra.models import ModelSource
from tasks.train import checkpoints
from tasks.train.data import Example, collate, deal, global_batch_indices, total_steps
from tasks.train.examples import load_examples
from tasks.train.losses import cross_entropy_sum, topk_kl_sum
from tasks.train.settings import Distillation, Training, TrainingRun

_LOG_EVERY = 10


class SupervisedLoss(nn.Module):
    """A causal LM whose forward is the summed loss of a micro-batch: logits for supervised positions only."""

    def __init__(self, model: Any, kd: Distillation | None):
        super().__init__()
        self.model = model
        self.kd = kd

    def forward(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        positions_N: Tensor,
        labels_N: Tensor,
        teacher_ids_NK: Tensor | None,
        teacher_logprobs_NK: Tensor | None,
    ) -> Tensor:
        decoder = self.model.get_decoder()
        hidden_BTH = decoder(input_ids=input_ids_BT, attention_mask=attention_mask_BT, use_cache=False)[0]
        logits_NV = self.model.get_output_embeddings()(hidden_BTH.flatten(0, 1)[positions_N])
        if self.kd is None:
            return cross_entropy_sum(logits_NV, labels_N)
        assert teacher_ids_NK is not None
        assert teacher_logprobs_NK is not None
        kl = topk_kl_sum(logits_NV, teacher_ids_NK, teacher_logprobs_NK, self.kd.temperature, self.kd.tail)
        return (1 - self.kd.kd_weight) * cross_entropy_sum(logits_NV, labels_N) + self.kd.kd_weight * kl


def rate_at(step: int, steps: int, training: Training) -> float:
    """The learning rate's factor in [0, 1]: linear warm-up, then the schedule down to 0."""
    warmup = math.ceil(training.warmup_share * steps)
    if step < warmup:
        return (step + 1) / warmup
    passed = (step - warmup) / max(steps - warmup, 1)
    if training.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(passed, 1)))
    return 1.0 if training.schedule == "constant" else max(1 - passed, 0.0)


def main(spec: dict[str, Any], reporter: child.Reporter) -> dict[str, Any]:
    """Train one model; returns its counts, loss curve and speed (the same on every rank)."""
    kd = Distillation.model_validate(spec["training"]) if spec["objective"] == "kd" else None
    training = kd or Training.model_validate(spec["training"])
    run = TrainingRun.model_validate(spec["run"])
    work = Workspace.from_description(spec["workspace"])
    source = ModelSource.model_validate(spec["model"])
    on_gpu = torch.cuda.is_available()
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", verbose=False)
    rank, ranks, is_first = _rank(), torch.distributed.get_world_size(), _rank() == 0
    torch.manual_seed(spec["seed"])

    folder = _one_rank_first(source.fetch)
    data = ArtifactRef.model_validate(spec["data"])
    examples, tokenizer, skipped = _one_rank_first(lambda: load_examples(data, source, training.max_length, kd))
    if not examples:
        raise ConfigurationError(f"no row is usable for training: {skipped}")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    steps = total_steps(len(examples), training.epochs, training.global_batch, training.max_steps)
    micro_batches = -(-training.global_batch // (ranks * run.micro_batch))
    engine = _engine(SupervisedLoss(model, kd), spec["deepspeed"], training, steps, ranks, micro_batches, on_gpu)

    scratch = reporter.folder / "checkpoint"  # one for all ranks of this machine
    state = _one_rank_first(lambda: checkpoints.download(work, scratch))
    curve: list[list[float]] = []
    done = 0
    if state is not None:
        engine.load_checkpoint(str(scratch), tag=state["tag"])
        done, curve = state["step"], state["curve"]
        if is_first:
            reporter.event("resumed", step=done)
    started = last_checkpoint = time.monotonic()
    loss_sum, loss_tokens, tokens = 0.0, 0, 0
    for step in range(done, steps):
        batch = [examples[i] for i in global_batch_indices(len(examples), training.global_batch, step, spec["seed"])]
        supervised = sum(example.supervised_tokens for example in batch)
        for micro in deal(batch, rank, ranks, micro_batches):
            loss = engine(*_tensors(micro or batch[:1], tokenizer.pad_token_id, engine.device))
            loss = loss if micro else loss * 0.0  # every rank takes part in every micro-batch
            loss_sum += float(loss.detach())
            # DeepSpeed averages over ranks and micro-batches; we want the mean over supervised tokens
            engine.backward(loss * (ranks * micro_batches / supervised))
            engine.step()
        loss_tokens += supervised
        tokens += sum(len(example.ids) for example in batch)
        if (step + 1) % _LOG_EVERY == 0 or step + 1 == steps:
            mean_loss = _sum_over_ranks(loss_sum, engine.device) / loss_tokens
            curve.append([step + 1, round(mean_loss, 5)])
            loss_sum, loss_tokens = 0.0, 0
            if not math.isfinite(mean_loss):
                rows = ", ".join(example.row_id for example in batch[:8])
                raise ConfigurationError(f"the loss is {mean_loss} at step {step + 1}: lower the rate; rows: {rows} …")
            if is_first:
                rate = tokens / (time.monotonic() - started)
                reporter.progress(step + 1, steps, loss=mean_loss, tokens_s=rate)
            due = time.monotonic() - last_checkpoint > run.checkpoint_every_s
            if _agreed(due, engine.device) and step + 1 < steps:
                checkpoints.save(engine, work, scratch, step + 1, curve, is_first)
                last_checkpoint = time.monotonic()
    seconds = time.monotonic() - started

    _export(engine, work, folder, run.zero_stage, is_first, torch.bfloat16 if on_gpu else torch.float32)
    facts = {"curve": curve, "tokens_s": round(tokens / max(seconds, 1e-9)), "skipped": skipped, "ranks": ranks}
    counts = {"steps": steps, "rows": len(examples), "supervised_tokens": _supervised(examples)}
    return {"counts": counts, "facts": {**facts, "resumed_at": done, "parameters": _parameters(model)}}


def _engine(
    module: SupervisedLoss,
    config: dict[str, Any],
    training: Training,
    steps: int,
    ranks: int,
    micro_batches: int,
    on_gpu: bool,
) -> Any:
    config["train_micro_batch_size_per_gpu"] = -(-training.global_batch // (ranks * micro_batches))
    config["gradient_accumulation_steps"] = micro_batches
    config["gradient_clipping"] = training.gradient_clipping
    config["bf16"] = {"enabled": on_gpu}
    config["optimizer"]["params"] |= {"lr": training.learning_rate, "weight_decay": training.weight_decay}
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=[p for p in module.parameters() if p.requires_grad],
        config=config,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_at(step, steps, training)
        ),
    )
    engine.train()
    return engine


def _tensors(examples: list[Example], pad_id: int, device: Any) -> list[Tensor | None]:
    batch = collate(examples, pad_id)
    fields = (
        batch.input_ids_BT,
        batch.attention_mask_BT,
        batch.positions_N,
        batch.labels_N,
        batch.teacher_ids_NK,
        batch.teacher_logprobs_NK,
    )
    return [None if tensor is None else tensor.to(device) for tensor in fields]


def _export(engine: Any, work: Workspace, source: Path, zero_stage: int, is_first: bool, dtype: torch.dtype) -> None:
    """The model as a Hugging Face folder: safetensors, and the tokenizer's files as they came."""
    model = engine.module.model
    state = model.state_dict()
    if zero_stage == 3:  # each rank holds a part; rank 0 gets the whole, with the wrapper's prefix
        state = engine._zero3_consolidated_16bit_state_dict()
        state = {name.removeprefix("model."): tensor for name, tensor in (state or {}).items()}
    if not is_first:
        return
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    with tempfile.TemporaryDirectory() as target:
        model.config.dtype = dtype
        model.save_pretrained(target, state_dict=state, safe_serialization=True)
        for path in source.iterdir():
            if path.is_file() and path.suffix != ".safetensors" and not (Path(target) / path.name).exists():
                shutil.copyfile(path, Path(target) / path.name)
        work.put_folder("model/", Path(target))


def _one_rank_first(work: Any) -> Any:
    """Rank 0 of this machine does it first (downloads), the others then find it done."""
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    result = work() if first else None
    torch.distributed.barrier()
    return result if first else work()


def _rank() -> int:
    return int(torch.distributed.get_rank())


def _sum_over_ranks(value: float, device: Any) -> float:
    total = torch.tensor([value], dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
    torch.distributed.all_reduce(total)
    return float(total)


def _agreed(flag: bool, device: Any) -> bool:
    """Rank 0's clock decides for all."""
    decision = torch.tensor([int(flag)], device=device)
    torch.distributed.broadcast(decision, src=0)
    return bool(decision)


def _supervised(examples: Iterable[Example]) -> int:
    return sum(example.supervised_tokens for example in examples)


def _parameters(model: Any) -> int:
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())


if __name__ == "__main__":
    child.run(main, Path(sys.argv[-1]), writes=int(os.environ.get("RANK", "0")) == 0)
