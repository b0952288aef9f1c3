"""Settings of on-policy rounds."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from infra.errors import ConfigurationError
from tasks.precision import Dtype
from tasks.train.data.order import rows_of_parts
from tasks.train.settings import Distillation

_OF_ROLLOUTS = {"n", "temperature", "top_p", "max_new_tokens", "prompts", "engine"}
_OF_TRAINING = ("learning_rate", "divergence", "js_beta", "tail", "wrong_weight")


class Rounds(BaseModel):
    """Rounds after distillation: the student answers, the teacher scores its answers, the student learns from that.

    Everything is an artifact, so no teacher has to be at hand while the student trains (Lightning OPD, 2604.13010,
    which the number of steps and the rate are from).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(0, ge=0, le=64, description="rounds after kd, at most (0: none)")
    on_policy_share: float = Field(
        0.5, gt=0, le=1, description="of every batch, rows that the student wrote (GKD: 0.5); the rest are kd's rows"
    )
    steps: int = Field(150, ge=1, description="optimizer steps a round")
    learning_rate: float = Field(2e-6, gt=0, description="peak learning rate of a round")
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon", "total_variation"] = Field(
        "forward_kl", description="from teacher to student, at temperature 1"
    )
    js_beta: float = Field(0.5, gt=0, lt=1, description="weight of the teacher in the Jensen-Shannon mixture")
    tail: Literal["renormalise", "bucket"] = Field(
        "bucket", description="probability outside the top K: one bucket (K+1), or renormalised away"
    )
    wrong_weight: float = Field(
        1.0, gt=0, description="weight of an answer whose result, where it can be run, is wrong (others: 1)"
    )
    prompts: int | None = Field(None, ge=1, description="prompts a round, others in each (default: all training rows)")
    n: int = Field(1, ge=1, le=64, description="answers a prompt")
    least_agreement: float = Field(
        0.2,
        ge=0,
        le=1,
        description="share of its own tokens at which the student must find likeliest what the teacher "
        "does, before the first round; below it no round is trained (0: never asked)",
    )
    validation_rows: int = Field(
        0,
        ge=0,
        description="training rows, and all that come of the same seeds, that nothing is trained on, to see after each "
        "round whether it helped (0: all rounds are done)",
    )
    least_gain: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share by which a round must lower KL to the teacher on the validation rows; else it is the last",
    )
    temperature: float = Field(1.0, gt=0, le=2, description="of the student's answers")
    top_p: float = Field(1.0, gt=0, le=1, description="of the student's answers: mass of the tokens to draw from")
    max_new_tokens: int = Field(1024, ge=1, description="longest answer in tokens; one that is cut off is left out")
    engine: Literal["vllm", "transformers"] = Field("vllm", description="what generates: vllm, or the slow reference")
    dtype: Dtype = Field("auto", description="that the student answers in (auto: bf16 on GPUs that have it, else fp32)")
    batch_rows: int = Field(32, ge=1, description="prompts that the reference answers at once")
    tensor_parallel: int = Field(
        0, ge=0, description="GPUs that hold one student together in vLLM (0: the fewest that do)"
    )
    engines: int = Field(
        0, ge=0, description="students that answer side by side, each on GPUs of its own (0: what fits; on a CPU one)"
    )
    gpu_memory: float = Field(0.9, gt=0, le=1, description="share of the GPU's memory that vLLM may take")
    timeout_h: float | None = Field(None, gt=0, description="hours after which answering is ended (default: never)")

    @model_validator(mode="after")
    def _counts_what_is_outside_the_top_k(self) -> Self:
        if self.divergence == "reverse_kl" and self.tail != "bucket":
            raise ValueError(
                "rounds.divergence=reverse_kl needs rounds.tail=bucket: without it, and without cross-entropy, "
                "nothing holds the student to the teacher's top K, and training collapses"
            )
        return self

    def check_batch(self, global_batch: int) -> None:
        """Raises ConfigurationError where a batch has no row for one of the two kinds."""
        rows = rows_of_parts(global_batch, [1 - self.on_policy_share, self.on_policy_share])
        if not rows[1] or (self.on_policy_share < 1 and not rows[0]):
            raise ConfigurationError(
                f"kd.global_batch={global_batch} has no row for a share of {self.on_policy_share:g} "
                "(rounds.on_policy_share): raise one of them"
            )

    def identity(self) -> dict[str, Any]:
        """What changes the answers."""
        return self.model_dump(include=_OF_ROLLOUTS | ({"dtype"} if self.dtype != "auto" else set()))

    def distillation(self, kd: Distillation, rounds: int = 1) -> Distillation:
        """How the student is trained in so many rounds."""
        of_rounds: dict[str, Any] = {name: getattr(self, name) for name in _OF_TRAINING}
        of_rounds |= {"temperature": 1.0, "max_steps": rounds * self.steps, "curriculum": "none"}
        return Distillation(**{**kd.model_dump(), **of_rounds})
