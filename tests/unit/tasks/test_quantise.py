"""Formats of a student: what they are called, where they stand among variants, and what is refused before a run."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from flows.checks import check_quantised
from flows.recipe import Recipe
from infra.errors import ConfigurationError
from tasks.evaluate.variants import in_order
from tasks.models import ModelSource, resolve
from tasks.quantise.checks import check_formats
from tasks.quantise.settings import Format, Quantisation, format_of
from tasks.report.stage import label_of
from tasks.shipped import DEMO

installed = pytest.mark.skipif(
    importlib.util.find_spec("cyllama") is None, reason="the extra `quantise` is not installed"
)


def _student(folder: Path, **changes: object) -> ModelSource:
    shutil.copytree(DEMO / "student", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return ModelSource(name="own", path=str(folder))


def test_quantised_students_stand_after_the_one_that_they_are_made_of() -> None:
    given = ["teacher", "round_1_q4_k_m", "kd_fp8", "kd_q8_0", "round_1", "kd", "base"]
    assert in_order(given) == ["base", "kd", "kd_q8_0", "kd_fp8", "round_1", "round_1_q4_k_m", "teacher"]
    assert format_of("round_1_q4_k_m") == ("round_1", "q4_k_m")
    assert format_of("sft_control") == ("sft_control", None)
    assert label_of("round_1_q4_k_m") == "KD + on-policy round 1, Q4_K_M"


def test_how_formats_are_given_changes_nothing() -> None:
    assert Quantisation(formats=("fp8", "q8_0")) == Quantisation(formats=("q8_0", "fp8", "q8_0"))
    with pytest.raises(ValueError, match=r"quantise|pattern"):
        Quantisation(student="teacher")


def test_a_student_that_the_run_does_not_train_is_refused() -> None:
    recipe = Recipe.of({"quantise": Quantisation(formats=("int8",), student="round_2")})
    (problem,) = check_quantised(recipe, resolve("demo", "student"), here=False)
    assert "quantise.student=round_2 is not trained in this run: it compares base, sft" in problem


@pytest.mark.parametrize("form", ["q8_0", "q4_k_m"])
def test_a_family_that_no_test_proved_is_refused_for_gguf_alone(tmp_path: Path, form: Format) -> None:
    model = _student(tmp_path / "model", model_type="olmo2")
    with pytest.raises(ConfigurationError, match=rf"'own' cannot be quantised to {form}: no proof .* type 'olmo2'"):
        check_formats(model, Quantisation(formats=(form,)), here=False)
    check_formats(model, Quantisation(formats=("int8", "fp8")), here=False)


def test_experts_are_not_compressed(tmp_path: Path) -> None:
    model = _student(tmp_path / "model", model_type="qwen3_moe", num_experts=8)
    with pytest.raises(ConfigurationError, match="cannot be quantised to int8, since it has experts"):
        check_formats(model, Quantisation(formats=("int8",)), here=False)


def test_a_missing_package_is_told_with_its_extra_and_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "cyllama" else there(name, *rest)
    )
    asked = Quantisation(formats=("q4_k_m",))
    with pytest.raises(ConfigurationError, match=r"needs .*cyllama.* pip install 'distilflow\[quantise\]'"):
        check_formats(resolve("demo", "student"), asked, here=True)
    check_formats(resolve("demo", "student"), asked, here=False)


@installed
def test_a_tokenizer_that_llama_cpp_cannot_follow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's is known by how it cuts texts, as Qwen's; its digest llama.cpp cannot know."""
    asked = Quantisation(formats=("q8_0",))
    check_formats(resolve("demo", "student"), asked, here=True)
    monkeypatch.setattr("tasks.quantise.pre_tokenizer._SPLITS", {})
    with pytest.raises(ConfigurationError, match="llama.cpp does not know how its tokenizer cuts texts"):
        check_formats(resolve("demo", "student"), asked, here=True)
