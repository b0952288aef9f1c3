"""Settings of the benchmarks: which ones, on what data, and who judges."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from tasks.llm.settings import NEVER_CHANGES_ANSWERS, LLMCalls


class Judging(LLMCalls):
    """How the judge is asked. Each variant and benchmark has the whole budget, so that none is judged on less."""

    setting: ClassVar[str] = "judging"
    model_setting: ClassVar[str] = "judge_model"

    temperature: float = Field(0.0, ge=0, le=2, description="sampling temperature of the judge")
    max_output_tokens: int = Field(1024, ge=64, description="longest judgment in tokens, its reason included")
    budget_usd: float | None = Field(
        None,
        gt=0,
        description="the judgments of one variant on one benchmark may cost this much; the rest is not judged",
    )
    logprobs: bool = Field(
        True, description="weigh a preference by the judge's own log-probs, where its provider tells them"
    )

    labels: str | None = Field(
        None,
        description="people's verdicts, which the report compares the judge's with, in JSONL or CSV: "
        "question (id or text), variant, verdict (win, tie, loss; or 1 to 10)",
    )

    def identity(self) -> dict[str, Any]:
        """What changes judgments; people's labels change the report alone."""
        return self.model_dump(mode="json", exclude=NEVER_CHANGES_ANSWERS | {"labels"})


class Benchmarks(BaseModel):
    """Which benchmarks run, each by the data that it is given: a local path, or hub:OWNER/DATASET/FILE."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpaca_eval: str | None = Field(
        None,
        description="AlpacaEval 2.0: reference outputs in its own JSON (or your own rows in Alpaca format, or demo), "
        "as hub:tatsu-lab/alpaca_eval/alpaca_eval_gpt4_baseline.json",
    )
    alpaca_eval_gamed: str | None = Field(
        None,
        description="difficulties and gamed baselines of AlpacaEval's 805 instructions (its df_gamed.csv), "
        "without which length control has no instruction difficulty",
    )
    mt_bench: str | None = Field(None, description="MT-Bench: questions in FastChat's JSONL")
    mt_bench_references: str | None = Field(
        None, description="reference answers in FastChat's JSONL, where the questions hold none"
    )
    ifeval: str | None = Field(None, description="IFEval: prompts, as hub:google/IFEval/ifeval_input_data.jsonl")
    probes: str | None = Field(
        None, description="folder of judge prompts (*.jinja), one rate each, or 'builtin' (hallucination, bias)"
    )
    harness: tuple[str, ...] = Field((), description="task names of lm-eval: gsm8k, mmlu, humaneval …")
    harness_task_folder: str | None = Field(None, description="folder with lm-eval task files of your own")
    harness_limit: int | None = Field(None, ge=1, description="documents a task (default: all)")
    harness_chat_template: bool = Field(True, description="put lm-eval's prompts into the model's chat template")
    harness_runs_code: bool = Field(
        False, description="allow tasks that run generated code outside any sandbox (humaneval, mbpp)"
    )
    harness_max_length: int | None = Field(None, ge=16, description="longest prompt and answer (default: the model's)")
    harness_max_gen_tokens: int = Field(1024, ge=1, description="longest answer, where a task sets none")
    max_questions: int | None = Field(None, ge=1, description="questions of each benchmark to use (default: all)")
    max_new_tokens: int = Field(2048, ge=1, description="longest answer of a variant in tokens")

    @property
    def asked(self) -> bool:
        """Whether anything is asked for; by default nothing is."""
        return bool(self.alpaca_eval or self.mt_bench or self.ifeval or self.probes or self.harness)

    def identity(self, benchmark: str) -> dict[str, Any]:
        """What changes a benchmark's answers; the data goes in by its digest."""
        if benchmark == "harness":
            names = (
                "harness",
                "harness_limit",
                "harness_chat_template",
                "harness_max_length",
                "harness_max_gen_tokens",
            )
            return self.model_dump(mode="json", include=set(names))
        return {"max_questions": self.max_questions, "max_new_tokens": self.max_new_tokens}
