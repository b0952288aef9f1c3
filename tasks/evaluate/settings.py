"""Settings of evaluation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.precision import Dtype


class Evaluation(BaseModel):
    """How variants are compared on held-out rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_rows: int | None = Field(None, ge=1, description="held-out rows to use (default: all)")
    engine: Literal["vllm", "transformers"] = Field("vllm", description="what generates: vllm, or the slow reference")
    dtype: Dtype = Field(
        "auto",
        description="what models compute in (auto: bfloat16 on GPUs that have it, else float32; of a quantised teacher "
        "what its config names)",
    )
    max_new_tokens: int = Field(256, ge=1, description="longest generated answer in tokens")
    samples: int = Field(0, ge=0, description="sampled answers a row, beside the greedy one")
    temperature: float = Field(0.7, gt=0, le=2, description="of the sampled answers")
    top_p: float = Field(1.0, gt=0, le=1, description="of the sampled answers: mass of the tokens to draw from")
    seed: int = Field(0, ge=0, description="of the sampled answers")
    top_k: int | None = Field(None, ge=1, description="teacher tokens that the top-K KL is over (default: k)")
    teacher: Literal["full", "topk"] = Field(
        "full",
        description="what variants are compared with: the teacher's whole vocabulary, or its top K and one bucket for "
        "the rest, scored by the engine of `scoring` (for a teacher too large for transformers here)",
    )
    max_length: int = Field(2048, ge=16, description="longest held-out row in tokens; longer ones are skipped")
    batch_rows: int = Field(32, ge=1, description="rows computed at once; lower it when memory runs out")
    tensor_parallel: int = Field(
        0, ge=0, description="GPUs that hold one model together in vLLM (0: the fewest that do)"
    )
    engines: int = Field(
        0, ge=0, description="models that answer side by side, each on GPUs of its own (0: what fits; on a CPU one)"
    )
    gpu_memory: float = Field(0.9, gt=0, le=1, description="share of the GPU's memory that vLLM may take")
    timeout_h: float | None = Field(None, gt=0, description="hours after which evaluation is ended (default: never)")

    def following(self, k: int) -> Evaluation:
        """With the top-K KL over as many tokens as are distilled, unless somebody said another number."""
        return self if self.top_k else self.model_copy(update={"top_k": k})

    @property
    def kl_tokens(self) -> int:
        """`top_k`, known; raises ValueError where it still waits for k."""
        if self.top_k is None:
            raise ValueError("evaluation.top_k is not known: say it, or call `following(k)`")
        return self.top_k

    def identity(self) -> dict[str, Any]:
        """What changes the numbers: the engine too, whose rounding decides between tokens that are nearly as likely."""
        unused = set() if self.samples else {"temperature", "top_p", "seed"}
        unused |= {"teacher"} if self.teacher == "full" else set()
        unused |= {"dtype"} if self.dtype == "auto" else set()
        return self.model_dump(exclude={"batch_rows", "tensor_parallel", "engines", "gpu_memory", "timeout_h"} | unused)
