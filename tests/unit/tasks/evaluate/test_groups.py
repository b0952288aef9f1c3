"""Variants are grouped so that each group's weights fit beside the teacher, in few groups."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tasks.evaluate.heldout import scoring
from tasks.evaluate.heldout.groups import LOGITS, batch_bytes, groups, room
from tasks.models import resolve

NAMES = st.dictionaries(st.text(min_size=1, max_size=4), st.integers(0, 100), max_size=8)


def test_students_of_one_size_fill_one_group_after_the_other_and_the_teacher_takes_nothing() -> None:
    sizes = {"base": 10, "sft": 10, "sft_control": 10, "kd": 10, "teacher": 0}
    assert groups(sizes, 40) == [list(sizes)]
    assert groups(sizes, 39) == [["base", "sft", "sft_control", "teacher"], ["kd"]]
    assert groups(sizes, 20) == [["base", "sft", "teacher"], ["sft_control", "kd"]]
    assert len(groups(sizes, 9)) == 5
    assert groups({}, 40) == []


def test_large_ones_first_fill_fewer_groups_than_one_after_the_other() -> None:
    sizes = {"a": 2, "b": 5, "c": 4, "d": 7, "e": 1, "f": 3, "g": 8}
    assert groups(sizes, 10) == [["a", "g"], ["b", "c", "e"], ["d", "f"]]


@given(NAMES, st.integers(-5, 120))
def test_everyone_is_in_one_group_that_fits_and_no_two_groups_fit_together(sizes: dict[str, int], space: int) -> None:
    found = groups(sizes, space)
    assert sorted(name for group in found for name in group) == sorted(sizes)
    totals = [sum(sizes[name] for name in group) for group in found]
    assert all(total <= space for total, group in zip(totals, found, strict=True) if len(group) > 1)
    assert all(a + b > space for i, a in enumerate(totals) for b in totals[i + 1 :])


def test_room_is_what_the_teacher_and_a_batch_leave_and_half_beside_one_that_does_not_fit() -> None:
    assert room(1000, 500, 100) == 300
    assert room(1000, 10_000, 100) == 400


def test_a_batch_takes_the_logits_of_both_models_up_to_their_limit() -> None:
    few = batch_bytes(10, 2, 100, 50, 4) - batch_bytes(10, 1, 100, 50, 4)
    assert few == 10 * 150 * 4
    most = batch_bytes(2048, 10_000, 152_000, 152_000, 2)
    assert most == batch_bytes(2048, 20_000, 152_000, 152_000, 2)
    assert 2 * 2 * LOGITS * 0.99 < most < 2 * 2 * LOGITS + 2 * 2**30
    assert batch_bytes(10**6, 1, 152_000, 0, 2) > 2 * 10**6 * 152_000


def test_the_weights_of_a_model_are_known_before_it_is_loaded() -> None:
    source = resolve("demo", "teacher")
    weights = load_file(Path(str(source.path)) / "model.safetensors")
    assert scoring.loaded_bytes(source) == scoring.width() * sum(weight.numel() for weight in weights.values())
