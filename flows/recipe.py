"""What makes one student: a run's parameters with its preset merged in, contradictions refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from flows.params import Model, Settings, preset_for, with_preset
from flows.reproduce import changed, command
from infra.errors import ConfigurationError, in_one_sentence
from tasks.augment.settings import Augmentation
from tasks.evaluate.benchmarks import artifacts
from tasks.evaluate.benchmarks.settings import Benchmarks, Judging
from tasks.evaluate.settings import Evaluation
from tasks.fit.settings import Fit
from tasks.logits.settings import Scoring
from tasks.quantise.settings import Quantisation
from tasks.report.data import RunInfo
from tasks.rollout.settings import Rounds
from tasks.rows import Turns
from tasks.seeds.settings import Reading
from tasks.seeds.stage import Sources
from tasks.shipped import LLMS, MODELS
from tasks.train.settings import Distillation, Order, Training, TrainingRun

EVERY_OTHER = "*"  # task category, of `teachers`


def settings_for(
    student: str,
    k: int,
    augmentation: Augmentation | None = None,
    sft: Training | None = None,
    scoring: Scoring | None = None,
    kd: Distillation | None = None,
    evaluation: Evaluation | None = None,
    run: TrainingRun | None = None,
    benchmarks: Benchmarks | None = None,
    judging: Judging | None = None,
    data: Reading | None = None,
    fit: Fit | None = None,
    rounds: Rounds | None = None,
    quantise: Quantisation | None = None,
) -> Settings:
    """The student's preset with what was said in its place; the top-K KL of the evaluation is over `k` unless said.

    Raises ConfigurationError that names every contradiction between what was said and the preset.
    """
    preset = preset_for(student)
    problems: list[str] = []

    def merged(given: Model | None, of_preset: Model) -> Model:
        try:
            return with_preset(given, of_preset)
        except ConfigurationError as error:
            problems.append(str(error))
            return of_preset

    settings = Settings(
        augmentation=merged(augmentation, preset.augmentation),
        sft=merged(sft, preset.sft),
        kd=merged(kd, preset.kd),
        scoring=merged(scoring, preset.scoring),
        evaluation=merged(evaluation, preset.evaluation).following(k),
        run=merged(run, preset.run),
        benchmarks=merged(benchmarks, preset.benchmarks),
        judging=merged(judging, preset.judging),
        data=merged(data, preset.data),
        fit=merged(fit, preset.fit),
        rounds=merged(rounds, preset.rounds),
        quantise=merged(quantise, preset.quantise),
    )
    if settings.scoring.stored(k) < k:
        problems.append(f"scoring.k={settings.scoring.k} stores fewer log-probabilities than are learnt from (k={k})")
    if problems:
        raise ConfigurationError(in_one_sentence(problems))
    return settings


_KD_IS = {"kd": "KD alone", "kd_sft": "KD, then SFT"}


class Recipe(BaseModel):
    """Everything that changes what a run makes, and how it is made; not where its stages run."""

    model_config = ConfigDict(frozen=True)

    student: str = "demo"
    teacher: str = "demo"
    teachers: dict[str, str] | None = None
    seeds: str = "demo"
    k: int = 10
    agent_model: str = "demo"
    heldout: str | None = None
    heldout_share: float = 0.1
    databases: str | None = None
    seed: int = 0
    turns: Turns = "all"
    order: Order = "sft_kd"
    judge_model: str = "demo"
    settings: Settings

    @model_validator(mode="after")
    def _has_one_teacher_for_the_rest(self) -> Self:
        rest = (self.teachers or {}).get(EVERY_OTHER, self.teacher)
        if rest != self.teacher:
            raise ConfigurationError(
                f"teachers names {rest} for {EVERY_OTHER!r}, every other category, and teacher is {self.teacher}: "
                "leave one of them out, or name the same"
            )
        return self

    @property
    def routes(self) -> dict[str, tuple[str, ...]]:
        """The teachers beside `teacher`, each with the task categories whose rows it scores."""
        found: dict[str, tuple[str, ...]] = {}
        for category, name in sorted((self.teachers or {}).items()):
            if category != EVERY_OTHER and name != self.teacher:
                found[name] = (*found.get(name, ()), category)
        return found

    @staticmethod
    def of(parameters: Mapping[str, Any]) -> Recipe:
        """From some parameters of `distill`, the others by default; raises as `settings_for` does."""
        plain = {name: value for name, value in parameters.items() if name in Recipe.model_fields}
        nested = {part.name: parameters.get(part.name) for part in dataclasses.fields(Settings)}
        defaults = {name: field.default for name, field in Recipe.model_fields.items()} | plain
        return Recipe(**plain, settings=settings_for(defaults["student"], defaults["k"], **nested))

    @property
    def sources(self) -> Sources:
        return Sources.of(self.seeds, self.heldout, self.databases)

    @property
    def _is_demo(self) -> bool:
        """Whether something shipped takes part: the page says what that means."""
        models = self.student in MODELS["student"] or self.teacher in MODELS["teacher"]
        return models or self.agent_model in LLMS

    @property
    def kd(self) -> Distillation:
        """How KD is trained: where it stands alone, for as long as both would be."""
        how = self.settings
        try:
            return how.kd.in_place_of(how.sft) if self.order == "kd" else how.kd
        except ValueError as error:
            raise ConfigurationError(str(error)) from error

    @property
    def title(self) -> str:
        return f"{self.student} distilled from {self.teacher}"

    def about(self, run: str = "") -> RunInfo:
        """What the report says of the run, which is called so."""
        chosen = self.settings
        shown: dict[str, Any] = {
            "augmentation": chosen.augmentation.identity() if chosen.augmentation.enabled else "off",
            "sft": chosen.sft.model_dump(),
            "kd": chosen.kd.identity(),
            "evaluation": chosen.evaluation.identity(),
        }
        for name, asked in (("run", chosen.run.identity()), ("scoring", chosen.scoring.shown())):
            if asked:
                shown[name] = asked
        if chosen.fit.chooses:
            shown["fit"] = chosen.fit.model_dump()
        if chosen.rounds.rounds:
            shown["rounds"] = chosen.rounds.model_dump()
        if chosen.quantise.formats:
            shown["quantise"] = chosen.quantise.model_dump(mode="json")
        if reading := chosen.data.identity():
            shown["data"] = reading
        if self.routes:
            shown["teachers"] = {**(self.teachers or {}), EVERY_OTHER: self.teacher}
        if self.turns != "all":
            shown["turns"] = self.turns
        if self.order != "sft_kd":
            shown["order"] = _KD_IS[self.order]
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
            demo=self._is_demo,
            settings=shown,
            reproduce=self.command(),
            run=run,
            changed=changed(*self._against_defaults()),
        )

    def command(self) -> str:
        """The command that makes the run again: what differs from the defaults and from the student's preset."""
        return command(*self._against_defaults())

    def _against_defaults(self) -> tuple[dict[str, Any], dict[str, Any], Settings, Settings]:
        """Plain parameters and their defaults, settings and those of the student's preset."""
        plain = {name: getattr(self, name) for name in Recipe.model_fields if name != "settings"}
        defaults = {name: field.default for name, field in Recipe.model_fields.items()}
        preset = preset_for(self.student)
        preset = dataclasses.replace(preset, evaluation=preset.evaluation.following(self.k))
        return plain, defaults, self.settings, preset
