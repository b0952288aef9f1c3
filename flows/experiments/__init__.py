"""The experiments that are shipped: one file each, a question with its arms."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flows.grid import GridPoint, checked_points, nested
from infra.errors import ConfigurationError
from tasks.report.experiment.arms import ArmRun
from tasks.report.experiment.question import ExperimentQuestion
from tasks.shipped import MODELS

Name = Literal[
    "agents",
    "data_size",
    "inheritance",
    "k",
    "objective",
    "order",
    "rounds",
    "student_size",
    "teacher_size",
]


class Arm(BaseModel):
    """One answer to the question: parameters of `distill`, and the variant of that run that is looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    parameters: dict[str, Any] = {}
    variant: str = "kd"


class Experiment(BaseModel):
    """A question, its arms, and what all of them have. `demo` has what is otherwise with a shipped student.

    Arms are listed, or every combination of the values in `axes`; parameters may name a nested setting with dots.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: ExperimentQuestion
    axes: dict[str, list[Any]] = {}
    arms: tuple[Arm, ...] = ()
    shared: dict[str, Any] = {}
    repeats: int = Field(3, ge=1, description="seeds")
    demo: dict[str, Any] = {}

    @model_validator(mode="after")
    def _has_arms_in_one_way(self) -> Self:
        if bool(self.axes) == bool(self.arms):
            raise ValueError("an experiment has `axes`, or `arms`")
        return self

    @property
    def all_arms(self) -> list[Arm]:
        """Those that are listed, or the combinations, each named by its values."""
        if self.arms:
            return list(self.arms)
        found = []
        for values in itertools.product(*self.axes.values()):
            chosen = dict(zip(self.axes, values, strict=True))
            found.append(
                Arm(
                    name=", ".join(f"{_short(key)} {_shown(value)}" for key, value in chosen.items()), parameters=chosen
                )
            )
        return found

    def runs(self, given: Mapping[str, Any]) -> dict[tuple[str, int], tuple[Arm, GridPoint]]:
        """Every arm under every seed, with the run that it is looked at in; arms may share one.

        `given` has parameters for all. Raises ConfigurationError where an arm varies one of them, or `distill` would
        not take a run.
        """
        arms = self.all_arms
        if twice := sorted({key for arm in arms for key in arm.parameters} & set(given)):
            raise ConfigurationError(f"{', '.join(twice)}: the experiment varies this itself; leave it out")
        found: dict[tuple[str, int], tuple[Arm, GridPoint]] = {}
        same: dict[str, GridPoint] = {}
        for seed, arm in itertools.product(range(self.repeats), arms):
            parameters = nested({**self.shared, **given, **arm.parameters, "seed": seed})
            point = GridPoint(f"{arm.name}, seed {seed}", parameters, arm.name)
            found[arm.name, seed] = arm, same.setdefault(json.dumps(parameters, sort_keys=True), point)
        checked_points(same.values())
        return found

    def arm_run(self, arm: Arm, seed: int, **outcome: Any) -> ArmRun:
        return ArmRun(arm=arm.name, seed=seed, variant=arm.variant, place=arm.parameters, **outcome)


def experiment_named(name: Name, student: str, teacher: str) -> Experiment:
    """The shipped experiment of that name, as it is for this student and this teacher."""
    found = dict(_read(name))
    demo = found.pop("demo", {})
    if student in MODELS["student"] or teacher in MODELS["teacher"]:
        found = {**found, **demo}
    found.setdefault("question", {})
    experiment = Experiment.model_validate(found)
    names = {"student": student, "teacher": teacher}
    varied = {key for arm in experiment.all_arms for key in arm.parameters}
    return experiment.model_copy(
        update={"shared": {**{key: value for key, value in names.items() if key not in varied}, **experiment.shared}}
    )


@cache
def _read(name: str) -> Mapping[str, Any]:
    content: Mapping[str, Any] = yaml.safe_load(
        resources.files(__package__).joinpath(f"{name}.yaml").read_text("utf-8")
    )
    return content


def _short(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float) else json.dumps(value)
