"""Several teachers: each scores the rows of its task categories, and distillation reads each row once, whoever did."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from infra.errors import ConfigurationError
from infra.processes.child import Reporter
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.logits import program
from tasks.logits.settings import Scoring
from tasks.logits.stage import ScoreTeacher
from tasks.logits.store.reader import SHARDS, TOKENIZER, TopKReader, write_shard
from tasks.models import ModelSource, resolve
from tasks.rows import KEPT, Row, to_parquet
from tasks.text.categories import TaskCategories
from tasks.train.data.examples import Examples
from tasks.train.data.mixture import Mixture, Routed, examples_of
from tasks.train.data.spool import ExampleStore, write_spool
from tasks.train.settings import Distillation
from tests.support.memory_store import MemoryStore

STUDENT, TEACHER = resolve("demo", "student"), resolve("demo", "teacher")
SCORING = Scoring(engine="transformers", max_length=256, tokens_per_shard=64)
KD = Distillation(kd_weight=0.25, tail="bucket")
KINDS = {"books": "code", "loans": "letters", "authors": "maths", "members": "code", "staff": "maths"}
ROWS = [
    Row(instruction=f"Count the {what}", response=f"SELECT COUNT(*) FROM {what}", task_category=category)
    for what, category in KINDS.items()
]
CODE, REST = TaskCategories(named=("code",)), TaskCategories(named=("code",), but=True)


@pytest.fixture(autouse=True)
def bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    return MemoryStore().replace(monkeypatch)


def _rows(rows: list[Row] = ROWS, name: str = "augment") -> ArtifactRef:
    work = Workspace(name, 1, {}, {})
    work.put(f"{KEPT}00000.parquet", to_parquet(rows))
    return work.publish((KEPT,), {"rows": len(rows)}, {})


def _scored(folder: Path, teacher: ModelSource, categories: TaskCategories | None, k: int = 4) -> ArtifactRef:
    """As the stage's program scores them."""
    stage = ScoreTeacher(rows=_rows(), teacher=teacher, k=k, scoring=SCORING, categories=categories)
    work = stage.workspace()
    spec = {
        "rows": stage.rows.model_dump(),
        "teacher": teacher.model_dump(),
        "k": k,
        "scoring": SCORING.model_dump(),
        "turns": "last",
        **(categories.identity() if categories else {}),
        "workspace": work.description(),
    }
    made = program.main(json.loads(json.dumps(spec)), Reporter(folder))
    return work.publish((SHARDS, TOKENIZER), made["counts"], made["facts"])


def test_every_row_is_an_example_once_with_the_scores_of_its_own_teacher(tmp_path: Path) -> None:
    stores = [_scored(tmp_path, TEACHER, REST), _scored(tmp_path, STUDENT, CODE)]
    assert [store.counts["rows"] for store in stores] == [3, 2]
    alone = {  # what each makes of all rows
        of: {e.row_id: e for e in Examples(_scored(tmp_path, model, None), STUDENT, 256, KD)}
        for of, model in (("code", STUDENT), ("others", TEACHER))
    }
    write_spool(tmp_path / "spool", routed := examples_of(stores, STUDENT, 256, KD))
    examples = list(ExampleStore(tmp_path / "spool"))
    assert sorted(example.row_id for example in examples) == sorted(row.id for row in ROWS)
    categories = {row.id: row.task_category for row in ROWS}
    told = 0
    for example in examples:
        is_code = categories[example.row_id] == "code"
        of = ("code", "others") if is_code else ("others", "code")
        own, other = (np.asarray(alone[name][example.row_id].teacher_logprobs_RK) for name in of)
        assert np.array_equal(np.asarray(example.teacher_logprobs_RK), own)
        told += not np.array_equal(own, other)
        assert example.part == 0
    assert told == len(ROWS)  # two teachers that say the same would prove nothing
    assert (routed.facts()["k"], routed.facts()["skipped"]) == (4, {})


def test_a_part_of_a_mixture_may_be_of_several_teachers(tmp_path: Path) -> None:
    stores = [_scored(tmp_path, TEACHER, REST), _scored(tmp_path, STUDENT, CODE)]
    parts = [examples_of(stores, STUDENT, 256, KD) for _ in range(2)]
    assert [example.part for example in Mixture(parts, 0.25)] == [0] * 5 + [1] * 5


def test_a_row_that_no_store_has_or_two_have_is_refused_by_name(tmp_path: Path) -> None:
    rest, code = _scored(tmp_path, TEACHER, REST), _scored(tmp_path, STUDENT, CODE)
    maths = _scored(tmp_path, STUDENT, TaskCategories(named=("maths",)))
    letters, first_maths = ROWS[1], ROWS[2]
    with pytest.raises(ConfigurationError, match=rf"row {letters.id} \(task category 'letters'\) is of none of the 2"):
        list(examples_of([code, maths], STUDENT, 256, KD))
    with pytest.raises(ConfigurationError, match=rf"row {first_maths.id} \(task category 'maths'\) is of 2 of the 3"):
        list(examples_of([rest, code, maths], STUDENT, 256, KD))


def test_a_store_that_lacks_a_row_of_its_categories_is_refused_by_name(tmp_path: Path) -> None:
    rest, whole = _scored(tmp_path, TEACHER, REST), _scored(tmp_path, STUDENT, CODE)
    rows = list(TopKReader(whole))
    stage = ScoreTeacher(rows=_rows(), teacher=STUDENT, k=4, scoring=SCORING, categories=CODE)
    work = Workspace("logits", 9, stage.workspace().spec, {"rows": _rows()})
    write_shard(work, f"{SHARDS}00000.topk", rows[1:])

    def published(skipped: int) -> ArtifactRef:
        return work.publish((SHARDS,), {"rows": 1, "skipped": skipped}, {})

    with pytest.raises(ConfigurationError, match=f"lack row {rows[0].row_id[:16]}"):
        list(examples_of([rest, published(0)], STUDENT, 256, KD))


def test_of_rows_chosen_for_the_student_no_other_is_trained_on_and_none_is_missed(tmp_path: Path) -> None:
    stores = [_scored(tmp_path, TEACHER, REST), _scored(tmp_path, STUDENT, CODE)]
    only = _rows([ROWS[0], ROWS[4]], "fit")
    found = examples_of(stores, STUDENT, 256, KD, only=only)
    assert {example.row_id for example in found} == {ROWS[0].id, ROWS[4].id}


def test_a_store_of_categories_that_no_row_has_is_empty_and_read_as_such(tmp_path: Path) -> None:
    none = TaskCategories(named=("poems",))
    rest = _scored(tmp_path, TEACHER, TaskCategories(named=("poems",), but=True))
    found = examples_of([rest, _scored(tmp_path, STUDENT, none)], STUDENT, 256, KD)
    assert isinstance(found, Routed)
    assert len(list(found)) == len(ROWS)
    assert found.facts()["skipped"] == {}


def test_stores_of_two_k_are_refused(tmp_path: Path) -> None:
    stores = [_scored(tmp_path, TEACHER, REST), _scored(tmp_path, STUDENT, CODE, k=3)]
    with pytest.raises(ConfigurationError, match="two k: score all rows with one"):
        list(examples_of(stores, STUDENT, 256, KD))
