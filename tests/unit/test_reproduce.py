"""The command in a report, typed again, is the run that the report is about."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
from typing import Any

import pytest
from cyclopts import CycloptsError
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from flows.commands import main
from flows.commands.mistakes import sentence
from flows.distill import distill
from flows.params import PRESETS, Settings
from flows.recipe import Recipe
from infra.errors import ConfigurationError
from tasks.augment.settings import Augmentation
from tasks.evaluate.settings import Evaluation
from tasks.logits.settings import Scoring
from tasks.train.settings import Distillation, Lora, Training, TrainingRun


def typed(line: str) -> dict[str, Any]:
    """What the flow is given when the line is typed."""
    words = shlex.split(line)
    assert words[:2] == ["distilflow", "run"]
    main.register_flow("run")
    _command, bound, _ignored = main.app.parse_args(words[1:], exit_on_error=False, print_error=False)
    return dict(bound.kwargs)


def test_the_defaults_are_the_flows() -> None:
    parameters = inspect.signature(distill.fn).parameters
    plain = {name: field.default for name, field in Recipe.model_fields.items() if name != "settings"}
    assert {name: parameters[name].default for name in plain} == plain
    nested = {field.name for field in dataclasses.fields(Settings)}
    assert parameters.keys() - plain.keys() - nested == {"stages_on", "job_variables", "plan_only", "hardware"}


def test_a_run_by_the_preset_names_models_k_and_seed_alone() -> None:
    recipe = Recipe.of({"student": "0.5B", "teacher": "72B"})
    assert recipe.command() == "distilflow run --student 0.5B --teacher 72B --k 10 --seed 0"
    assert Recipe.of({"k": 5}).command() == "distilflow run --student demo --teacher demo --k 5 --seed 0"


def test_a_k_reaches_everything_that_has_one() -> None:
    assert Recipe.of({"k": 5}).settings.evaluation.top_k == 5
    assert Recipe.of({"k": 5, "evaluation": Evaluation(top_k=3)}).settings.evaluation.top_k == 3


def test_what_contradicts_the_preset_is_refused_and_what_only_contradicts_a_default_is_not() -> None:
    with pytest.raises(ConfigurationError, match=r"kd.tail=bucket needs kd.temperature=1, not 2: the teacher's tail"):
        Recipe.of({"student": "demo", "kd": Distillation(tail="bucket")})
    offloaded = Recipe.of({"student": "7B", "run": TrainingRun(offload="parameters")})  # the stage is chosen to fit it
    assert offloaded.settings.run.offload == "parameters"
    with pytest.raises(ValidationError, match=r"run.offload=parameters needs run.zero_stage=3 or more, not 1"):
        TrainingRun(offload="parameters", zero_stage=1)
    with pytest.raises(ValidationError, match="needs kd.temperature=1"):
        Distillation(tail="bucket", temperature=2)


@settings(max_examples=30)
@given(
    seeds=st.sampled_from(["demo", "my seeds.jsonl", "s3://b/it's.jsonl"]),
    augmentation=st.sampled_from(
        [
            Augmentation(enabled=False),
            Augmentation(routes={"zh": "dashscope/qwen-max", "sql_join": "a/b c"}, fallbacks=("x/1", "y/2")),
            Augmentation(usd_per_million_tokens=(0.5, 2.0), rewriting=False, budget_usd=3.5),
        ]
    ),
    sft=st.sampled_from([Training(learning_rate=3e-7), Training(lora=Lora(rank=8)), Training(max_steps=7)]),
    kd=st.sampled_from([Distillation(tail="bucket"), Distillation(temperature=1.5, divergence="reverse_kl")]),
    evaluation=st.sampled_from([Evaluation(), Evaluation(samples=4, engine="transformers")]),
    size=st.sampled_from(sorted(PRESETS)),
    teachers=st.sampled_from([None, {"code writing": "32B", "it's": "a/b c"}]),
)
def test_typed_again_it_gives_the_same_settings(
    seeds: str,
    augmentation: Augmentation,
    sft: Training,
    kd: Distillation,
    evaluation: Evaluation,
    size: str,
    teachers: dict[str, str] | None,
) -> None:
    told = {
        "student": size,
        "seeds": seeds,
        "augmentation": augmentation,
        "sft": sft,
        "kd": kd,
        "evaluation": evaluation,
        "scoring": Scoring(max_length=99),
        "run": TrainingRun(zero_stage=3),
        "teachers": teachers,
    }
    if size == "demo" and kd.tail == "bucket":
        told["kd"] = Distillation(tail="bucket", temperature=1.0)
    wanted = Recipe.of(told)
    assert Recipe.of(typed(wanted.command())) == wanted


def test_no_address_of_a_provider_is_told() -> None:
    given = Augmentation(api_base="http://secret-host/v1")
    assert "secret" not in Recipe.of({"student": "0.5B", "augmentation": given}).command()


def test_flags_that_contradict_each_other_are_refused_in_the_words_of_the_rule() -> None:
    main.register_flow("run")
    words = ["run", "--kd.tail=bucket", "--kd.temperature=2"]
    with pytest.raises(CycloptsError) as refused:
        main.app.parse_args(words, exit_on_error=False, print_error=False)
    rule = "kd.tail=bucket needs kd.temperature=1, not 2: the teacher's tail is known at 1 only"
    assert sentence(refused.value) == rule
