"""The *sft*, *sft_control* and *kd* tasks: one training program."""

from __future__ import annotations

from infra.devices import gpu_slots, gpus
from infra.orchestration.limits import GPU, held
from infra.orchestration.stage_task import stage_task
from infra.orchestration.view import skipped_note, stage_view
from infra.store.artifacts import ArtifactRef, facts_of
from infra.store.claims import made_once
from tasks.models import ModelSource
from tasks.train import stage
from tasks.train.settings import Distillation, Training, TrainingRun

_DOING = {"sft": "fine-tuning", "sft_control": "fine-tuning on, without the teacher", "kd": "distilling"}


@stage_task(name="train", task_run_name="{name}")
def train(
    name: stage.Stage,
    model: ModelSource,
    data: ArtifactRef,
    training: Training | Distillation,
    run: TrainingRun,
    seed: int,
) -> ArtifactRef:
    """Train `model` with DeepSpeed: on rows (sft, sft_control) or on the teacher's top K (kd)."""
    work = stage.workspace(name, model, data, training, seed)
    with stage_view(name, _DOING[name]) as view:

        def make(_missing: object) -> dict[str, ArtifactRef]:
            with held(GPU, gpu_slots(run.processes or gpus()), view.note):
                return {name: stage.train(work, name, model, data, training, run, seed, view.follow(stage.describe))}

        # a node that waited for the first one's artifact would keep it from being made
        ref = make(work)[name] if stage.is_led(run) else made_once({name: work}, make, view.note)[name]
        counts = ref.counts
        skipped = skipped_note(facts_of(ref)["skipped"])
        return view.done(ref, f"{counts['steps']:,} steps on {counts['rows']:,} rows{skipped}")
