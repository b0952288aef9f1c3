"""What is sent to a pool: a stage that comes back as it was, and is the same for whoever asks."""

import json
from typing import Any

import pytest

from flows.stage import stage
from infra.errors import ConfigurationError, TransientError
from infra.orchestration import run as module
from infra.orchestration.dispatch import Dispatched
from infra.orchestration.run import Stages
from infra.stage import Made
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.models import ModelSource
from tasks.train.settings import Distillation, Training, TrainingRun
from tasks.train.stage import Train

ROWS = ArtifactRef(kind="augment", uri="s3://b/augment/f/", sha256="d", fingerprint="f", counts={"rows": 3})


class View:
    note = done = pass_on = staticmethod(lambda *_: None)

    def __enter__(self) -> "View":
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Parameters of the runs that were asked for; nothing is finished, and nothing runs."""
    asked: list[dict[str, Any]] = []

    def run_there(wanted: Dispatched) -> Made:
        asked.append(wanted.parameters)
        return Made(refs={"kd": ROWS}, new=("kd",), seconds=3)

    monkeypatch.setattr(module, "run_there", run_there)
    monkeypatch.setattr(module, "_task", lambda *_: lambda function: function)
    monkeypatch.setattr(module, "stage_view", lambda *_: View())
    monkeypatch.setattr(Workspace, "find", lambda self: None)
    return asked


def _kd(data: ArtifactRef, training: Training) -> Train:
    model = ModelSource(name="sft", artifact=data)
    return Train(name="kd", model=model, data=data, training=training, run=TrainingRun(), seed=0)


def test_two_runs_that_want_the_same_stage_ask_in_the_same_words(sent: list[dict[str, Any]]) -> None:
    for data in (ROWS, ROWS.model_copy(), ROWS.model_copy(update={"sha256": "other"})):
        assert Stages("stage/gpu").run(_kd(data, Distillation())) == ROWS
    assert sent[0] == sent[1]
    assert sent[0] != sent[2]


@pytest.mark.parametrize("training", [Training(epochs=2), Distillation(temperature=2.0)])
def test_what_is_sent_is_what_the_stage_gets(
    sent: list[dict[str, Any]], training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _kd(ROWS, training)
    Stages("stage/gpu").run(asked)
    got: list[Train] = []

    def made(self: Train, missing: Any, view: Any) -> dict[str, ArtifactRef]:
        got.append(self)
        return {"kd": ROWS}

    monkeypatch.setattr(Train, "make", made)
    monkeypatch.setattr(Train, "show", lambda *_: "")
    monkeypatch.setattr(Train, "is_shared", True)  # which claims nothing
    monkeypatch.setattr(Train, "slots", lambda *_: {})
    told = json.loads(json.dumps(sent[0]))
    assert stage.fn(told["stage"], told["arguments"]).refs == {"kd": ROWS}
    assert got == [asked]
    assert type(got[0].training) is type(training)


def test_without_a_deployment_the_stage_runs_here(sent: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    here = Made(refs={"kd": ROWS}, new=("kd",), seconds=1)
    monkeypatch.setattr(Stages, "_here", lambda self, stage: here)
    stages = Stages()
    assert stages.run(_kd(ROWS, Distillation())) == ROWS
    assert stages.made == {"kd": here}
    assert sent == []


def test_nobody_is_sent_for_what_is_finished(sent: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workspace, "find", lambda self: ROWS)
    monkeypatch.setattr(Stages, "_here", lambda self, stage: Made(refs={"kd": ROWS}))
    assert Stages("stage/gpu").run(_kd(ROWS, Distillation())) == ROWS
    assert sent == []


def test_with_storage_away_the_stage_is_sent_and_tries_again_there(
    sent: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: Workspace) -> None:
        raise TransientError("S3 does not answer")

    monkeypatch.setattr(Workspace, "find", away)
    assert Stages("stage/gpu").run(_kd(ROWS, Distillation())) == ROWS
    assert len(sent) == 1


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigurationError, match="the arguments of train do not fit"):
        stage.fn("train", {"name": "sft"})
    with pytest.raises(ConfigurationError, match="colour"):
        stage.fn("train", {"colour": 1})
    with pytest.raises(ConfigurationError, match="there is no stage 'report' for workers: use .*train"):
        stage.fn("report", {})
