"""Rounds in the pipeline: what each is made from, and nothing of them where there are none."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from flows.checks import check_models
from flows.pipeline import Results, pipeline
from flows.plan import _that_will_be
from flows.recipe import Recipe
from infra.errors import ConfigurationError
from infra.stage import Stage
from infra.store.artifacts import ArtifactRef
from tasks.augment.stage import Augment
from tasks.evaluate.analysis.comparisons import PAIRS, pairs_of
from tasks.evaluate.stage import Evaluate
from tasks.evaluate.variants import VARIANTS, in_order, variants
from tasks.fit.settings import Fit
from tasks.logits.stage import ScoreTeacher
from tasks.models import resolve
from tasks.report.stage import label_of
from tasks.rollout.checks import STOPS
from tasks.rollout.settings import Rounds
from tasks.rollout.stage import Rollout, ScoreRollouts
from tasks.train.settings import Distillation
from tasks.train.stage import Train


def _ref(name: str) -> ArtifactRef:
    counts = {"rows": 9, "conversations": 0}
    return ArtifactRef(kind=name, uri=f"s3://b/{name}/f/", sha256=name * 9, fingerprint="f", counts=counts)


def _asked(stops: str = "", **parameters: Any) -> tuple[dict[str, Any], Results]:
    """Every stage by its title, and what the pipeline comes to; the stage called `stops` ends the rounds."""
    asked: dict[str, Any] = {}

    def run(stage: Stage[Any]) -> Any:
        asked[stage.title] = stage
        if stage.title == stops:
            return _ref(stops).model_copy(update={"counts": {"rows": 9, STOPS: 1}})
        if isinstance(stage, Evaluate):
            return {name: _ref(f"evaluate-{name}") for name in stage.models}
        return stage.result(defaultdict(lambda: _ref("augment" if isinstance(stage, Augment) else stage.title)))

    return asked, pipeline(run, Recipe.of(parameters), resolve("demo", "student"), resolve("demo", "teacher"))


def test_without_rounds_every_stage_is_the_one_of_before() -> None:
    before, results = _asked()
    asked, same = _asked(rounds=Rounds(steps=7, n=3, temperature=0.5))
    assert asked == before
    assert same == results
    assert results.evaluations.keys() == set(VARIANTS)
    assert not [stage for stage in before.values() if isinstance(stage, Rollout | ScoreRollouts)]


def test_each_round_is_made_from_the_student_before_and_control_and_rounds_take_as_many_steps() -> None:
    asked, results = _asked(rounds=Rounds(rounds=2, steps=30, on_policy_share=0.25))
    kd, continued = asked["kd"], asked["kd_continued"]
    models = {"kd": _ref("kd"), "round_1": _ref("round_1")}
    for number, before in ((1, "kd"), (2, "round_1")):
        rollout, scored, training = (asked[f"{what}_{number}"] for what in ("rollout", "logits", "round"))
        assert rollout.model.artifact == training.model.artifact == models[before]
        assert rollout.rows == kd_rows(asked)
        assert scored.rows == _ref(f"rollout_{number}")
        assert scored.teacher == asked["logits"].teacher
        assert training.data == kd.data == _ref("logits")
        [part] = training.also
        assert (part.scores, part.share) == (_ref(f"logits_{number}"), 0.25)
        assert (training.training.tail, training.training.temperature) == ("bucket", 1.0)
    assert (continued.model.artifact, continued.data, continued.also) == (models["kd"], kd.data, ())
    assert continued.training.max_steps == 2 * asked["round_1"].training.max_steps == 60
    assert continued.training.model_copy(update={"max_steps": 30}) == asked["round_2"].training
    assert list(results.evaluations) == list(asked["evaluate"].models) == list(variants(2))
    assert results.stages.keys() >= {"rollout_1", "logits_2", "round_2", "kd_continued"}
    read = "seeds", "own_1", "own_2"  # whose workspaces look into their data and models
    places = {title: next(iter(stage.workspaces().values())) for title, stage in asked.items() if title not in read}
    assert len({work.fingerprint for work in places.values()}) == len(places)
    assert {places[name].kind for name in ("round_1", "round_2")} == {"kd_round"}
    assert places["logits_1"].kind == "logits"


def kd_rows(asked: dict[str, Any]) -> ArtifactRef:
    rows: ArtifactRef = asked["sft"].data
    return rows


def test_rows_that_were_chosen_for_the_student_are_what_it_answers() -> None:
    asked, _results = _asked(rounds=Rounds(rounds=1), fit=Fit(keep=0.5))
    assert asked["rollout_1"].rows == asked["kd"].only == asked["round_1"].only == _ref("fit")


def test_rounds_of_the_students_answers_alone_train_on_no_other_store() -> None:
    asked, _results = _asked(rounds=Rounds(rounds=1, on_policy_share=1.0))
    assert (asked["round_1"].data, asked["round_1"].also) == (_ref("logits_1"), ())


def test_a_share_is_part_of_what_a_training_is() -> None:
    one, other = (_asked(rounds=Rounds(rounds=1, on_policy_share=share))[0]["round_1"] for share in (0.25, 0.5))
    assert one.workspace().fingerprint != other.workspace().fingerprint
    assert isinstance(one, Train)
    assert issubclass(ScoreRollouts, ScoreTeacher)


def test_variants_are_in_the_order_of_training_and_rounds_are_compared_with_their_control() -> None:
    assert in_order(["teacher", "mine", "round_10", "round_2", "kd", "base"]) == [
        *("base", "kd", "round_2", "round_10", "teacher", "mine")
    ]
    assert pairs_of(variants(0)) == list(PAIRS)
    assert pairs_of(variants(3)) == [*PAIRS, ("round_3", "kd_continued"), ("round_3", "kd")]
    assert label_of("round_2") == "KD + on-policy round 2"


def test_a_batch_without_a_row_for_one_of_the_two_is_refused_before_anything_is_spent() -> None:
    student, teacher = resolve("demo", "student"), resolve("demo", "teacher")
    rounds = Rounds(rounds=1, on_policy_share=0.01)
    problems, _remarks = check_models(student, teacher, Distillation(global_batch=8), rounds)
    assert problems == ["kd.global_batch=8 has no row for a share of 0.01 (rounds.on_policy_share): raise one of them"]
    assert check_models(student, teacher, Distillation(global_batch=8), Rounds(on_policy_share=0.01))[0] == []
    with pytest.raises(ConfigurationError, match="raise one of them"):
        Rounds(on_policy_share=0.99).check_batch(8)
    Rounds(on_policy_share=1.0).check_batch(8)


def test_each_round_is_looked_at_by_the_scores_of_both_before_it_is_trained() -> None:
    asked, results = _asked(rounds=Rounds(rounds=2))
    titles = [title for title in asked if title.endswith(("_1", "_2"))]
    assert titles == [f"{what}_{n}" for n in (1, 2) for what in ("rollout", "logits", "own", "overlap", "round")]
    one, two = asked["overlap_1"], asked["overlap_2"]
    assert (one.rollouts, one.teacher, one.student) == (_ref("rollout_1"), _ref("logits_1"), _ref("own_1"))
    assert (one.before, two.before) == (None, _ref("overlap_1"))
    own = asked["own_2"]
    assert own.teacher == asked["rollout_2"].model
    assert (own.rows, own.k, own.turns) == (_ref("rollout_2"), asked["logits"].k, "last")
    assert results.stages.keys() >= {"own_1", "overlap_2"}
    other = one.model_copy(update={"rounds": Rounds(least_agreement=0.5)})
    assert other.workspace().fingerprint != one.workspace().fingerprint


def test_a_student_too_far_from_its_teacher_has_no_round_and_the_run_goes_on_with_kd() -> None:
    asked, results = _asked(stops="overlap_1", rounds=Rounds(rounds=3))
    assert not {"round_1", "kd_continued", "rollout_2"} & asked.keys()
    assert results.stages["overlap_1"].counts[STOPS] == 1
    assert set(results.evaluations) == set(VARIANTS)


def test_after_a_round_without_gain_no_other_follows_and_the_control_has_as_many_steps() -> None:
    rounds = Rounds(rounds=5, steps=30, validation_rows=4)
    asked, results = _asked(stops="validation_2", rounds=rounds)
    assert not {"round_3", "rollout_3"} & asked.keys()
    assert asked["kd_continued"].training.max_steps == 60
    assert list(results.evaluations) == list(variants(2))
    assert [asked[f"validation_{n}"].before for n in (0, 1)] == [None, _ref("validation_0")]
    assert asked["validation_0"].teacher == _ref("logits")
    students = [asked[f"validation_scores_{n}"].teacher.name for n in (0, 1, 2)]
    assert students == ["kd", "round_1", "round_2"]
    assert [asked[f"validation_scores_{n}"].rows for n in (0, 1)] == 2 * [_ref("validation_rows")]


def test_nothing_of_a_run_is_trained_on_its_validation_part_and_all_is_as_before_without_one() -> None:
    asked, _results = _asked(rounds=Rounds(rounds=1, validation_rows=4))
    trained = _ref("trained_rows")
    assert asked["sft"].data == asked["sft_control"].data == asked["rollout_1"].rows == trained
    assert asked["kd"].only == asked["round_1"].only == asked["kd_continued"].only == trained
    assert asked["logits"].rows == _ref("augment")
    before, _ = _asked()
    for how in (Rounds(rounds=0, validation_rows=4), Rounds(rounds=1)):
        same, _ = _asked(rounds=how)
        assert {name: same[name] for name in ("sft", "kd", "logits", "sft_control")} == {
            name: before[name] for name in ("sft", "kd", "logits", "sft_control")
        }


def test_a_plan_knows_of_rounds_that_have_ended() -> None:
    def stopped(title: str) -> int:
        found = {"kd": _ref("kd"), title: _ref(title).model_copy(update={"counts": {STOPS: 1}})}
        return _that_will_be(Rounds(rounds=5), found).rounds

    assert (stopped("overlap_1"), stopped("validation_2")) == (0, 2)
    assert _that_will_be(Rounds(rounds=5), {"overlap_1": _ref("overlap_1")}).rounds == 5
