"""What the server says of a wrong parameter, before a run is made of it."""

from __future__ import annotations

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.distill import distill
from flows.sweep import sweep
from tasks.models import STUDENTS, TEACHERS

FIRST = ("student", "teacher", "seeds", "heldout", "agent_model", "k", "augmentation", "kd", "stages_on", "plan_only")
SCHEMAS = {flow.name: parameter_schema(flow.fn).model_dump() for flow in (distill, sweep)}


@pytest.mark.parametrize(
    ("flow", "given"), [("distill", {"student": "33B"}), ("sweep", {"students": ["demo", "33B"]})], ids=lambda x: str(x)
)
def test_a_student_that_is_none_is_refused_with_the_choices(flow: str, given: dict[str, object]) -> None:
    with pytest.raises(
        ValidationError,
        match=r"'33B' is not one of \['demo', 'demo-small', 'demo-medium', '0.5B', .*'a folder or hub name",
    ):
        validate(given, SCHEMAS[flow], raise_on_error=True)


@pytest.mark.parametrize("student", ["demo", "0.5B", "Qwen/Qwen2.5-0.5B-Instruct", "./mine"])
def test_presets_folders_and_hub_names_are_taken(student: str) -> None:
    validate({"student": student, "teacher": "demo"}, SCHEMAS["distill"], raise_on_error=True)


def test_what_people_change_most_comes_first_in_the_form() -> None:
    """Prefect's form shows parameters by their position."""
    shown = SCHEMAS["distill"]["properties"]
    assert tuple(sorted(shown, key=lambda name: shown[name]["position"]))[: len(FIRST)] == FIRST


@pytest.mark.parametrize(("parameter", "presets"), [("students", STUDENTS), ("teachers", TEACHERS)])
def test_models_of_a_sweep_are_picked_from_a_list(parameter: str, presets: dict[str, str]) -> None:
    picked, written = SCHEMAS["sweep"]["properties"][parameter]["anyOf"]
    assert set(presets) < set(picked["items"]["enum"])
    assert written["items"] == {"type": "string"}


@pytest.mark.parametrize("students", [["demo"], ["0.5B", "7B"], ["0.5B", "Qwen/Qwen2.5-0.5B-Instruct"]])
def test_a_sweep_takes_presets_and_hub_names_side_by_side(students: list[str]) -> None:
    validate({"students": students}, SCHEMAS["sweep"], raise_on_error=True)


def test_a_sweep_of_no_student_is_refused() -> None:
    with pytest.raises(ValidationError):
        validate({"students": []}, SCHEMAS["sweep"], raise_on_error=True)
