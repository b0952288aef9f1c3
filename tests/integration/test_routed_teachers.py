"""Two teachers, each of its task categories, and a student distilled from both: through the stages, for real."""

from __future__ import annotations

from collections import Counter

from infra.store.artifacts import ArtifactReader, ArtifactRef
from tasks.logits.settings import Scoring
from tasks.logits.stage import ScoreTeacher
from tasks.models import resolve
from tasks.rows import KEPT, read_rows
from tasks.text.categories import TaskCategories
from tasks.train.settings import Distillation, TrainingRun
from tasks.train.stage import Train
from tests.support.stages import made

KD = Distillation(learning_rate=2e-3, max_steps=20, global_batch=16, max_length=256)


def test_a_student_learns_from_two_teachers_by_task_category(rows: ArtifactRef) -> None:
    student, teacher = resolve("demo", "student"), resolve("demo", "teacher")
    held = Counter(row.task_category for row in read_rows(rows, KEPT))
    named = (min(held),)
    assert len(held) > 1
    one = ScoreTeacher(rows=rows, teacher=teacher, k=10, scoring=Scoring(engine="transformers", max_length=256))
    scorings = [one.model_copy(update={"categories": TaskCategories(named=named, but=but)}) for but in (True, False)]
    rest, own = (made(scoring) for scoring in scorings)
    assert (rest.counts["rows"], own.counts["rows"]) == (held.total() - held[named[0]], held[named[0]])
    training = Train(name="kd", model=student, data=rest, routed=(own,), training=KD, run=TrainingRun(), seed=0)
    distilled = made(training)
    assert distilled.counts["rows"] == held.total()
    curve = ArtifactReader(distilled).read_json("curve.json")
    assert curve[-1][1] < curve[0][1]
