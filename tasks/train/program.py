"""The training program: run by the DeepSpeed launcher, one process a rank.

    deepspeed --module tasks.train.program FOLDER

reads FOLDER/spec.json (see `tasks.train.stage`), trains, keeps checkpoints in the artifact's workspace, and
uploads the finished model there. SFT and KD differ by loss and batch only.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
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
from infra.torch_extensions import survive_kills
from tasks.train import checkpoints
from tasks.train.data import Example, total_steps
from tasks.train.examples import load_examples
from tasks.train.loop import Plan, rate_at, run_steps
from tasks.train.losses import cross_entropy_sum, topk_kl_sum
from tasks.train.settings import Distillation, Training, TrainingRun


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


def main(spec: dict[str, Any], reporter: child.Reporter) -> dict[str, Any]:
    """Train one model; returns its counts, loss curve and speed (the same on every rank)."""
    kd = Distillation.model_validate(spec["training"]) if spec["objective"] == "kd" else None
    training = kd or Training.model_validate(spec["training"])
    run = TrainingRun.model_validate(spec["run"])
    work = Workspace.from_description(spec["workspace"])
    source = ModelSource.model_validate(spec["model"])
    data = ArtifactRef.model_validate(spec["data"])
    on_gpu = torch.cuda.is_available()
    survive_kills()
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", verbose=False)
    ranks, is_first = torch.distributed.get_world_size(), torch.distributed.get_rank() == 0
    torch.manual_seed(spec["seed"])

    folder = _one_rank_first(source.fetch)
    examples, tokenizer, data_facts = _one_rank_first(lambda: load_examples(data, source, training.max_length, kd))
    if not examples:
        raise ConfigurationError(f"no row is usable for training: {dict(data_facts['skipped'])}")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    plan = Plan(
        steps=total_steps(len(examples), training.epochs, training.global_batch, training.max_steps),
        global_batch=training.global_batch,
        micro_batches=-(-training.global_batch // (ranks * run.micro_batch)),
        seed=spec["seed"],
        pad_id=tokenizer.pad_token_id,
        checkpoint_every_s=run.checkpoint_every_s,
    )
    engine = _engine(SupervisedLoss(model, kd), spec["deepspeed"], training, plan, ranks, on_gpu)

    scratch = reporter.folder / "checkpoint"  # one for all ranks of this machine
    layout = {"ranks": ranks, "zero_stage": run.zero_stage}
    state = _one_rank_first(lambda: checkpoints.download(work, scratch, layout))
    if state is not None:
        engine.load_checkpoint(str(scratch), tag=state["tag"])
        if is_first:
            reporter.event("resumed", step=state["step"])
    done, curve = (state["step"], state["curve"]) if state else (0, [])

    def on_log(step: int, loss: float, tokens_s: float) -> None:
        if is_first:
            reporter.progress(step, plan.steps, loss=loss, tokens_s=tokens_s)

    def save(step: int) -> None:
        checkpoints.save(engine, work, scratch, step, curve, layout)

    tokens_s = run_steps(engine, examples, plan, done, curve, on_log, save)
    _export(engine, work, folder, run.zero_stage, is_first, torch.bfloat16 if on_gpu else torch.float32)
    counts = {"steps": plan.steps, "rows": len(examples), "supervised_tokens": _supervised(examples)}
    facts = {"curve": curve, "tokens_s": round(tokens_s), "resumed_at": done, "ranks": ranks}
    return {"counts": counts, "facts": {**facts, **data_facts, "parameters": _parameters(model)}}


def _engine(
    module: SupervisedLoss, config: dict[str, Any], training: Training, plan: Plan, ranks: int, on_gpu: bool
) -> Any:
    config["train_micro_batch_size_per_gpu"] = -(-plan.global_batch // (ranks * plan.micro_batches))
    config["gradient_accumulation_steps"] = plan.micro_batches
    config["gradient_clipping"] = training.gradient_clipping
    config["bf16"] = {"enabled": on_gpu}
    config["optimizer"]["params"] |= {"lr": training.learning_rate, "weight_decay": training.weight_decay}
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=[p for p in module.parameters() if p.requires_grad],
        config=config,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_at(step, plan.steps, training)
        ),
    )
    engine.train()
    return engine


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


def _supervised(examples: Iterable[Example]) -> int:
    return sum(example.supervised_tokens for example in examples)


def _parameters(model: Any) -> int:
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())


if __name__ == "__main__":
    child.run(main, Path(sys.argv[-1]), writes=int(os.environ.get("RANK", "0")) == 0)
