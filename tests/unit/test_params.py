"""What the server says of a wrong parameter, before a run is made of it."""

from __future__ import annotations

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.distill import distill
from flows.sweep import sweep

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
