"""What is sent to a pool: arguments that come back as they were, and are the same for whoever asks."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from flows import stage as module
from flows.stage import STAGES, placed, stage
from infra.errors import ConfigurationError
from infra.orchestration.dispatch import Dispatched
from infra.store.artifacts import ArtifactRef
from tasks.models import ModelSource
from tasks.train.settings import Distillation, Training, TrainingRun

ROWS = ArtifactRef(kind="augment", uri="s3://b/augment/f/", sha256="d", fingerprint="f", counts={"rows": 3})


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Parameters of the runs that were asked for; nothing is finished, and nothing runs."""
    asked: list[dict[str, Any]] = []

    def run_there(wanted: Dispatched) -> ArtifactRef:
        asked.append(wanted.parameters)
        return ROWS

    monkeypatch.setattr(module, "run_there", run_there)
    monkeypatch.setattr(module, "stage_task", lambda **_: lambda function: function)
    monkeypatch.setattr(module, "_IS_FINISHED", dict.fromkeys(STAGES, lambda **_: False))

    class View:
        note = done = pass_on = staticmethod(lambda *_: None)

        def __enter__(self) -> "View":
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(module, "stage_view", lambda *_: View())
    return asked


def _ask(data: ArtifactRef, training: Training) -> None:
    model = ModelSource(name="sft", artifact=data)
    placed(STAGES["train"], "stage/gpu")("kd", model, data, training, TrainingRun(), 0)


def test_two_runs_that_want_the_same_stage_ask_in_the_same_words(sent: list[dict[str, Any]]) -> None:
    _ask(ROWS.model_copy(update={"seconds": 31.5}), Distillation())
    _ask(ROWS.model_copy(update={"cached": True}), Distillation())
    _ask(ROWS.model_copy(update={"sha256": "other"}), Distillation())
    assert sent[0] == sent[1]
    assert sent[0] != sent[2]


@pytest.mark.parametrize("training", [Training(epochs=2), Distillation(temperature=2.0)])
def test_what_is_sent_is_what_the_stage_gets(
    sent: list[dict[str, Any]], training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ask(ROWS, training)
    got: dict[str, Any] = {}
    real = STAGES["train"]

    class Task:
        fn = staticmethod(real.fn)

        def __call__(self, **given: Any) -> None:
            got.update(given)

    monkeypatch.setitem(STAGES, "train", Task())
    arguments = TypeAdapter(dict[str, Any]).validate_json(TypeAdapter(Any).dump_json(sent[0]["arguments"]))
    stage.fn("train", arguments)
    assert got["training"] == training
    assert type(got["training"]) is type(training)
    assert got["data"] == ROWS
    assert got["model"].artifact == ROWS


def test_without_a_deployment_the_stage_runs_here() -> None:
    assert placed(STAGES["train"], None) is STAGES["train"]


def test_arguments_that_do_not_fit_are_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigurationError, match="the arguments of train do not fit"):
        stage.fn("train", {"name": "sft"})
    with pytest.raises(ConfigurationError, match="colour"):
        stage.fn("train", {"colour": 1})
