"""A run's parameters, and the presets behind a student's name.

The parameters `student`, `teacher`, `seeds`, `k` … are top-level, so that `--param teacher=32B` works; the
nested ones need only the fields that differ: what is left out comes from the student's preset.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, GetJsonSchemaHandler, ValidationError, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from infra.errors import ConfigurationError
from tasks import shipped
from tasks.augment.settings import Augmentation
from tasks.evaluate.benchmarks.settings import Benchmarks, Judging
from tasks.evaluate.settings import Evaluation
from tasks.fit.settings import Fit
from tasks.logits.settings import Scoring
from tasks.models import STUDENTS, TEACHERS
from tasks.quantise.settings import Quantisation
from tasks.rollout.settings import Rounds
from tasks.seeds.settings import Reading
from tasks.train.settings import Distillation, Training, TrainingRun

Model = TypeVar("Model", bound=BaseModel)


def _model_name(role: str, presets: dict[str, str]) -> WithJsonSchema:
    """What the run form offers and the server accepts; the flow itself says more."""
    names = [*shipped.MODELS[role], *presets]
    preset, other = {"title": "preset", "enum": names}, {"title": "folder or hub name"}
    return WithJsonSchema(
        {"anyOf": [{**preset, "type": "string"}, {**other, "type": "string"}], **_refused_by_name(names)}
    )


def _model_names(role: str, presets: dict[str, str]) -> WithJsonSchema:
    """Of several: the run form has a list to pick presets from, and another to write folders and hub names into."""
    names = [*shipped.MODELS[role], *presets]
    several: dict[str, Any] = {"type": "array", "minItems": 1}
    picked = {**several, "title": "presets", "items": {"type": "string", "enum": names}}
    written = {**several, "title": "folders and hub names too", "items": {"type": "string"}}
    return WithJsonSchema({"anyOf": [picked, written], "items": _refused_by_name(names)})


def _refused_by_name(names: list[str]) -> dict[str, Any]:
    """A refusal by `then` names the choices ("'33B' is not one of ['demo', …]"), where one by `anyOf` names none."""
    otherwise = {"enum": [*names, "a folder or hub name (with a /)"]}  # which, having a /, never gets here
    return {"if": {"not": {"pattern": "/"}}, "then": otherwise}


StudentName = Annotated[str, _model_name("student", STUDENTS)]
TeacherName = Annotated[str, _model_name("teacher", TEACHERS)]
StudentNames = Annotated[list[StudentName], Field(min_length=1), _model_names("student", STUDENTS)]
TeacherNames = Annotated[list[TeacherName], Field(min_length=1), _model_names("teacher", TEACHERS)]


@dataclass(frozen=True)
class OfPreset:
    """Optional settings of which only what differs from the student's preset is given; `part` is their name there.

    In the run form their fields are empty and tell the presets' values: Prefect's form would fill in a default and
    send it, as if somebody had asked for it.
    """

    part: str

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        for name, shown in handler.resolve_ref_schema(schema["anyOf"][0])["properties"].items():
            shown.pop("default", None)
            if shown.get("type") == "boolean":  # the form would send "off" for a switch that nobody touched
                shown["enum"] = [True, False]
                del shown["type"]
            if any(kind.get("type") == "boolean" for kind in shown.get("anyOf", ())):
                shown["enum"] = [True, False, *(kind["const"] for kind in shown.pop("anyOf") if "const" in kind)]
            if "anyOf" in shown:  # and all defaults of the settings that it names first
                shown["anyOf"].sort(key=lambda kind: "$ref" in kind)
            if values := _preset_values(self.part, name):
                shown["description"] += f" (preset: {values})"
        return schema


@dataclass(frozen=True)
class Settings:
    """All nested settings of a run; a preset is those that suit a student."""

    augmentation: Augmentation
    sft: Training
    kd: Distillation
    scoring: Scoring
    evaluation: Evaluation
    run: TrainingRun
    benchmarks: Benchmarks = field(default_factory=Benchmarks)
    judging: Judging = field(default_factory=Judging)
    data: Reading = field(default_factory=Reading)
    fit: Fit = field(default_factory=Fit)
    rounds: Rounds = field(default_factory=Rounds)
    quantise: Quantisation = field(default_factory=Quantisation)


def _paper() -> Settings:
    """The paper's settings (section 4.1): 100k rows, 3 epochs, rate 2e-5, K = 10, equal weights."""
    return Settings(Augmentation(max_rows=100_000), Training(), Distillation(), Scoring(), Evaluation(), TrainingRun())


_DEMO: dict[str, Any] = {
    "max_steps": 400,
    "global_batch": 32,
    "max_length": 384,
    "warmup_share": 0.1,
    "weight_decay": 0.01,
}
PRESETS: dict[str, Settings] = {
    # rates and temperature: python -m tests.bench demo_rates
    "demo": Settings(
        augmentation=Augmentation(expansions_per_seed=11),
        sft=Training(learning_rate=5e-3, **_DEMO),
        kd=Distillation(learning_rate=3.5e-3, temperature=2.0, **_DEMO),
        scoring=Scoring(max_length=384),
        # vLLM takes 20 s to start, five times, for models that transformers has all answers of in 3 s
        evaluation=Evaluation(engine="transformers", max_new_tokens=64, max_length=384, batch_rows=160),
        run=TrainingRun(),
        benchmarks=Benchmarks(max_new_tokens=64),
        rounds=Rounds(learning_rate=3.5e-4, max_new_tokens=64, engine="transformers", batch_rows=160),
        data=Reading(near_heldout=None),  # its questions are made of a few words: near is not the same
    ),
    **{size: _paper() for size in STUDENTS},
}


def preset_for(student: str) -> Settings:
    """The student's preset; a model of the user's own gets the paper's settings."""
    return PRESETS.get("demo" if student in shipped.MODELS["student"] else student, _paper())


def _preset_values(part: str, name: str) -> str:
    """A setting in the presets: as it usually is, then of students who have it otherwise; empty where none sets it."""
    usual, *others = (getattr(getattr(preset, part), name) for preset in (preset_for(""), *PRESETS.values()))
    differing = [
        f"{student}: {_shown(value)}" for student, value in zip(PRESETS, others, strict=True) if value != usual
    ]
    return "; ".join([_shown(usual), *differing]) if differing or usual not in (None, (), {}) else ""


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def with_preset(given: Model | None, preset: Model) -> Model:
    """The preset, with the fields that were given in their place.

    Raises ConfigurationError where what was given contradicts the preset.
    """
    if given is None:
        return preset
    try:
        return type(preset).model_validate({**preset.model_dump(), **given.model_dump(exclude_unset=True)})
    except ValidationError as error:
        raise ConfigurationError(
            "; ".join(str(wrong.get("ctx", {}).get("error", wrong["msg"])) for wrong in error.errors())
        ) from error
