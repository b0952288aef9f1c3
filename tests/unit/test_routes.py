"""Teachers by task category in a run: who scores what, what is refused, and what it costs."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from flows.checks import check_routes
from flows.pipeline import pipeline
from flows.recipe import Recipe
from infra.errors import ConfigurationError
from infra.stage import Stage
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.augment.settings import Augmentation
from tasks.augment.stage import Augment
from tasks.evaluate.settings import Evaluation
from tasks.evaluate.stage import Evaluate
from tasks.fit.settings import Fit
from tasks.models import resolve
from tasks.plan.known import OtherTeacher
from tasks.plan.plan import make_plan
from tasks.plan.problems import find
from tasks.plan.sizes import size_of
from tasks.plan.stages import stages_of
from tasks.rollout.settings import Rounds
from tasks.rows import TRAIN, Row, to_parquet
from tasks.text.categories import TaskCategories
from tests.support.memory_store import MemoryStore
from tests.support.plan_known import known

CODER = resolve("demo", "student").model_copy(update={"name": "coder"})
TEACHERS = {"maths": "coder", "code": "coder", "*": "demo"}
OWN, OTHERS = TaskCategories(named=("code", "maths")), TaskCategories(named=("code", "maths"), but=True)
STORE = "logits (code, maths)"


def _ref(name: str) -> ArtifactRef:
    counts = {"rows": 9, "conversations": 0}
    return ArtifactRef(kind=name, uri=f"s3://b/{name}/f/", sha256=name * 9, fingerprint="f", counts=counts)


def _asked(**parameters: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {}

    def run(stage: Stage[Any]) -> Any:
        asked[stage.title] = stage
        if isinstance(stage, Evaluate):
            return {name: _ref(f"evaluate-{name}") for name in stage.models}
        return stage.result(defaultdict(lambda: _ref("augment" if isinstance(stage, Augment) else stage.title)))

    recipe = Recipe.of(parameters)
    others = dict.fromkeys(recipe.routes, CODER)
    results = pipeline(run, recipe, resolve("demo", "student"), resolve("demo", "teacher"), others)
    return asked | {"results": results}


def _places(asked: dict[str, Any]) -> dict[str, str]:
    stages = {name: stage for name, stage in asked.items() if name not in ("results", "seeds")}
    return {name: next(iter(stage.workspaces().values())).fingerprint for name, stage in stages.items()}


def test_a_route_to_the_runs_own_teacher_is_none_and_every_stage_is_the_one_of_before() -> None:
    before = _asked()
    for teachers in (None, {}, {"*": "demo"}, {"code": "demo"}):
        assert _places(_asked(teachers=teachers)) == _places(before)
    assert "categories" not in before["logits"].workspace().spec


def test_each_teacher_scores_its_categories_and_students_are_compared_with_the_runs_own() -> None:
    asked = _asked(teachers=TEACHERS, evaluation=Evaluation(teacher="topk"))
    assert (asked["logits"].categories, asked[STORE].categories) == (OTHERS, OWN)
    assert (asked["logits"].teacher.name, asked[STORE].teacher) == ("demo", CODER)
    assert (asked["kd"].data, asked["kd"].routed) == (_ref("logits"), (_ref(STORE),))
    assert asked["sft"].workspace().fingerprint == _places(_asked())["sft"]
    assert asked["evaluate"].teacher.name == asked["heldout_scores"].teacher.name == "demo"
    assert asked["heldout_scores"].categories is None
    places = _places(asked)
    assert len({places[name] for name in ("logits", STORE)} | {_places(_asked())["logits"]}) == 3
    assert places["kd"] != _places(_asked())["kd"]
    assert asked["results"].stages[STORE] == _ref(STORE)


def test_rounds_and_the_choice_of_rows_keep_the_routes() -> None:
    asked = _asked(teachers=TEACHERS, rounds=Rounds(rounds=1), fit=Fit(keep=0.5))
    of_round = "logits_1 (code, maths)"
    assert (asked[of_round].teacher, asked[of_round].categories) == (CODER, OWN)
    [part] = asked["round_1"].also
    assert (part.scores, part.routed) == (_ref("logits_1"), (_ref(of_round),))
    assert asked["round_1"].routed == asked["kd"].routed == asked["kd_continued"].routed
    assert {ref.kind for ref in asked["round_1"].workspace().inputs.values()} >= {"logits", STORE, of_round}
    assert (asked["student_scores"].categories, asked["fit"].routed) == (None, (_ref(STORE),))
    alone = _asked(teachers=TEACHERS, rounds=Rounds(rounds=1, on_policy_share=1.0))["round_1"]
    assert (alone.data, alone.routed, alone.also) == (_ref("logits_1"), (_ref(of_round),), ())


def test_two_teachers_for_the_rest_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"teachers names 72B for '\*', every other category, and teacher is"):
        Recipe.of({"teachers": {"*": "72B"}})
    assert Recipe.of({"teacher": "72B", "teachers": {"*": "72B", "code": "32B"}}).routes == {"32B": ("code",)}


def test_a_category_that_no_row_can_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    MemoryStore().replace(monkeypatch)

    def said(unnamed: int, augmentation: Augmentation) -> list[str]:
        work = Workspace("seeds", 1, {"unnamed": unnamed}, {})
        row = Row(instruction="Count", response="1", task_category="sql")
        work.put(f"{TRAIN}00000.parquet", to_parquet([row]))
        seeds = work.publish((TRAIN,), {"seeds": 1, "heldout": 0, "unnamed": unnamed}, {})
        teachers = {"sql": "coder", "code writing": "coder", "poems": "coder"}
        return check_routes(seeds, Recipe.of({"teachers": teachers, "augmentation": augmentation}))

    assert said(0, Augmentation()) == [
        "teachers has a teacher for 'code writing', 'poems', and no row has that task category: they have 'sql'"
    ]
    [named] = said(2, Augmentation())  # an agent will name them
    assert named.startswith("teachers has a teacher for 'poems', and no row has")
    assert said(2, Augmentation(categories=("poems", "code writing"))) == []
    assert said(2, Augmentation(enabled=False))[0].startswith("teachers has a teacher for 'code writing', 'poems'")


def test_a_plan_costs_each_teacher_by_its_own_rows() -> None:
    one = {stage.name: stage for stage in stages_of(known())}
    inputs = known(others=(OtherTeacher("code", size_of("72B", None), 0.25),), rounds=Rounds(rounds=1))
    two = {stage.name: stage for stage in stages_of(inputs)}
    assert (two["logits"].rows, two["logits (code)"].rows) == (750, 250)
    assert (two["logits"].tokens or 0) + (two["logits (code)"].tokens or 0) == one["logits"].tokens
    assert two["logits (code)"].hours > two["logits"].hours
    assert two["logits_1"].rows + two["logits_1 (code)"].rows == inputs.answers
    small = known(others=(OtherTeacher("code", size_of("0.5B", None), 0.25),))
    assert "the teacher of code (0.49 billion parameters) is no larger than the student" in str(make_plan(small, find))
