"""Settings of scoring."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.logits.store.format import MAX_ERROR
from tasks.precision import Dtype

STALL_TIMEOUT_S = 1800.0  # a large teacher takes long to load


class Scoring(BaseModel):
    """How the teacher scores. `max_length`, `max_error`, `tokens_per_shard` and a dtype asked for change the store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Literal["vllm", "transformers"] = Field("vllm", description="vllm, or the slow reference")
    dtype: Dtype = Field(
        "auto",
        description="what the teacher computes in (auto: in vLLM bfloat16 on GPUs that have it, else float32; in the "
        "reference float32; of a quantised teacher what its config names)",
    )
    k: int | None = Field(
        None,
        ge=1,
        le=256,
        description="log-probabilities stored a token, where they are to be more than the `k` that is learnt from: "
        "students of every smaller k then share the store",
    )
    max_length: int = Field(2048, ge=16, description="longest row in tokens; longer ones are skipped and counted")
    max_error: float = Field(
        MAX_ERROR,
        ge=2**-14,
        le=1,
        description="largest error of a stored log-prob, in nats; half of it: 1.2 bytes a token",
    )
    tokens_per_shard: int = Field(65_536, ge=1, description="tokens a shard; a kill costs at most one shard")
    tensor_parallel: int = Field(0, ge=0, description="GPUs that hold one teacher together (0: the fewest that do)")
    engines: int = Field(
        0, ge=0, description="teachers side by side, each on GPUs of its own (0: as many as fit; on a CPU one)"
    )
    gpu_memory: float = Field(0.9, gt=0, le=1, description="share of the GPU's memory that vLLM may take")
    max_batched_tokens: int = Field(4096, ge=256, description="tokens a step; memory grows with it times vocabulary")
    timeout_h: float | None = Field(None, gt=0, description="hours after which scoring is ended (default: never)")

    def stored(self, k: int) -> int:
        """Log-probabilities that are stored a token, where `k` are learnt from."""
        return self.k or k

    def rounding(self) -> dict[str, Any]:
        """Of the identity: the dtype, where somebody asked for one."""
        return {} if self.dtype == "auto" else {"dtype": self.dtype}
