"""`prefect.yaml`: every deployment's parameters are what its flow takes, and the paper's presets are what it says."""

import tomllib
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from flows.experiments import Name
from flows.grid import DEPLOYMENTS, grid
from flows.params import PRESETS, with_preset
from tasks.models import STUDENTS, TEACHERS

ROOT = Path(__file__).parents[2]
FILE = yaml.safe_load((ROOT / "prefect.yaml").read_text())
BY_NAME: dict[str, dict[str, Any]] = {}
for deployment in FILE["deployments"]:
    flow_name = deployment["entrypoint"].split(".")[-1]
    BY_NAME[f"{flow_name}/{deployment['name']}"] = deployment


def _flow(name: str) -> Flow[..., Any]:
    flow: Flow[..., Any] = load_flow_from_entrypoint(BY_NAME[name]["entrypoint"])
    return flow


def _schema(name: str) -> dict[str, Any]:
    schema = parameter_schema(_flow(name)).model_dump_for_openapi()
    return {**schema, "definitions": schema.get("definitions", {})}


def test_all_deployments_are_there() -> None:
    wanted = {f"distill/qwen2.5-{size}" for size in ("0.5b", "1.5b", "3b", "7b")}
    wanted |= {"distill/demo", "sweep/teacher-size", "stage/gpu", "gc/weekly"}
    wanted |= {f"experiment/{name}" for name in get_args(Name)}
    assert wanted <= BY_NAME.keys()
    assert set(DEPLOYMENTS.values()) <= BY_NAME.keys()


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_a_deployments_parameters_fit_its_flow(name: str) -> None:
    given = BY_NAME[name].get("parameters", {})
    assert _flow(name).name == name.split("/")[0]
    jsonschema.validate(given, {**_schema(name), "additionalProperties": False, "required": []})
    if name.startswith("distill/"):
        _flow(name).validate_parameters(given)
    if name.startswith("experiment/"):
        assert given["name"] == name.split("/")[1]


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_a_deployment_is_described_versioned_and_pulled_from_nowhere(name: str) -> None:
    deployment = BY_NAME[name]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert deployment["version"] == version
    assert deployment["tags"]
    assert len(deployment["description"]) > 40
    assert ":" not in deployment["entrypoint"], "a file's folder on sys.path shadows libraries: name the module"
    assert FILE["pull"] == [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}]


@pytest.mark.parametrize("size", list(STUDENTS))
def test_a_students_deployment_leaves_its_settings_to_the_preset(size: str) -> None:
    """Another student chosen in the run form has its own settings, not this one's."""
    given, preset = BY_NAME[f"distill/qwen2.5-{size.lower()}"]["parameters"], PRESETS[size]
    assert given["student"] == size
    assert given["teacher"] in TEACHERS
    assert given["k"] == 10
    assert not given.keys() & {"augmentation", "sft", "kd", "run"}
    assert (preset.sft.epochs, preset.sft.learning_rate, preset.kd.kd_weight) == (3, 2e-5, 0.5)
    assert preset.augmentation.max_rows == 100_000


def test_schedules_are_weekly_and_wait_to_be_switched_on() -> None:
    schedules = [schedule for deployment in BY_NAME.values() for schedule in deployment.get("schedules", [])]
    assert [(s["cron"], s["active"]) for s in schedules] == [("0 3 * * 1", False), ("0 1 * * 0", False)]


def test_the_run_form_has_words_bounds_and_choices_for_every_parameter() -> None:
    for name in ("distill/demo", "sweep/teacher-size", "experiment/k", "stage/gpu", "gc/weekly"):
        schema = _schema(name)
        for parameter, shown in schema["properties"].items():
            assert shown.get("description"), (name, parameter)
        for model, shown in schema["definitions"].items():
            for field, described in shown["properties"].items():
                assert described.get("description") or "$ref" in str(described), (model, field)


def test_the_run_form_fills_in_nothing_and_tells_what_the_presets_are() -> None:
    settings = _schema("distill/demo")["definitions"]
    for model in ("Augmentation", "Training", "Distillation", "Scoring", "Evaluation", "TrainingRun", "Judging"):
        for name, field in settings[model]["properties"].items():
            assert "default" not in field, (model, name)
            assert field.get("type") != "boolean", f"the form sends {name} of {model} as off where nobody touched it"
            first = field.get("anyOf", [{}])[0]
            assert "$ref" not in first, f"the form sends all defaults of {first}"
    told = {model: {n: f["description"] for n, f in settings[model]["properties"].items()} for model in settings}
    assert told["Training"]["learning_rate"].endswith("(preset: 2e-05; demo: 0.005)")
    assert told["TrainingRun"]["zero_stage"].endswith("(preset: auto)")
    assert told["TrainingRun"]["gradient_checkpointing"].endswith("(preset: auto)")
    assert told["Augmentation"]["max_rows"].endswith("(preset: 100000; demo: none)")
    assert "preset" not in told["TrainingRun"]["hostfile"]


@pytest.mark.parametrize(
    ("typed", "changed"),
    [
        ({}, {}),
        ({"learning_rate": 2e-5}, {"learning_rate": 2e-5}),  # the paper's own
        ({"max_steps": None, "epochs": 3}, {"max_steps": None}),
    ],
)
def test_what_is_typed_holds_and_what_is_not_is_the_presets(typed: dict[str, Any], changed: dict[str, Any]) -> None:
    jsonschema.validate({"sft": typed}, _schema("distill/demo"))
    given = _flow("distill/demo").validate_parameters({"sft": typed})["sft"]
    demo = PRESETS["demo"].sft
    assert with_preset(given, demo) == demo.model_copy(update=changed)


@pytest.mark.parametrize(
    "wrong",
    [
        {"student": "0.7B"},
        {"teacher": "7b"},
        {"k": 0},
        {"k": 1000},
        {"heldout_share": 1},
        {"kd": {"divergence": "backward_kl"}},
        {"kd": {"kd_weight": 1.5}},
        {"sft": {"epoch": 3}},
        {"run": {"zero_stage": 4}},
        {"evaluation": {"max_rows": 0}},
        {"augmentation": {"enabled": "no"}},
    ],
)
def test_the_form_and_the_server_refuse_wrong_values(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, _schema("distill/demo"))


def test_the_teacher_sweep_is_a_grid_of_runs() -> None:
    given = BY_NAME["sweep/teacher-size"]["parameters"]
    points = grid(given["students"], given["teachers"], given["ks"], None, {}, given["shared"])
    assert [point.name for point in points] == ["0.5B-from-14B-k10", "0.5B-from-32B-k10", "0.5B-from-72B-k10"]
