"""A sweep's combinations: all of them, each checked before the first is started."""

from typing import Any

import pytest

from flows.grid import GridPoint, deployment_of, grid
from infra.errors import ConfigurationError


def test_every_combination_once_with_nested_settings_merged() -> None:
    shared = {"kd": {"max_steps": 3}, "sft.max_steps": 5, "seed": 1}
    points = grid(["demo"], ["demo", "a/b"], [4, 10], [50], {"kd.temperature": [1, 2.5]}, shared)
    assert len(points) == len({point.name for point in points}) == 8
    last = points[-1]
    assert last.name == "demo-from-a/b-k10-kd.temperature=2.5-50-rows"
    assert last.parameters == {
        "student": "demo",
        "teacher": "a/b",
        "k": 10,
        "seed": 1,
        "sft": {"max_steps": 5},
        "kd": {"max_steps": 3, "temperature": 2.5},
        "scoring": {"k": 10},
        "augmentation": {"max_rows": 50},
    }
    assert points[0].parameters["kd"] == {"max_steps": 3, "temperature": 1}, "a combination has settings of its own"


def test_a_teacher_scores_the_largest_k_for_all_and_one_k_as_ever() -> None:
    shared = {"scoring": {"max_length": 99}}
    for ks, scoring in (([4, 10], {"max_length": 99, "k": 10}), ([4, 4], {"max_length": 99})):
        assert [point.parameters["scoring"] for point in grid(["demo"], ["demo"], ks, None, {}, shared)] == [
            scoring
        ] * len(set(ks))
    assert grid(["demo"], ["demo"], [4, 10], None, {"scoring.k": [50]}, {})[0].parameters["scoring"] == {"k": 50}


def test_seeds_of_one_combination_know_each_other() -> None:
    points = grid(["demo"], ["demo"], [4, 10], None, {"seed": [0, 1]}, {})
    assert [point.name for point in points][:2] == ["demo-from-demo-k4-seed=0", "demo-from-demo-k4-seed=1"]
    assert [point.apart_from_seed for point in points] == ["demo-from-demo-k4"] * 2 + ["demo-from-demo-k10"] * 2


def test_a_combination_named_twice_is_one() -> None:
    assert len(grid(["demo"], ["demo"], [4, 4], None, {}, {})) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"others": {"kd.tail": ["tale"]}}, "demo-from-demo-k10-kd.tail=tale"),
        ({"others": {"colour": ["red"]}}, "colour"),
        ({"shared": {"scoring.k": 4}}, r"scoring.k=4 stores fewer log-probabilities than are learnt from \(k=10\)"),
        ({"others": {"seed": []}}, "seed: the list is empty"),
        ({"shared": {"teacher": "demo"}}, "teacher: both among the sweep's lists and in `shared`"),
        ({"shared": {"sft": {"max_steps": 0}}}, "max_steps"),
        ({"others": {"kd.tail": ["tale", "bucket", "saga"]}}, "kd.tail=tale, demo-from-demo-k10-kd.tail=saga: "),
        (
            {"others": {"kd.tail": ["tale", "bucket"], "sft.max_steps": [0, 5]}, "shared": {"kd": {"temperature": 1}}},
            "^3 problems: .*bucket-sft.max_steps=0",
        ),
        (
            {"others": {"kd.temperature": [1, 2]}, "shared": {"kd": {"tail": "bucket"}}},
            "temperature=2: .*kd.tail=bucket needs",
        ),
        ({"others": {"seed": [0, 1, 2, 3]}, "shared": {"sft": {"max_steps": 0}}}, "seed=2 and 1 more: .*max_steps"),
    ],
)
def test_what_no_run_would_take_is_refused_in_one_sentence(changes: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"others": {}, "shared": {}, **changes}
    with pytest.raises(ConfigurationError, match=words) as found:
        grid(["demo"], ["demo"], [10], None, **given)
    assert "\n" not in str(found.value)


def test_a_student_without_a_deployment_is_named() -> None:
    assert deployment_of(GridPoint("x", {"student": "0.5B"})) == "distill/qwen2.5-0.5b"
    with pytest.raises(ConfigurationError, match="no deployment for the student 'my/model'"):
        deployment_of(GridPoint("x", {"student": "my/model"}))
