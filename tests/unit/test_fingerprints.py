"""Where artifacts lie: a fingerprint that changes makes every finished stage be done, and paid for, again.

The digests are those of the code before a stage became a value (704b6c8), but for `augment`, whose agents have longer
prompts since they were given criteria and examples, one that shortens, and one that says how hard a question is before
it reasons, and for `report`, whose page begins with what to ship. Change one only with its stage's version, and say
why in the note.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from flows.pipeline import pipeline
from flows.recipe import Recipe, settings_for
from infra.stage import Stage
from infra.store.artifacts import ArtifactRef
from tasks.augment.settings import Augmentation
from tasks.augment.stage import Augment
from tasks.evaluate.benchmarks.harness import LmEval
from tasks.evaluate.benchmarks.settings import Benchmarks, Judging
from tasks.evaluate.benchmarks.stage import JudgeBenchmarks
from tasks.evaluate.settings import Evaluation
from tasks.evaluate.stage import Evaluate
from tasks.logits.settings import Scoring
from tasks.logits.stage import ScoreHeldout, ScoreTeacher
from tasks.models import ModelSource, resolve
from tasks.report.data import ChangedSetting, RunInfo
from tasks.report.stage import Report
from tasks.rows import Turns
from tasks.train.settings import TrainingRun
from tasks.train.stage import Train


def _ref(kind: str) -> ArtifactRef:
    uri, counts = f"s3://b/{kind}/f/", {"rows": 1, "seeds": 1}
    return ArtifactRef(kind=kind, uri=uri, sha256=kind * 4, fingerprint="f", counts=counts)


@pytest.mark.parametrize(
    ("turns", "conversations", "given"),
    [("all", 0, "last"), ("last", 0, "last"), ("last", 3, "last"), ("all", 3, "all")],
)
def test_turns_change_nothing_where_no_row_has_several(turns: Turns, conversations: int, given: Turns) -> None:
    """`pipeline` asks the rows, and a stage of "last" is the one that was made before there was a choice."""
    asked: list[Stage[Any]] = []
    rows = _ref("augment").model_copy(update={"counts": {"rows": 9, "conversations": conversations}})

    def run(stage: Stage[Any]) -> Any:
        asked.append(stage)
        return stage.result(defaultdict(lambda: rows if isinstance(stage, Augment) else _ref(stage.title)))

    pipeline(run, Recipe.of({"turns": turns}), resolve("demo", "student"), resolve("demo", "teacher"))
    stages = {stage.title: stage for stage in asked if isinstance(stage, Train | ScoreTeacher)}
    assert {name: stage.turns for name, stage in stages.items()} == {
        **dict.fromkeys(("sft", "logits", "sft_control"), given),
        "kd": "last",  # the store says which answers it holds
    }
    for name in ("sft", "logits", "sft_control"):
        stage = stages[name]
        assert stage.workspace().spec.get("turns") == (None if given == "last" else "all")
        before = stage.model_copy(update={"turns": "last"})
        assert (stage.workspace().fingerprint == before.workspace().fingerprint) == (given == "last")


def test_what_was_made_before_is_found() -> None:
    seeds, rows, scores = _ref("seeds"), _ref("augment"), _ref("logits")
    base = ModelSource(name="base", hub="Qwen/base", revision="r1")
    teacher, tuned = resolve("demo", "teacher"), ModelSource(name="sft", artifact=_ref("sft"))
    demo, large, run = settings_for("demo", 10), settings_for("7B", 10), TrainingRun()
    sft, kd = demo.sft.model_copy(update={"learning_rate": 1.2e-3}), demo.kd.model_copy(update={"learning_rate": 5e-4})
    about = RunInfo(
        title="t",
        student="demo",
        teacher="demo",
        k=10,
        seed=0,
        demo=True,
        settings={"sft": sft.model_dump()},
        reproduce="the command is no part of it",
        run="nor is a name",
        changed=[ChangedSetting(name="seeds", value="nor a path", default="demo")],
    )
    one: dict[str, Any] = {"run": run, "model": tuned}
    stages: dict[str, Stage[Any]] = {
        "augment": Augment(seeds=seeds, options=large.augmentation, agent_model="openai/gpt-4o"),
        "augment off": Augment(seeds=seeds, options=Augmentation(enabled=False), agent_model="demo"),
        "sft": Train(name="sft", model=base, data=rows, training=large.sft, run=run, seed=0),
        "sft_control": Train(name="sft_control", data=rows, training=kd.training(), seed=1, **one),
        "kd": Train(name="kd", data=scores, training=kd, seed=1, **one),
        "logits": ScoreTeacher(rows=rows, teacher=teacher, k=10, scoring=demo.scoring),
        "evaluate": Evaluate(models={"sft": tuned}, teacher=teacher, seeds=seeds, evaluation=demo.evaluation),
        "harness": LmEval(models={"sft": tuned}, options=Benchmarks(harness=("gsm8k",)), scoring=Scoring()),
        "report": Report(
            stages={"seeds": seeds, "kd": _ref("kd")}, evaluations={"kd": _ref("evaluate")}, about=about, verdicts={}
        ),
    }
    assert {name: next(iter(stage.workspaces().values())).fingerprint for name, stage in stages.items()} == {
        "augment": "dda787a1f57e10ad5fa9c8810ccb51e4",
        "augment off": "0f849e7697f51fbc99a905987a34d378",
        "sft": "f4818b782b29f71ff84e46d00f679e6d",
        "sft_control": "5023ab0c0d5b2d9cdc23df9f3858a8d8",
        "kd": "aaf077233688ad99e76fd59411211a97",
        "logits": "19fce18b0aa20be5ebf3a1ddbef3ae19",
        "evaluate": "4cba40aaf5e5ba333898edb2f9c87e15",
        "harness": "5c2f59e42766bb6389f67b7672e7a350",
        "report": "089f5b0992ceba2ff246f0b16d017835",
    }


def test_comparing_with_held_out_rows_is_another_dataset_and_not_comparing_is_the_one_of_before() -> None:
    def fingerprint(**options: Any) -> str:
        return Augment(seeds=_ref("seeds"), options=Augmentation(**options), agent_model="m").workspace().fingerprint

    assert fingerprint() == fingerprint(compare_heldout=0)
    assert len({fingerprint(compare_heldout=most) for most in (0, 5, 6)}) == 3
    assert "compare_heldout" not in Augmentation().identity()


def test_the_teachers_scores_of_heldout_rows_are_made_only_to_be_compared_with() -> None:
    rows = _ref("augment").model_copy(update={"counts": {"rows": 9, "conversations": 0}})

    def asked(**evaluation: Any) -> list[Stage[Any]]:
        found: list[Stage[Any]] = []

        def run(stage: Stage[Any]) -> Any:
            found.append(stage)
            return stage.result(defaultdict(lambda: rows if isinstance(stage, Augment) else _ref(stage.title)))

        recipe = Recipe.of({"evaluation": Evaluation(**evaluation)})
        pipeline(run, recipe, resolve("demo", "student"), resolve("demo", "teacher"))
        return found

    assert not [stage for stage in asked() if isinstance(stage, ScoreHeldout)]
    stages = asked(teacher="topk", max_rows=7, max_length=99)
    (scores,) = (stage for stage in stages if isinstance(stage, ScoreHeldout))
    assert (scores.rows, scores.max_rows, scores.scoring.max_length) == (_ref("seeds"), 7, 99)
    assert scores.workspace().spec["heldout"] == {"max_rows": 7}
    evaluation = stages[-1]
    assert isinstance(evaluation, Evaluate)
    assert stages[-2] is scores
    work = evaluation.workspaces()["kd"]
    assert work.inputs["teacher_scores"] == _ref("heldout_scores")
    assert work.spec["evaluation"]["teacher"] == "topk"
    with pytest.raises(ValueError, match=r"evaluation\.teacher topk, and nothing else"):
        Evaluate(**{**dict(evaluation), "teacher_scores": None})


def test_a_precision_asked_for_is_another_result_and_what_a_device_chooses_is_not() -> None:
    model, rows = ModelSource(name="m", hub="Qwen/m", revision="r"), _ref("augment")
    one: dict[str, Any] = {"name": "sft", "model": model, "data": rows, "training": settings_for("7B", 10).sft}
    runs = [TrainingRun(zero_stage=3), *(TrainingRun(precision=asked) for asked in ("auto", "bf16", "fp32"))]  # type: ignore[arg-type]
    trained = [Train(run=run, seed=0, **one).workspace().fingerprint for run in runs]
    assert trained[0] == trained[1]
    assert len(set(trained)) == 3

    options, teacher = Benchmarks(harness=("gsm8k",)), resolve("demo", "teacher")
    evaluation, seen = settings_for("demo", 10).evaluation, []
    for dtype in ("auto", "bfloat16"):
        scoring = Scoring(dtype=dtype)  # type: ignore[arg-type]
        by = evaluation.model_copy(update={"dtype": dtype})
        stages: list[Stage[Any]] = [
            ScoreTeacher(rows=rows, teacher=teacher, k=10, scoring=scoring),
            LmEval(models={"sft": model}, options=options, scoring=scoring),
            Evaluate(models={"sft": model}, teacher=teacher, seeds=_ref("seeds"), evaluation=by),
        ]
        seen.append([next(iter(stage.workspaces().values())).fingerprint for stage in stages])
    assert not set(seen[0]) & set(seen[1])


def test_peoples_labels_change_the_report_by_their_content_and_nothing_that_was_judged(tmp_path: Path) -> None:
    about = RunInfo(title="t", student="demo", teacher="demo", k=10, seed=0)
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    for path, text in ((one, "a"), (same, "a"), (other, "b")):
        path.write_text(text)

    def report(labels: Path | None) -> str:
        made = Report(stages={}, evaluations={}, about=about, verdicts={}, labels=labels and str(labels))
        return made.workspace().fingerprint

    def judged(labels: Path | None) -> str:
        made = JudgeBenchmarks(
            answers={"kd/alpaca_eval": _ref("benchmark-answers")},
            evaluations={},
            options=Benchmarks(alpaca_eval="demo"),
            judging=Judging(labels=labels and str(labels)),
            judge_model="openai/judge",
        )
        return made.workspaces()["kd/alpaca_eval"].fingerprint

    assert report(one) == report(same)
    assert len({report(None), report(one), report(other)}) == 3
    assert judged(None) == judged(one) == judged(other)
