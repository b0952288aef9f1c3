"""AlpacaEval on made-up answers, here or as a program of its own, which tests kill.

    python -m tests.support.judging '{"url": "http://127.0.0.1:1234/v1", "questions": 40, "judging": {}}'

prints one line of JSON: the reference of the published verdicts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.store.artifacts import ArtifactRef
from tasks.evaluate.benchmarks import artifacts
from tasks.evaluate.benchmarks.questions import ConversationPrompt
from tasks.evaluate.benchmarks.settings import Benchmarks, Judging
from tasks.evaluate.settings import Evaluation
from tasks.llm.protocol import LLMEndpoint
from tasks.models import ModelSource
from tasks.shipped import DEMO
from tests.support import program

JUDGE = "openai/judge"
VARIANT = ModelSource(name="student", path=str(DEMO / "student"))
ANOTHER = ModelSource(name="teacher", path=str(DEMO / "teacher"))


def answer(benchmark: str, options: Benchmarks, texts: Any, variant: ModelSource = VARIANT) -> ArtifactRef:
    """The answers artifact in which `texts(user turn)` is what the variant said."""

    def generate(prompts: Sequence[ConversationPrompt]) -> list[str]:
        return [texts(prompt.messages[-1].content) for prompt in prompts]

    work = artifacts.answers_workspace(benchmark, variant, options, Evaluation())
    return artifacts.answer({benchmark: work}, options, generate)[benchmark]


def score(url: str, answers: ArtifactRef, benchmark: str, options: Benchmarks, judging: dict[str, Any]) -> ArtifactRef:
    """The judge's verdicts on the answers, from the endpoint at `url`."""
    chosen = Judging.model_validate({"concurrency": 4, **judging})
    work = artifacts.workspace(benchmark, answers, options, chosen, JUDGE)
    if ref := work.find():
        return ref
    return artifacts.score({"": work}, {"": answers}, options, chosen, LLMEndpoint(JUDGE, url, "key"))[""]


def alpaca_eval(
    folder: Path, pairs: Sequence[tuple[str, str]], variant: ModelSource = VARIANT
) -> tuple[Benchmarks, ArtifactRef]:
    """AlpacaEval over pairs of what the variant and what the reference said."""
    path = folder / "references.json"
    entries = [{"instruction": f"question {place}", "output": pair[1]} for place, pair in enumerate(pairs)]
    path.write_text(json.dumps(entries))
    options = Benchmarks(alpaca_eval=str(path))
    said = {f"question {place}": pair[0] for place, pair in enumerate(pairs)}
    return options, answer("alpaca_eval", options, said.__getitem__, variant)


def some_pairs(count: int) -> list[tuple[str, str]]:
    """The variant is better in two of three pairs; no two answers are alike."""
    return [(f"quality {3 if place % 3 else 1}, mine {place}", f"quality 2, its {place}") for place in range(count)]


def start(url: str, count: int, judging: dict[str, Any], **environment: str) -> subprocess.Popen[str]:
    """AlpacaEval over `some_pairs` in a process of its own."""
    return program.start("tests.support.judging", {"url": url, "questions": count, "judging": judging}, **environment)


def main() -> None:
    given = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        options, answers = alpaca_eval(Path(folder), some_pairs(given["questions"]))
        ref = score(given["url"], answers, "alpaca_eval", options, given["judging"])
    print(json.dumps({"ref": ref.model_dump()}))


if __name__ == "__main__":
    main()
