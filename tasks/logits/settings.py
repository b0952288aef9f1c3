"""Settings of scoring."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.llm.addresses import Address
from tasks.logits.api.settings import TeacherCalls
from tasks.logits.store.format import MAX_ERROR
from tasks.precision import Dtype


class Scoring(BaseModel):
    """How the teacher scores. `max_length`, `max_error`, `tokens_per_shard` and a dtype asked for change the store."""

    # what is wrong may be a key in an address
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    engine: Literal["vllm", "transformers", "server", "api"] = Field(
        "vllm",
        description="vllm, the slow reference, a `vllm serve` that runs elsewhere (server), or an API model by its "
        "name in LiteLLM (api), which answers the training prompts itself and tells the log-probs of its own tokens",
    )
    server: Address | None = Field(
        None, description="with engine=server: its address, such as http://gpu-1:8000 (a key in VLLM_API_KEY)"
    )
    server_model: str | None = Field(
        None, description="what the server calls the teacher (default: as we do, or the only model that it serves)"
    )
    api: TeacherCalls = Field(
        TeacherCalls(), description="with engine=api: how the teacher is asked, for how much money"
    )
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
    pipeline_parallel: int = Field(
        1, ge=1, description="parts of a teacher's layers in vLLM, each on tensor_parallel GPUs of its own"
    )
    engines: int = Field(
        0,
        ge=0,
        description="teachers side by side, each on GPUs of its own (0: as many as fit; on a CPU one); of a server, "
        "processes that ask it",
    )
    gpu_memory: float = Field(0.9, gt=0, le=1, description="share of the GPU's memory that vLLM may take")
    max_batched_tokens: int = Field(4096, ge=256, description="tokens a step; memory grows with it times vocabulary")
    timeout_h: float | None = Field(None, gt=0, description="hours after which scoring is ended (default: never)")

    @model_validator(mode="after")
    def _is_here_or_elsewhere(self) -> Self:
        elsewhere = {"server": self.server, "server_model": self.server_model}
        here = {"dtype": self.dtype != "auto", "tensor_parallel": self.tensor_parallel}
        if self.engine != "server" and any(elsewhere.values()):
            named = " and ".join(f"scoring.{name}" for name, value in elsewhere.items() if value)
            raise ValueError(f"{named} is for scoring.engine=server, and the engine is {self.engine}")
        if self.engine == "server" and not self.server:
            raise ValueError(
                "scoring.engine=server needs scoring.server: the address of a `vllm serve`, such as http://gpu-1:8000"
            )
        if self.server and not self.server.startswith(("http://", "https://")):
            raise ValueError("scoring.server has to begin with http:// or https://")
        if self.engine == "server" and any(here.values()):
            named = " and ".join(f"scoring.{name}" for name, value in here.items() if value)
            raise ValueError(
                f"{named} is for a teacher that is loaded here: with scoring.engine=server, tell the server"
            )
        return self

    @model_validator(mode="after")
    def _only_vllm_has_parts(self) -> Self:
        if self.pipeline_parallel > 1 and self.engine != "vllm":
            raise ValueError("scoring.pipeline_parallel above 1 needs scoring.engine=vllm")
        return self

    @property
    def is_elsewhere(self) -> bool:
        """Whether the teacher is loaded by somebody else."""
        return self.engine == "server"

    def here(self) -> Scoring:
        """For a model that no server has: in vLLM."""
        nowhere = {"engine": "vllm", "server": None, "server_model": None, "api": TeacherCalls()}
        return self.model_copy(update=nowhere) if self.is_elsewhere or self.engine == "api" else self

    @model_validator(mode="after")
    def _asks_only_an_api(self) -> Self:
        if self.api != TeacherCalls() and self.engine != "api":
            raise ValueError("scoring.api is how an API teacher is asked: set scoring.engine=api too, or leave it out")
        return self

    @property
    def gpus_each(self) -> int:
        """Of an engine, where `tensor_parallel` is known."""
        return self.tensor_parallel * self.pipeline_parallel

    def stored(self, k: int) -> int:
        """Log-probabilities that are stored a token, where `k` are learnt from."""
        return self.k or k

    def shown(self) -> dict[str, Any]:
        """What the report says of it."""
        return {"engine": "api", "api": self.api.identity()} if self.engine == "api" else self.rounding()

    def rounding(self) -> dict[str, Any]:
        """Of the identity: the dtype, where somebody asked for one."""
        return {} if self.dtype == "auto" else {"dtype": self.dtype}
