"""Stages without Prefect: where their artifacts lie, and made in this process."""

from __future__ import annotations

from typing import TypeVar

from infra.stage import Stage, Unseen, make
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.augment.settings import Augmentation
from tasks.augment.stage import Augment
from tasks.evaluate.settings import Evaluation
from tasks.evaluate.stage import Evaluate
from tasks.logits.settings import Scoring
from tasks.logits.stage import ScoreTeacher
from tasks.models import ModelSource
from tasks.rows import Turns
from tasks.seeds.settings import Reading
from tasks.seeds.stage import LoadSeeds, Sources
from tasks.train.settings import Distillation, Training, TrainingRun
from tasks.train.stage import Name, Train

R = TypeVar("R")


def made(stage: Stage[R]) -> R:
    """What comes of a stage, found or made here."""
    return stage.result(make(stage, Unseen()).refs)


def load(sources: Sources, *, heldout_share: float, response_required: bool) -> ArtifactRef:
    """The seeds artifact; questions near to held-out ones are trained on, for the demo's are all alike."""
    reading = Reading(near_heldout=None)
    return made(
        LoadSeeds(sources=sources, heldout_share=heldout_share, response_required=response_required, reading=reading)
    )


def augment_workspace(seeds: ArtifactRef, options: Augmentation, model: str) -> Workspace:
    return Augment(seeds=seeds, options=options, agent_model=model).workspace()


def scoring_workspace(
    rows: ArtifactRef, teacher: ModelSource, k: int, scoring: Scoring, turns: Turns = "last"
) -> Workspace:
    return ScoreTeacher(rows=rows, teacher=teacher, k=k, scoring=scoring, turns=turns).workspace()


def training_workspace(
    name: Name, model: ModelSource, data: ArtifactRef, training: Training | Distillation, seed: int
) -> Workspace:
    return Train(name=name, model=model, data=data, training=training, run=TrainingRun(), seed=seed).workspace()


def evaluation_workspace(
    model: ModelSource, teacher: ModelSource, seeds: ArtifactRef, evaluation: Evaluation
) -> Workspace:
    return Evaluate(models={"": model}, teacher=teacher, seeds=seeds, evaluation=evaluation).workspaces()[""]
