"""Do the rows that are hard for a student teach it more than as many by chance? The demo, on shares of its rows.

    python -m tests.bench fit [--seeds 0 1 2] [--keep 0.5 0.25] [--steps 200]

All rows once, then each share chosen by difficulty (`fit.by`) and by chance, with the same number of steps each.
`accuracy` is by seed, on the held-out rows; `gain` is difficulty minus chance, with a 95 % interval over the seeds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from typing import Any

from infra.store.artifacts import ArtifactRef, facts_of
from tests.bench.agents import augmented
from tests.support.stages import evaluation_workspace, made, training_workspace


def run(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="fit")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25])
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args(arguments)
    from infra.services.embedded import embedded_storage
    from infra.store import storage
    from tasks.stats.intervals import over_seeds

    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("DISTILFLOW_HOME", home)
        with embedded_storage():
            storage.ensure_bucket()
            data, everything, choices = _chosen(options.keep)
            found: dict[str, Any] = {"rows": everything.counts["rows"], "all": {}}
            found["all"]["accuracy"] = [_accuracy(data, everything, seed, options.steps) for seed in options.seeds]
            for keep, by_rows in choices.items():
                figures: dict[str, Any] = {"rows": by_rows["difficulty"].counts["rows"]}
                for by, rows in by_rows.items():
                    figures[by] = [_accuracy(data, rows, seed, options.steps) for seed in options.seeds]
                    print(keep, by, figures[by], file=sys.stderr, flush=True)
                gains = [hard - any_ for hard, any_ in zip(figures["difficulty"], figures["chance"], strict=True)]
                gain = over_seeds(gains)
                figures["gain"] = round(gain.mean, 4)
                if gain.interval is not None:
                    figures["interval"] = [round(gain.interval.low, 4), round(gain.interval.high, 4)]
                found[f"keep {keep:g}"] = figures
    return found


def _chosen(shares: list[float]) -> tuple[ArtifactRef, ArtifactRef, dict[float, dict[str, ArtifactRef]]]:
    """The seeds, all augmented rows, and by share those that are hard for the student and as many others."""
    from flows.params import PRESETS
    from tasks.fit.settings import Fit
    from tasks.fit.stage import ChooseRows, ScoreStudent
    from tasks.logits.stage import ScoreTeacher
    from tasks.models import resolve

    preset = PRESETS["demo"]
    data, rows = augmented(preset.augmentation)
    how = preset.scoring.model_copy(update={"engine": "transformers"})
    student = made(ScoreStudent(rows=rows, teacher=resolve("demo", "student"), k=1, scoring=how))
    teacher = made(ScoreTeacher(rows=rows, teacher=resolve("demo", "teacher"), k=10, scoring=how))
    choices = {
        keep: {
            by: made(ChooseRows(rows=rows, student=student, teacher=teacher, fit=Fit(keep=keep, by=by)))
            for by in ("difficulty", "chance")
        }
        for keep in shares
    }
    return data, rows, choices


def _accuracy(data: ArtifactRef, rows: ArtifactRef, seed: int, steps: int) -> float:
    from flows.params import PRESETS
    from tasks.evaluate import stage as evaluation
    from tasks.models import ModelSource, resolve
    from tasks.train import stage as training

    preset = PRESETS["demo"]
    sft = preset.sft.model_copy(update={"max_steps": steps})
    base, teacher = resolve("demo", "student"), resolve("demo", "teacher")
    work = training_workspace("sft", base, rows, sft, seed)
    tuned = work.find() or training.train(work, "sft", base, rows, sft, preset.run, seed, lambda event: None)
    model = ModelSource(name="sft", artifact=tuned)
    judged = evaluation_workspace(model, teacher, data, preset.evaluation.following(10))
    done = evaluation.evaluate(
        {"sft": judged}, {"sft": model}, teacher, data, preset.evaluation.following(10), lambda event: None
    )
    accuracy: float = facts_of(done["sft"])["exec_accuracy"]
    return round(accuracy, 4)
