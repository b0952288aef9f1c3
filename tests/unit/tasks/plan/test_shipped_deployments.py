"""What is shipped can run: every deployment of a Qwen2.5, planned for one node of eight 80 GB GPUs, stops nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.params import PRESETS, with_preset
from tasks.evaluate.settings import Evaluation
from tasks.logits.settings import Scoring
from tasks.plan.hardware import Device, Hardware, machine
from tasks.plan.lengths import Lengths
from tasks.plan.plan import make_plan
from tasks.plan.problems import find
from tasks.plan.sizes import size_of
from tasks.train.settings import Distillation, Training, TrainingRun
from tests.support.plan_known import known

SHIPPED = yaml.safe_load((Path(__file__).parents[4] / "prefect.yaml").read_text())["deployments"]
RUNS: list[tuple[str, str, str, dict[str, Any]]] = []
for deployment in SHIPPED:
    told = deployment.get("parameters", {})
    if "student:" in " ".join(deployment["tags"]):
        RUNS.append((deployment["name"], told["student"], told["teacher"], told))
    elif deployment["entrypoint"].endswith("sweep"):
        RUNS.extend(("sweep", s, t, told["shared"]) for s in told["students"] for t in told["teachers"])


@pytest.mark.parametrize("device", ["A100-80", "H100"])
@pytest.mark.parametrize(("name", "student", "teacher", "told"), RUNS, ids=lambda value: str(value)[:20])
def test_it_fits_a_node_of_eight(name: str, student: str, teacher: str, told: dict[str, Any], device: Device) -> None:
    preset = PRESETS[student]

    def settings(kind: Any, field: str, of: Any) -> Any:
        return with_preset(kind.model_validate(told[field]) if field in told else None, of)

    plan = make_plan(
        known(
            student=size_of(student, None),
            teacher=size_of(teacher, None),
            sft=settings(Training, "sft", preset.sft),
            kd=settings(Distillation, "kd", preset.kd),
            scoring=settings(Scoring, "scoring", preset.scoring),
            evaluation=settings(Evaluation, "evaluation", preset.evaluation),
            run=settings(TrainingRun, "run", preset.run),
            machine=machine(Hardware(device=device, devices=8)),
            rows=100_000,
            lengths=Lengths([200, 400, 900], [100, 300, 600]),
            heldout_lengths=Lengths([200, 400, 900], [100, 300, 600]),
            disk_free=10**13,
        ),
        find,
    )
    assert [problem.text for problem in plan.problems if problem.stops] == []


def test_every_student_of_the_paper_is_shipped_and_swept() -> None:
    assert {student for _name, student, _teacher, _told in RUNS} == {"0.5B", "1.5B", "3B", "7B"}
    assert {teacher for _name, _student, teacher, _told in RUNS} == {"14B", "32B", "72B"}
