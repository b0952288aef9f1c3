"""What scoring can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Scoring(BaseModel):
    """How the teacher scores. Only `max_length` and `rows_per_shard` change what is stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Literal["vllm", "transformers"] = Field("vllm", description="vllm, or the slow reference")
    max_length: int = Field(2048, ge=16, description="longest row in tokens; longer ones are skipped and counted")
    rows_per_shard: int = Field(256, ge=1, description="rows a shard; a kill costs at most one shard")
    tensor_parallel: int = Field(1, ge=1, description="GPUs that hold one teacher together")
    gpu_memory: float = Field(0.9, gt=0, le=1, description="share of the GPU's memory that vLLM may take")
    max_batched_tokens: int = Field(4096, ge=256, description="tokens a step; memory grows with it times vocabulary")
