"""The tasks of the benchmarks: answers by the variants, verdicts on them, and lm-eval.

Each is done once for a variant and benchmark ("kd/alpaca_eval"), whichever run comes first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from infra.orchestration.limits import GPU, held
from infra.orchestration.stage_task import stage_task
from infra.orchestration.view import StageView, stage_view
from infra.store.artifacts import ArtifactRef, Workspace
from infra.store.claims import made_once
from tasks.augment.task import llm_endpoint
from tasks.evaluate.benchmarks import artifacts, harness
from tasks.evaluate.benchmarks import stage as answers_stage
from tasks.evaluate.benchmarks.settings import Benchmarks, Judging
from tasks.evaluate.settings import Evaluation
from tasks.logits.settings import Scoring
from tasks.models import ModelSource


@stage_task(name="benchmark_answers")
def benchmark_answers(
    models: dict[str, ModelSource], options: Benchmarks, evaluation: Evaluation
) -> dict[str, ArtifactRef]:
    """Every variant's answers to every benchmark; only what is missing is generated."""
    works = answers_stage.workspaces(models, options, evaluation)
    with stage_view("answers", "answering the benchmarks") as view:

        def make(missing: dict[str, Workspace]) -> dict[str, ArtifactRef]:
            with held(GPU, 1, view.note):
                follow = view.follow(answers_stage.describe)
                return answers_stage.answer(missing, models, options, evaluation, follow)

        refs = made_once(works, make, view.note)
        questions = sum(ref.counts["questions"] for ref in refs.values())
        return _done(view, refs, f"{questions:,} questions answered by {len(models)} variants")


@stage_task(name="benchmark")
def benchmark(
    answers: dict[str, ArtifactRef],
    evaluations: dict[str, ArtifactRef],
    options: Benchmarks,
    judging: Judging,
    judge_model: str,
) -> dict[str, ArtifactRef]:
    """The verdicts on every variant's answers; probes look at those to the held-out rows (`evaluations`)."""
    given = dict(answers)
    if options.probes:
        given |= {f"{name}/{artifacts.PROBES}": ref for name, ref in evaluations.items()}
    works = {
        key: artifacts.workspace(_benchmark(key), ref, options, judging, judge_model) for key, ref in given.items()
    }
    with stage_view("benchmarks", "judging") as view:

        def make(missing: dict[str, Workspace]) -> dict[str, ArtifactRef]:
            judged = any(_benchmark(key) in artifacts.JUDGED for key in missing)
            judge = llm_endpoint(judge_model, judging, view) if judged else contextlib.nullcontext()
            with judge as endpoint:
                return artifacts.score(missing, given, options, judging, endpoint, lambda key: _tick(view, key))

        refs = made_once(works, make, view.note)
        items, scored = (sum(ref.counts[name] for ref in refs.values()) for name in ("items", "scored"))
        if scored < items:
            view.warn(f"{items - scored:,} of {items:,} answers have no verdict: the report says why")
        return _done(view, refs, f"verdicts on {scored:,} answers")


@stage_task(name="lm_eval")
def lm_eval(models: dict[str, ModelSource], options: Benchmarks, scoring: Scoring) -> dict[str, ArtifactRef]:
    """lm-eval's results of every variant, one variant after the other."""
    works = {f"{name}/{harness.KIND}": harness.workspace(model, options, scoring) for name, model in models.items()}
    with stage_view("lm_eval", ", ".join(options.harness)) as view:

        def make(missing: dict[str, Workspace]) -> dict[str, ArtifactRef]:
            with held(GPU, scoring.tensor_parallel, view.note):
                return harness.run(missing, models, options, scoring, view.follow(harness.describe))

        refs = made_once(works, make, view.note)
        return _done(view, refs, f"{len(options.harness)} tasks by {len(models)} variants")


def _benchmark(key: str) -> str:
    return key.split("/")[1]


def _tick(view: StageView, key: str) -> artifacts.Tick:
    return lambda done, total: view.tick(done, total, key)


def _done(view: StageView, refs: Mapping[str, ArtifactRef], text: str) -> dict[str, ArtifactRef]:
    """The stage's line, whose time is that of all its artifacts."""
    seconds, cached = sum(ref.seconds for ref in refs.values()), all(ref.cached for ref in refs.values())
    view.done(next(iter(refs.values())).model_copy(update={"seconds": seconds, "cached": cached}), text)
    return dict(refs)
