"""`plan_only`: near what the demo really takes, asks nobody, leaves nothing but seeds."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from flows.distill import distill
from flows.experiments import experiment_named
from flows.grid import grid
from infra.errors import ConfigurationError
from infra.store import storage
from infra.store.artifacts import ArtifactRef, facts_of
from tasks.augment import stage as augment
from tasks.llm.own_server import serving
from tasks.models import load_tokenizer, resolve
from tasks.plan.hardware import Hardware
from tasks.plan.model import Plan, StagePlan
from tasks.rows import KEPT, read_rows
from tasks.seeds.stage import Sources
from tasks.tokens.rows import TokenisedRow, tokenise
from tests.support import cli
from tests.support.endpoint import endpoint, tell
from tests.support.stages import augment_workspace, load


def _planned(**parameters: Any) -> Plan:
    from flows.distill import distill

    made = distill(plan_only=True, **parameters)
    assert isinstance(made, Plan)
    return made


def _stage(plan: Plan, name: str) -> StagePlan:
    return next(stage for stage in plan.stages if stage.name == name)


def _stages_in(bucket: str) -> set[str]:
    """What lies there, but for what runs have said for whoever waits for them."""
    return {name.partition("/")[0] for name in storage.keys(f"s3://{bucket}/")} - {"dispatched"}


@pytest.mark.usefixtures("prefect")
def test_the_demos_plan_is_near_what_the_demo_takes(bucket: str) -> None:
    from flows.params import PRESETS

    options = PRESETS["demo"].augmentation.model_copy(update={"expansions_per_seed": 3})
    plan = _planned(augmentation=options)
    assert _stages_in(bucket) == {"seeds"}
    assert (plan.seeds, plan.heldout, plan.rows_at_most) == (200, 640, True)
    assert [_stage(plan, name).steps for name in ("sft", "sft_control", "kd")] == [400, 400, 400]
    assert plan.problems == []

    rows = _augmented(options)
    assert plan.rows / 1.5 < rows.counts["rows"] <= plan.rows
    tokens, supervised = _tokens(rows)
    assert plan.tokens_per_row == pytest.approx(tokens, rel=0.15)
    assert plan.supervised_tokens_per_row == pytest.approx(supervised, rel=0.15)
    planned = {agent.agent: agent for agent in plan.agents}
    usage = facts_of(rows)["usage"]
    for name, used in usage.items():
        requests = used["requests"] + used["from_cache"]
        assert requests <= planned[name].requests < 1.5 * requests, name
    written = sum(used["completion_tokens"] for used in usage.values())
    assert written < sum(agent.completion_tokens for agent in plan.agents) < 1.5 * written

    after = _planned(augmentation=options)
    assert (after.rows, after.rows_at_most) == (rows.counts["rows"], False)
    assert after.tokens_per_row == pytest.approx(tokens, rel=0.03)
    assert [stage.name for stage in after.stages if stage.done] == ["augment"]


def _augmented(options: Any) -> ArtifactRef:
    seeds = load(Sources.of("demo", None, None), heldout_share=0.1, response_required=False)
    work = augment_workspace(seeds, options, "demo")
    with serving("demo") as endpoint:
        return augment.augment(work, seeds, options, endpoint, lambda *_: None)


def _tokens(rows: ArtifactRef) -> tuple[float, float]:
    """Mean tokens and supervised tokens of a row."""
    tokenizer = load_tokenizer(resolve("demo", "student"))
    tokenised = [tokenise(row, tokenizer, 384) for row in read_rows(rows, KEPT)]
    usable = [row for row in tokenised if isinstance(row, TokenisedRow)]
    tokens, supervised = sum(len(row.ids) for row in usable), sum(row.supervised_tokens for row in usable)
    return tokens / len(usable), supervised / len(usable)


@pytest.mark.usefixtures("prefect")
def test_a_plan_asks_no_llm_and_is_among_the_runs_artifacts(bucket: str) -> None:
    from tasks.augment.settings import Augmentation

    with endpoint() as url:
        options = Augmentation(expansions_per_seed=1, api_base=url, usd_per_million_tokens=(100.0, 100.0), budget_usd=1)
        plan = _planned(agent_model="openai/test", augmentation=options)
        assert tell(url, "stats")["requests"] == 0
    assert _stages_in(bucket) == {"seeds"}
    assert plan.agents
    assert plan.rows == 400
    (problem,) = plan.problems
    assert "augmentation.budget_usd is $1.00" in problem.text
    assert {"plan", "plan-summary"} <= asyncio.run(_artifact_keys())


async def _artifact_keys() -> set[str]:
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        return {str(artifact.key) for artifact in await client.read_artifacts(limit=200)}


@pytest.mark.usefixtures("services")
def test_without_hub_and_key_a_plan_still_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    words = ["--student=7B", "--teacher=72B", "--agent-model=openai/gpt-4o", "--hardware.device=A100-80"]
    found = cli.run("run", "--plan-only", *words, DISTILFLOW_BUCKET="plan-cli")
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    for words_shown in (
        "7B distilled from 72B · plan for 1 × A100-80, nothing spent",
        "✗ student '7B': offline",
        "set OPENAI_API_KEY",
        "more than vLLM may take of 79 GiB: use more or larger devices, or a smaller teacher",
        "student and teacher are as large as in the built-in table",
    ):
        assert words_shown in " ".join(found.stdout.split()), words_shown


SHIPPED = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text())["deployments"]
RUNS: dict[str, dict[str, Any]] = {}
for deployment in SHIPPED:
    told = deployment.get("parameters", {})
    if deployment["entrypoint"] == "flows.distill.distill":
        RUNS[deployment["name"]] = told
    elif deployment["entrypoint"] == "flows.sweep.sweep":
        points = grid(told["students"], told["teachers"], told["ks"], None, {}, told["shared"])
        RUNS |= {f"sweep {point.name}": point.parameters for point in points}
    elif deployment["entrypoint"] == "flows.experiment.experiment" and told["name"] in ("order", "student_size"):
        asked = experiment_named(told["name"], told["student"], told["teacher"]).model_copy(update={"repeats": 1})
        RUNS |= {f"experiment {point.name}": point.parameters for _, point in asked.runs(told["shared"]).values()}


@pytest.mark.usefixtures("prefect", "bucket")
@pytest.mark.parametrize("name", RUNS)
def test_what_is_shipped_is_planned_for_eight_h100_without_a_problem_but_hub_and_key(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own parameters, but for the seeds, which are the user's; models are those of the built-in table."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**13))
    node = Hardware(device="H100", devices=8)
    told = distill.validate_parameters({"hardware": node} | RUNS[name] | {"seeds": "demo", "plan_only": True})
    assert told["hardware"] == node
    plan = distill(**told)
    assert isinstance(plan, Plan)
    about = [problem.text for problem in plan.problems]
    assert [text for text in about if "offline" not in text and "OPENAI_API_KEY" not in text] == []
    assert (plan.device, plan.devices) == ("H100", 8)
    assert plan.chosen, "nothing is set by hand"


@pytest.mark.usefixtures("prefect", "bucket")
def test_a_provider_that_cannot_be_reached_is_a_problem_of_the_plan() -> None:
    from tasks.augment.settings import Augmentation

    with endpoint() as url:
        pass  # and it is gone
    plan = _planned(agent_model="openai/test", augmentation=Augmentation(expansions_per_seed=1, api_base=url))
    assert any(problem.stops and "cannot be reached" in problem.text for problem in plan.problems)
    assert any("no price" in problem.text for problem in plan.problems)
    assert sum(agent.requests for agent in plan.agents) > 0


@pytest.mark.usefixtures("prefect", "bucket")
def test_without_augmentation_rows_are_counted() -> None:
    from tasks.augment.settings import Augmentation

    plan = _planned(augmentation=Augmentation(enabled=False))
    assert (plan.rows, plan.rows_at_most, plan.agents) == (200, False, [])
    assert _stage(plan, "augment").usd == 0


@pytest.mark.usefixtures("prefect", "bucket")
def test_settings_that_contradict_each_other_are_refused() -> None:
    from tasks.train.settings import Distillation

    with pytest.raises(ConfigurationError, match="kd.tail=bucket needs kd.temperature=1, not 2"):
        _planned(kd=Distillation(tail="bucket"), seeds="demo")


def test_a_stage_whose_data_cannot_be_reached_is_not_done_and_stops_no_plan() -> None:
    from flows.plan import Finder
    from tasks.evaluate.benchmarks.settings import Benchmarks
    from tasks.evaluate.benchmarks.stage import AnswerBenchmarks
    from tasks.evaluate.settings import Evaluation

    finder = Finder()
    asked = Benchmarks(ifeval="missing.jsonl")
    models = {"base": resolve("demo", "student")}
    assert finder.find(AnswerBenchmarks(models=models, options=asked, evaluation=Evaluation())) == {}
    assert finder.found == {}
