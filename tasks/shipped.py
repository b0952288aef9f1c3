"""What is shipped under a short name, to try everything with: models, data with their databases, and an LLM.

Stages look names up here: none of them knows what is shipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEMO = Path(__file__).parent / "demo" / "data"


@dataclass(frozen=True)
class Data:
    """Seeds of one domain, rows to evaluate on, and the databases that their answers are run on."""

    seeds: Path
    heldout: Path
    databases: Path


@dataclass(frozen=True)
class LLM:
    """A server of ours that answers by rule: `module` is started for as long as a stage asks it.

    `model` is LiteLLM's name for it; `label` what people are told.
    """

    model: str
    module: str
    label: str


MODELS = {
    role: {"demo": DEMO / role, **{f"demo-{size}": DEMO / f"{role}-{size}" for size in ("small", "medium")}}
    for role in ("student", "teacher")
}
DATA = {"demo": Data(DEMO / "seeds.jsonl", DEMO / "heldout.jsonl", DEMO / "databases")}
LLMS = {
    "demo": LLM(
        model="openai/demo-llm",
        module="tasks.demo.llm_server",
        label="demo LLM server: a rule-based stand-in for the SQL domain, not a language model",
    )
}


def llm_named(model: str) -> str | None:
    """The short name of LiteLLM's `model`, where it is one of ours."""
    return next((name for name, llm in LLMS.items() if llm.model == model), None)
