"""The command in a report, typed again, is the run that the report is about."""

from __future__ import annotations

import inspect
import shlex
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from flows.commands import main
from flows.distill import distill
from flows.params import PRESETS, Preset, with_preset
from flows.reproduce import _DEFAULTS, command
from tasks.augment.settings import Augmentation
from tasks.evaluate.settings import Evaluation
from tasks.logits.settings import Scoring
from tasks.train.settings import Distillation, Lora, Training, TrainingRun

NAMED = {"student": "0.5B", "teacher": "72B", "k": 10, "seed": 0}


def typed(line: str) -> dict[str, Any]:
    """What the flow is given when the line is typed."""
    words = shlex.split(line)
    assert words[:2] == ["distilflow", "run"]
    main.register_flow("run")
    _command, bound, _ignored = main.app.parse_args(words[1:], exit_on_error=False, print_error=False)
    return dict(bound.kwargs)


def used(preset: Preset, told: dict[str, Any]) -> Preset:
    names = ("augmentation", "sft", "kd", "scoring", "evaluation", "run")
    parts = (preset.augment, preset.sft, preset.kd, preset.scoring, preset.evaluation, preset.run)
    return Preset(*(with_preset(told.get(name), part) for name, part in zip(names, parts, strict=True)))


def test_the_defaults_are_the_flows() -> None:
    parameters = inspect.signature(distill.fn).parameters
    assert {name: parameters[name].default for name in _DEFAULTS} == _DEFAULTS


def test_a_run_by_the_preset_names_models_k_and_seed_alone() -> None:
    preset = PRESETS["0.5B"]
    assert command({**NAMED, **_DEFAULTS}, preset, preset) == (
        "distilflow run --student 0.5B --teacher 72B --k 10 --seed 0"
    )


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
)
def test_typed_again_it_gives_the_same_settings(
    seeds: str, augmentation: Augmentation, sft: Training, kd: Distillation, evaluation: Evaluation, size: str
) -> None:
    preset = PRESETS[size]
    told = {
        "augmentation": augmentation,
        "sft": sft,
        "kd": kd,
        "evaluation": evaluation,
        "scoring": Scoring(max_length=99),
        "run": TrainingRun(zero_stage=3),
    }
    wanted = used(preset, told)
    again = typed(command({**NAMED, **_DEFAULTS, "student": size, "seeds": seeds}, wanted, preset))
    assert used(preset, again) == wanted
    assert again["student"] == size
    assert again.get("seeds", "demo") == seeds


def test_no_address_of_a_provider_is_told() -> None:
    preset = PRESETS["0.5B"]
    given = used(preset, {"augmentation": Augmentation(api_base="http://secret-host/v1")})
    assert "secret" not in command({**NAMED, **_DEFAULTS}, given, preset)
