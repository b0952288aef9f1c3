"""What the spec of a training says, resolved: the same on every rank."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import torch

from infra.store.artifacts import ArtifactRef, Workspace
from tasks.engines.device import capability
from tasks.models import ModelSource
from tasks.precision import BYTES, Known, note, training_dtype
from tasks.rows import Turns
from tasks.train.data.order import rows_of_parts
from tasks.train.launch.ranks import Rank
from tasks.train.memory import Placement
from tasks.train.model.losses import DistillationLoss
from tasks.train.settings import Distillation, Part, Training, TrainingRun

_TITLES = {
    "sft": "A student after supervised fine-tuning",
    "sft_control": "A student fine-tuned twice, the control of a distillation",
    "sft_after_kd": "A student distilled from its teacher's scores, then fine-tuned",
    "kd": "A student distilled from its teacher's scores",
    "kd_continued": "A student distilled for longer from its teacher's scores, the control of on-policy rounds",
    "kd_round": "A student distilled from its teacher's scores of its own answers",
}


@dataclass(frozen=True)
class TrainingContext:
    """One training, as the rank that does its part sees it. `kd` is `training` where there is a teacher.

    `k` is how many of a token's stored log-probabilities are learnt from (None: all). `placement` is what `how` comes
    to once the rows are known.
    """

    training: Training
    kd: Distillation | None
    how: TrainingRun
    work: Workspace
    source: ModelSource
    data: ArtifactRef
    turns: Turns
    only: ArtifactRef | None
    also: tuple[Part, ...]
    launch: str
    seed: int
    rank: Rank
    on_gpu: bool
    precision: Known
    precision_note: str | None
    k: int | None = None
    placement: Placement = field(default_factory=Placement)
    routed: tuple[ArtifactRef, ...] = ()

    @staticmethod
    def of(spec: Mapping[str, Any]) -> TrainingContext:
        kd = Distillation.model_validate(spec["training"]) if spec["objective"] == "kd" else None
        how, device = TrainingRun.model_validate(spec["run"]), capability()
        return TrainingContext(
            training=kd or Training.model_validate(spec["training"]),
            kd=kd,
            how=how,
            work=Workspace.from_description(spec["workspace"]),
            source=ModelSource.model_validate(spec["model"]),
            data=ArtifactRef.model_validate(spec["data"]),
            turns=spec["turns"],
            only=ArtifactRef.model_validate(spec["only"]) if spec["only"] else None,
            also=tuple(map(Part.model_validate, spec["also"])),
            k=spec["k"],
            routed=tuple(map(ArtifactRef.model_validate, spec["routed"])),
            launch=spec["launch"],
            seed=spec["seed"],
            rank=Rank.here(),
            on_gpu=device is not None,
            precision=training_dtype(how.precision, device),
            precision_note=note(how.precision, device),
        )

    @property
    def batch_rows(self) -> list[int]:
        """Of a global batch, from each store; the first one has the share that is left."""
        shares = [part.share for part in self.also]
        return rows_of_parts(self.training.global_batch, [1 - sum(shares), *shares])

    @property
    def deepspeed(self) -> dict[str, Any]:
        """DeepSpeed's configuration for the ZeRO stage."""
        name = f"deepspeed/zero{self.placement.zero_stage}.json"
        config: dict[str, Any] = json.loads(resources.files("infra").joinpath(name).read_text())
        return config

    @property
    def layout(self) -> dict[str, int]:
        """What a checkpoint depends on."""
        return {
            "ranks": self.rank.ranks,
            "zero_stage": self.placement.zero_stage,
            "weight_bytes": BYTES[self.precision],
        }

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights in use, and of those that are published."""
        return torch.bfloat16 if self.half else torch.float32

    @property
    def half(self) -> bool:
        """Whether weights in use have two bytes, beside master weights of four."""
        return self.precision == "bfloat16"

    @property
    def loss(self) -> DistillationLoss | None:
        if self.kd is None:
            return None
        kd = self.kd
        return DistillationLoss(kd.divergence, kd.tail, kd.temperature, kd.js_beta, kd.kd_weight, kd.weighting)

    @property
    def weighted(self) -> bool:
        """Whether some tokens count more than others."""
        return self.kd is not None and (self.kd.weighting != "none" or self.kd.wrong_weight != 1)

    def card(self, k: int | None) -> dict[str, Any]:
        """What the model card says besides the numbers; `k` of the teacher's log-probabilities were used."""
        return {
            "title": _TITLES[self.work.kind],
            "objective": "kd" if self.kd else "sft",
            "base": self.source.name,
            "base_hub": self.source.hub,
            "training": self.training,
            "k": k,
            "seed": self.seed,
            "data": self.data.uri,
            "fingerprint": self.work.fingerprint,
        }
