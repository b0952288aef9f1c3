"""Settings of a training: what changes its result, and how it is run."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from infra.store.artifacts import ArtifactRef
from tasks.precision import Precision

Order = Literal["sft_kd", "kd", "kd_sft"]  # of SFT and KD: the paper's, KD alone, KD first
Offload = Literal["none", "optimizer", "parameters"]
LEAST_STAGE: dict[Offload, int] = {"none": 0, "optimizer": 1, "parameters": 3}  # of ZeRO, which partitions that much


Weighting = Literal["none", "gap", "entropy"]
_LATER = ("weighting", "wrong_weight", "curriculum", "curriculum_share")


class Lora(BaseModel):
    """Low-rank adapters (Hu et al., 2106.09685) on every linear layer but the head, merged on export."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(16, ge=1, le=512, description="rank of the adapters")
    alpha: int = Field(32, gt=0, description="the adapters' output is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the adapters")


class Training(BaseModel):
    """Hyperparameters: part of the fingerprint. The defaults are the paper's where it names one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(2e-5, gt=0, description="peak learning rate of AdamW (paper: 2e-5)")
    epochs: float = Field(3.0, gt=0, description="passes over the rows (paper: 3); `max_steps` overrides it")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps, whatever the number of rows")
    global_batch: int = Field(64, ge=1, description="rows per optimizer step, over all processes")
    max_length: int = Field(2048, ge=16, description="longest row in tokens; longer ones are skipped and counted")
    warmup_share: float = Field(0.03, ge=0, le=1, description="share of the steps in which the rate rises")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="the rate after warm-up")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    gradient_clipping: float = Field(1.0, ge=0, description="largest gradient norm (0: no clipping)")
    lora: Lora | None = Field(None, description="train low-rank adapters instead of all weights")

    def identity(self) -> dict[str, Any]:
        """What changes the result."""
        return self.model_dump()

    @property
    def looks_first(self) -> bool:
        """Whether a batch goes through the student once before it is trained on."""
        return False


class Distillation(Training):
    """Training on the teacher's top-K log-probabilities (paper, section 3.2)."""

    kd_weight: float = Field(0.5, ge=0, le=1, description="weight of the divergence; the rest is cross-entropy")
    temperature: float = Field(
        1.0, gt=0, le=20, description="softens both distributions; scales the loss by its square"
    )
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon", "total_variation"] = Field(
        "forward_kl", description="from teacher to student, on the top K (paper: forward_kl)"
    )
    js_beta: float = Field(0.5, gt=0, lt=1, description="weight of the teacher in the Jensen-Shannon mixture")
    tail: Literal["renormalise", "bucket"] = Field(
        "renormalise",
        description="probability outside the top K: renormalised away (the paper) or kept as one bucket (K+1)",
    )
    min_alignment: float = Field(
        0.5,
        ge=0,
        le=1,
        description="with another tokenizer than the teacher's: least share of positions and of mass that must align",
    )

    weighting: Weighting = Field(
        "none",
        description="tokens that count more, on average 1: gap (where student and teacher are apart), entropy (where "
        "the student is unsure); a forward pass more",
    )
    wrong_weight: float = Field(
        1.0, gt=0, description="weight of an answer of the student's own whose result is wrong (rounds.wrong_weight)"
    )

    curriculum: Literal["none", "length", "difficulty"] = Field(
        "none", description="easy rows first: short ones, or those whose answer the teacher finds probable"
    )
    curriculum_share: float = Field(0.5, gt=0, le=1, description="share of the steps until all rows are drawn from")

    def identity(self) -> dict[str, Any]:
        """Without what was not there to be set before, unless somebody does."""
        unset = {name for name in _LATER if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(exclude=unset)

    @property
    def looks_first(self) -> bool:
        return self.weighting != "none"

    @model_validator(mode="after")
    def _knows_the_tail(self) -> Self:
        """What is left unset comes from a preset: only what was said can contradict itself."""
        if {"tail", "temperature"} <= self.model_fields_set and self.tail == "bucket" and self.temperature != 1.0:
            raise ValueError(
                f"kd.tail=bucket needs kd.temperature=1, not {self.temperature:g}: "
                "the teacher's tail is known at 1 only"
            )
        return self

    def in_place_of(self, sft: Training) -> Distillation:
        """The same for as long as both together; raises ValueError where one counts steps and the other epochs."""
        if (self.max_steps is None) != (sft.max_steps is None):
            raise ValueError("order=kd trains for as long as sft and kd together: give both max_steps, or neither")
        if self.max_steps is None or sft.max_steps is None:
            return self.model_copy(update={"epochs": self.epochs + sft.epochs})
        return self.model_copy(update={"max_steps": self.max_steps + sft.max_steps})

    def training(self) -> Training:
        """The part that a control run without a teacher shares."""
        return Training(**{name: getattr(self, name) for name in Training.model_fields})


class Part(BaseModel):
    """A further store that a student is distilled on, and its share of every batch.

    Of rows that several teachers scored, `routed` has what the others than the first did.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: ArtifactRef
    routed: tuple[ArtifactRef, ...] = ()
    share: float = Field(gt=0, le=1)


class TrainingRun(BaseModel):
    """How training is run: free to change between retries, and no part of the fingerprint but a precision asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    processes: int = Field(0, ge=0, description="DeepSpeed ranks on this machine (0: one a GPU, or 2 on a CPU)")
    hostfile: str | None = Field(
        None, description="nodes to train on, this machine first, one `HOST slots=RANKS` a line (none: this machine)"
    )
    launcher: Literal["pdsh", "openmpi", "each_node"] = Field(
        "pdsh",
        description="what starts the nodes of a hostfile: one of DeepSpeed's launchers, or each_node: the same "
        "command runs on every node (pods of a Kubernetes indexed job, srun)",
    )
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="rows a rank computes at once, on average (they are packed by tokens); auto, here and below: what "
        "is fastest and fits",
    )
    precision: Precision = Field(
        "auto",
        description="of the weights in use; bf16 keeps master weights, gradients and moments in fp32 (auto: bf16 on "
        "GPUs that have it, else fp32)",
    )
    gradient_checkpointing: bool | Literal["auto"] = Field(
        "auto", description="computes activations twice to save memory"
    )
    zero_stage: Annotated[int, Field(ge=0, le=3)] | Literal["auto"] = Field("auto", description="DeepSpeed ZeRO stage")
    offload: Offload | Literal["auto"] = Field(
        "auto", description="what lies in the machine's memory instead of the GPU's (parameters: ZeRO-3 only)"
    )
    checkpoint_every_s: float | None = Field(
        None,
        gt=0,
        description="seconds between checkpoints in storage (default: as many as keep training waiting for at most 3 % "
        "of its time, from 30 s to half an hour)",
    )
    checkpoints_kept: int = Field(1, ge=1, description="how many of the last checkpoints stay in storage")
    keep_checkpoints: bool = Field(
        False, description="leave them in storage when the training is finished: about 14 bytes a parameter each"
    )
    tensorboard: str | None = Field(None, description="folder for TensorBoard event files, one run a stage")
    stall_timeout_s: float = Field(1800.0, gt=0, description="end a run that reports nothing for this long")
    timeout_h: float | None = Field(None, gt=0, description="hours after which a training is ended (default: never)")

    @model_validator(mode="after")
    def _partitions_what_it_offloads(self) -> Self:
        if self.offload != "auto" and self.zero_stage != "auto" and self.zero_stage < LEAST_STAGE[self.offload]:
            least = LEAST_STAGE[self.offload]
            raise ValueError(f"run.offload={self.offload} needs run.zero_stage={least} or more, not {self.zero_stage}")
        return self

    def identity(self) -> dict[str, Any]:
        """What changes the result, beyond what a device decides by itself."""
        return {} if self.precision == "auto" else {"precision": self.precision}
