"""The shipped experiments: each is a set of runs that `distill` takes, and shares whatever can be shared."""

import contextlib
from collections import defaultdict
from typing import Any, get_args

import pytest

from flows.distill import distill
from flows.experiments import Arm, Experiment, Name, experiment_named
from flows.pipeline import pipeline
from flows.plan import Finder
from flows.recipe import Recipe
from infra.errors import ConfigurationError, DistilflowError
from infra.stage import Stage
from tasks.models import resolve
from tasks.report.experiment.question import ExperimentQuestion

NAMES: tuple[Name, ...] = get_args(Name)
QUESTION = ExperimentQuestion(title="t", question="q")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("student", "teacher"), [("demo", "demo"), ("0.5B", "14B")])
def test_every_experiment_is_a_set_of_runs(name: Name, student: str, teacher: str) -> None:
    asked = experiment_named(name, student, teacher).model_copy(update={"repeats": 1})
    given: dict[str, Any] = {} if student == "demo" else {"seeds": "s3://b/s.jsonl", "agent_model": "openai/gpt-4o"}
    runs = asked.runs(given)
    assert len(runs) == len(asked.all_arms) >= 3


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("k", {"augment": 1, "logits": 1, "sft": 3, "sft_control": 3, "kd": 24}),
        ("teacher_size", {"augment": 1, "logits": 3, "sft": 3, "sft_control": 3}),
        ("order", {"augment": 1, "logits": 1, "sft": 3, "sft_control": 3, "kd": 9, "sft_after_kd": 3}),
        ("objective", {"augment": 1, "logits": 1, "sft": 3, "sft_control": 3, "kd": 24}),
        ("rounds", {"augment": 1, "logits": 1, "sft": 3, "kd": 9, "kd_continued": 3}),
        ("student_size", {"augment": 1, "logits": 1, "sft": 9}),
    ],
)
def test_what_arms_share_is_made_once(name: Name, made: dict[str, int], bucket: str) -> None:
    """Counted as the plan does it: every stage of every run is asked for its identity, and nothing is run.

    Stages that are made from what is not there yet are told apart by their settings alone: only those are counted here.
    """
    found: dict[str, set[str]] = defaultdict(set)
    finder = Finder()

    def ask(stage: Stage[Any]) -> Any:
        with contextlib.suppress(DistilflowError):  # of what is not there nothing can be told
            found[stage.title] |= {work.fingerprint for work in stage.workspaces().values()}
        return finder.find(stage)

    for _, point in experiment_named(name, "demo", "demo").runs({}).values():
        recipe = Recipe.of(distill.validate_parameters(point.parameters))
        pipeline(ask, recipe, resolve(recipe.student, "student"), resolve(recipe.teacher, "teacher"))
    assert {title: len(found[title]) for title in made} == made


def test_the_runs_of_inheritance_are_those_of_teacher_size() -> None:
    one, other = (
        {str(point.parameters) for _, point in experiment_named(name, "demo", "demo").runs({}).values()}
        for name in ("inheritance", "teacher_size")
    )
    assert one == other


def test_arms_that_look_at_one_run_share_it() -> None:
    runs = experiment_named("order", "demo", "demo").runs({})
    assert runs["black-box alone (SFT twice)", 0][1] is runs["SFT, then KD (the paper)", 0][1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"k": 5}, "k: the experiment varies this itself"),
        ({"kd.epochs": "many"}, "kd.epochs"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_run(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        experiment_named("k", "demo", "demo").runs(given)


def test_arms_are_listed_or_combined() -> None:
    with pytest.raises(ValueError, match="has `axes`, or `arms`"):
        Experiment(question=QUESTION, axes={"k": [5]}, arms=(Arm(name="a"),))
    combined = Experiment(question=QUESTION, axes={"k": [5, 10], "kd.tail": ["bucket"]})
    assert [arm.name for arm in combined.all_arms] == ["k 5, tail bucket", "k 10, tail bucket"]
