"""What makes one student: a run's parameters with its preset merged in, contradictions refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from flows.params import Settings, preset_for, with_preset
from flows.reproduce import command
from infra.errors import ConfigurationError, in_one_sentence
from tasks.evaluate.benchmarks import artifacts
from tasks.report.data import RunInfo
from tasks.seeds.stage import Sources


class Recipe(BaseModel):
    """Everything that changes what a run makes, and how it is made; not where its stages run."""

    model_config = ConfigDict(frozen=True)

    student: str = "demo"
    teacher: str = "demo"
    seeds: str = "demo"
    k: int = 10
    agent_model: str = "demo"
    heldout: str | None = None
    heldout_share: float = 0.1
    databases: str | None = None
    seed: int = 0
    judge_model: str = "demo"
    settings: Settings

    @staticmethod
    def of(parameters: Mapping[str, Any]) -> Recipe:
        """From parameters of `distill`; raises ConfigurationError where settings contradict each other."""
        plain = {name: value for name, value in parameters.items() if name in Recipe.model_fields}
        preset = preset_for(plain.get("student", "demo"))
        parts: dict[str, Any] = {}
        problems: list[str] = []
        for part in dataclasses.fields(Settings):
            try:
                parts[part.name] = with_preset(parameters.get(part.name), getattr(preset, part.name))
            except ConfigurationError as error:
                problems.append(str(error))
        if problems:
            raise ConfigurationError(in_one_sentence(problems))
        parts["evaluation"] = parts["evaluation"].following(plain.get("k", 10))
        return Recipe(**plain, settings=Settings(**parts))

    @property
    def sources(self) -> Sources:
        return Sources.of(self.seeds, self.heldout, self.databases)

    @property
    def title(self) -> str:
        return f"{self.student} distilled from {self.teacher}"

    def about(self) -> RunInfo:
        """What the report says of the run."""
        chosen = self.settings
        shown: dict[str, Any] = {
            "augmentation": chosen.augmentation.identity() if chosen.augmentation.enabled else "off",
            "sft": chosen.sft.model_dump(),
            "kd": chosen.kd.model_dump(),
            "evaluation": chosen.evaluation.identity(),
        }
        if chosen.benchmarks.asked:
            shown["benchmarks"] = chosen.benchmarks.model_dump(mode="json", exclude_defaults=True)
            if artifacts.needs_judge(chosen.benchmarks):
                shown["judge"] = {"model": self.judge_model, **chosen.judging.identity()}
        return RunInfo(
            title=self.title,
            student=self.student,
            teacher=self.teacher,
            k=self.k,
            seed=self.seed,
            demo="demo" in (self.student, self.teacher, self.agent_model),
            settings=shown,
            reproduce=self.command(),
        )

    def command(self) -> str:
        """The command that makes the run again: what differs from the defaults and from the student's preset."""
        plain = {name: getattr(self, name) for name in Recipe.model_fields if name != "settings"}
        defaults = {name: field.default for name, field in Recipe.model_fields.items()}
        preset = preset_for(self.student)
        preset = dataclasses.replace(preset, evaluation=preset.evaluation.following(self.k))
        return command(plain, defaults, self.settings, preset)
