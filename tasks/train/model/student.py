"""The student in training: the model with its loss and adapters, and DeepSpeed's engine around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig

from tasks.models import load_tokenizer
from tasks.tokens.chat import stop_ids
from tasks.tokens.rows import ChatFormat
from tasks.train.data.packing import use_packed_attention
from tasks.train.loop import StepPlan, rate_at
from tasks.train.model.adapters import with_adapters
from tasks.train.model.export import export
from tasks.train.model.fused_head import FusedHead
from tasks.train.model.logit_map import measured
from tasks.train.model.losses import DistillationLoss
from tasks.train.run import TrainingContext


class SupervisedLoss(nn.Module):
    """A causal LM whose forward is the summed loss of a micro-batch: logits for supervised positions only."""

    def __init__(self, model: Any, loss: DistillationLoss | None):
        super().__init__()
        self.model = model
        self.head = FusedHead(model.get_output_embeddings(), measured(model))
        self.loss = loss

    def forward(
        self,
        input_ids_1T: Tensor,
        position_ids_1T: Tensor,
        positions_N: Tensor,
        labels_N: Tensor,
        teacher_ids_NK: Tensor | None,
        teacher_logprobs_NK: Tensor | None,
        kd_weight_N: Tensor | None,
        weight_N: Tensor | None,
        *rows: Tensor,
        measure: bool = False,
    ) -> Tensor:
        """With `measure`, what each token is to count in the loss instead of it (`token_weights`)."""
        decoder = self.model.get_decoder()
        hidden_1TH = decoder(input_ids=input_ids_1T, position_ids=position_ids_1T, rows=rows, use_cache=False)[0]
        hidden_NH = hidden_1TH[0].index_select(0, positions_N)
        teacher, weights = (teacher_ids_NK, teacher_logprobs_NK), (kd_weight_N, weight_N)
        loss: Tensor = self.head(hidden_NH, labels_N, *teacher, self.loss, *weights, measure=measure)
        return loss


class Student:
    """All ranks make one, and call its methods together."""

    def __init__(self, run: TrainingContext, plan: StepPlan, base: Path, universal: bool):
        """From the weights in folder `base`; `universal` is the form of the checkpoint that is to be loaded."""
        self._run = run
        self._base = base
        config = _config(run, plan, universal)
        model = load(base, run.dtype, config if run.placement.zero_stage == 3 else None)
        use_packed_attention(model)
        if run.training.lora is not None:
            model = with_adapters(model, run.training.lora)
        if run.placement.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._model = model
        module = SupervisedLoss(model, run.loss)
        self.engine, *_ = deepspeed.initialize(
            model=module,
            model_parameters=[p for p in module.parameters() if p.requires_grad],
            config=config,
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: rate_at(step, plan.steps, run.training)
            ),
        )
        self.engine.train()

    @property
    def parameters(self) -> int:
        return sum(getattr(p, "ds_numel", p.numel()) for p in self._model.parameters())

    def load(self, scratch: Path, tag: str) -> None:
        """Go on from a checkpoint."""
        self.engine.load_checkpoint(str(scratch), tag=tag)

    def scalars(self) -> dict[str, float]:
        """What TensorBoard shows besides loss and speed."""
        norm = float(self.engine.get_global_grad_norm() or 0.0)
        return {"learning_rate": self.engine.get_lr()[0], "gradient_norm": norm}

    def export(self, card: dict[str, Any]) -> None:
        """Put the model into the workspace."""
        run, tokenizer = self._run, load_tokenizer(self._run.source)
        stops = stop_ids(run.source, ChatFormat.of(tokenizer).end_id, None)
        export(self.engine, run.work, self._base, stops, run.placement.zero_stage, run.training.lora, run.dtype, card)


def load(base: Path, dtype: torch.dtype, zero_3: dict[str, Any] | None) -> Any:
    """The model in folder `base` with weights in `dtype`, in which they are read: none is ever whole in another.

    With the config of ZeRO-3 each rank has its part of every weight, and one module's whole while that is read.
    """
    in_parts = HfDeepSpeedConfig(zero_3) if zero_3 else None
    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False, dtype=dtype)
    del in_parts  # which holds for all models that are loaded while it lives
    return model


def _config(run: TrainingContext, plan: StepPlan, universal: bool) -> dict[str, Any]:
    """DeepSpeed's: that of the ZeRO stage, with what this run adds."""
    config = run.deepspeed
    zero = config["zero_optimization"]
    place = {"device": "cpu", "pin_memory": run.on_gpu}
    if run.placement.offload != "none":
        zero["offload_optimizer"] = place
        config["zero_force_ds_cpu_optimizer"] = False
    if run.placement.offload == "parameters":
        zero["offload_param"] = place
    rates = {"lr": run.training.learning_rate, "weight_decay": run.training.weight_decay}
    optimizer = config["optimizer"] | {"params": config["optimizer"]["params"] | rates}
    if run.half and run.placement.zero_stage == 0:
        zero["stage"] = 1  # at stage 0 DeepSpeed sums up gradients in bf16; the result is the same
    return config | {
        "zero_optimization": zero,
        "optimizer": optimizer,
        "checkpoint": {"load_universal": universal},
        "train_micro_batch_size_per_gpu": -(-plan.global_batch // (run.rank.ranks * plan.micro_batches)),
        "gradient_accumulation_steps": plan.micro_batches,
        "gradient_clipping": run.training.gradient_clipping,
        "bf16": {"enabled": run.half},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
