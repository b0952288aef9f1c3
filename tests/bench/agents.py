"""What each agent does for the student: the demo's SFT student with all four, then without each one.

    python -m tests.bench agents [--seeds 0 1 2] [--without expansion rewriting selection verification]

JSON: by configuration, rows kept, the share of them whose SQL is right, and mean and standard deviation over seeds
of the SFT student's execution accuracy (640 held-out requests); and what each agent adds, seed by seed.
Steps are the same for all (400 × 32 rows), so that rows and not training make the difference.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

from infra.store.artifacts import ArtifactRef, facts_of
from tasks.augment.settings import Augmentation
from tests.support.stages import augment_workspace, evaluation_workspace, load, training_workspace

AGENTS = ("expansion", "rewriting", "selection", "verification")


def run(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="agents")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--without", nargs="*", choices=AGENTS, default=list(AGENTS))
    options = parser.parse_args(arguments)
    from infra.services.embedded import embedded_storage
    from infra.store import storage

    with embedded_storage():
        storage.ensure_bucket()
        results = {name: _configuration(name, options.seeds) for name in ["all", *options.without]}
    every = results.pop("all")
    adds = {
        name: [round(ours - without, 4) for ours, without in zip(every["accuracy"], found["accuracy"], strict=True)]
        for name, found in results.items()
    }
    return {"seeds": options.seeds, "all four": every, "without": results, "adds": adds}


def _configuration(without: str, seeds: list[int]) -> dict[str, Any]:
    """Rows, their share of right SQL, and the student's accuracy by seed."""
    from flows.params import PRESETS

    options = PRESETS["demo"].augmentation
    if without == "expansion":
        options = options.model_copy(update={"expansions_per_seed": 0})
    elif without != "all":
        options = options.model_copy(update={without: False})
    data, rows = augmented(options)
    accuracy = [_sft_accuracy(data, rows, seed) for seed in seeds]
    deviation = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
    result = {
        "rows": rows.counts["rows"],
        "right_rows": round(_right_share(data, rows), 3),
        "accuracy": accuracy,
        "mean": round(statistics.mean(accuracy), 4),
        "deviation": round(deviation, 4),
    }
    print(without, result, file=sys.stderr, flush=True)
    return result


def augmented(options: Augmentation) -> tuple[ArtifactRef, ArtifactRef]:
    """The demo's seeds, and what its agents make of them."""
    from tasks.augment import stage
    from tasks.llm.own_server import serving
    from tasks.seeds.stage import Sources

    data = load(Sources.of("demo", None, None), heldout_share=0.1, response_required=False)
    work = augment_workspace(data, options, "demo")
    if found := work.find():
        return data, found
    with serving("demo") as endpoint:
        return data, stage.augment(work, data, options, endpoint, lambda done, total: None)


def _sft_accuracy(data: ArtifactRef, rows: ArtifactRef, seed: int) -> float:
    from flows.params import PRESETS
    from tasks.evaluate import stage as evaluation
    from tasks.models import ModelSource, resolve
    from tasks.train import stage as training

    preset = PRESETS["demo"]
    base, teacher = resolve("demo", "student"), resolve("demo", "teacher")
    work = training_workspace("sft", base, rows, preset.sft, seed)
    tuned = work.find() or training.train(work, "sft", base, rows, preset.sft, preset.run, seed, _quiet)
    model = ModelSource(name="sft", artifact=tuned)
    judged = evaluation_workspace(model, teacher, data, preset.evaluation.following(10))
    ref = judged.find()
    if ref is None:
        ref = evaluation.evaluate(
            {"sft": judged}, {"sft": model}, teacher, data, preset.evaluation.following(10), _quiet
        )["sft"]
    accuracy: float = facts_of(ref)["exec_accuracy"]
    return round(accuracy, 4)


def _right_share(data: ArtifactRef, rows: ArtifactRef) -> float:
    """Share of the rows whose SQL returns what the demo domain's own SQL returns."""
    from tasks.demo.parse import parse
    from tasks.demo.schemas import database_of_schema
    from tasks.demo.styles import render_sql
    from tasks.rows import KEPT, read_rows
    from tasks.seeds.stage import open_databases

    databases = open_databases(data)
    right = []
    for row in read_rows(rows, KEPT):
        database = database_of_schema(row.input)
        request = parse(row.instruction, database) if database else None
        if database is not None and request is not None and row.database:
            right.append(databases[row.database].same_result(render_sql(request, database), row.response))
    return statistics.mean(right)


def _quiet(_event: Any) -> None:
    pass
