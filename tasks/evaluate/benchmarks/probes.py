"""Probes: does a variant's answer hallucinate, is it biased? One judge prompt each, a rate per variant.

The paper's open question 3 asks what a student takes over from its teacher. A folder of prompt files is all that
a probe of one's own needs: `NAME.jinja`, which tells the judge to answer `{"reason": …, "present": true | false}`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from infra.errors import ConfigurationError
from tasks.evaluate.benchmarks.judges import PACKAGE, Case, Finding, Judgment, reasons_not_judged
from tasks.llm.agent import Agent
from tasks.stats.intervals import wilson

BUILTIN = "builtin"
_NAME = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass(frozen=True)
class Probed:
    """An answer to probe."""

    id: str
    instruction: str
    response: str
    input: str = ""
    reference: str = ""


def load(folder: str) -> list[Agent[Finding]]:
    """The probes of a folder of `*.jinja` files, by name; `builtin` has hallucination and bias.

    Raises ConfigurationError for a folder without prompts, and for one that does not ask for the verdict.
    """
    place = resources.files("tasks.evaluate.benchmarks") / "probe_prompts" if folder == BUILTIN else Path(folder)
    if not place.is_dir():
        raise ConfigurationError(f"benchmarks.probes: there is no folder {folder}")
    files = sorted((file for file in place.iterdir() if file.name.endswith(".jinja")), key=lambda file: file.name)
    if not files:
        raise ConfigurationError(f"benchmarks.probes: {folder} holds no prompt: expected files NAME.jinja")
    probes = []
    for file in files:
        name = file.name.removesuffix(".jinja")
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigurationError(
                f"benchmarks.probes: {folder}/{file.name} is no UTF-8 text: {error.reason}"
            ) from error
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"benchmarks.probes: {folder}/{file.name}: a probe's name is of a-z, 0-9, _ and -")
        if '"present"' not in text:
            raise ConfigurationError(
                f"benchmarks.probes: {folder}/{file.name} does not ask for the verdict: tell the judge to answer "
                '{"reason": "…", "present": true or false}'
            )
        probes.append(Agent(f"probe_{name}", Finding, PACKAGE, text))
    return probes


def cases(probes: Sequence[Agent[Finding]], answers: Sequence[Probed]) -> list[Case]:
    """Every probe on every answer; all probes of an answer together, so that a budget cuts them alike."""
    return [Case(answer.id, _name(probe), probe, _payload(answer)) for answer in answers for probe in probes]


def _payload(answer: Probed) -> dict[str, str]:
    payload = {"instruction": answer.instruction, "input": answer.input, "response": answer.response}
    return {**payload, "reference": answer.reference} if answer.reference else payload


def result(probes: Sequence[Agent[Finding]], judgments: Sequence[Judgment]) -> dict[str, Any]:
    """By probe: how many answers show it of how many judged, the rate with a 95 % interval (Wilson)."""
    rates = {}
    for name in map(_name, probes):
        mine = [judgment for judgment in judgments if judgment.part == name]
        made = [judgment.value for judgment in mine if judgment.value is not None]
        present = round(sum(made))
        one: dict[str, Any] = {"present": present, "judged": len(made), "not_judged": reasons_not_judged(mine)}
        if made:
            rate = wilson(present / len(made), len(made))
            one |= {"rate": rate.estimate, "low": rate.low, "high": rate.high}
        rates[name] = one
    return {"probes": rates, "cost_usd": sum(judgment.cost_usd for judgment in judgments)}


def _name(probe: Agent[Finding]) -> str:
    return probe.name.removeprefix("probe_")
