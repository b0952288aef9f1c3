"""Whatever config, tokenizer and weights tell already stops before the first stage, in one sentence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.checks import check_engines, check_models, check_run, check_tools
from flows.preflight import Models, check_seeds
from flows.recipe import Recipe
from infra.errors import ConfigurationError
from infra.store.artifacts import ArtifactRef
from tasks.evaluate.settings import Evaluation
from tasks.logits.settings import Scoring
from tasks.models import ModelSource, resolve
from tasks.train.settings import Distillation
from tests.support.families import tiny_config
from tests.support.templates import FAMILIES, source_of
from tests.support.tool_templates import TOOL_FAMILIES

Change = Callable[[Path], None]


def _written(name: str, change: Callable[[Any], Any]) -> Change:
    def write(folder: Path) -> None:
        path = folder / name
        told = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(change(told)))

    return write


def _with(name: str, **fields: Any) -> Change:
    return _written(name, lambda told: {**told, **fields})


def _pointer(name: str) -> Change:
    def write(folder: Path) -> None:
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")

    return write


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def _template(text: str) -> Change:
    return _with("tokenizer_config.json", chat_template=text)


REFUSED: dict[str, tuple[Change, str]] = {
    "a recurrent model": (_with("config.json", model_type="mamba"), "type 'mamba'"),
    "weights in 4 bits": (
        _with("config.json", model_type="gpt_oss", quantization_config={"quant_method": "mxfp4"}),
        r"quantised \(mxfp4\)",
    ),
    "a quantised model": (_with("config.json", quantization_config={"quant_method": "awq"}), r"quantised \(awq\)"),
    "a template that turns back": (
        _template("{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"),
        "renders a prompt differently once the answer follows",
    ),
    "a template that refuses all": (
        _template("{{ raise_exception('never') }}"),
        "renders no question and answer: never",
    ),
    "no template": (_written("tokenizer_config.json", lambda told: {"eos_token": "x"}), "has no chat template"),
    "a missing shard": (
        _with("model.safetensors.index.json", weight_map={"a": "model-00001-of-00002.safetensors"}),
        "model-00001-of-00002.safetensors is missing",
    ),
    "a pointer for weights": (_pointer("model.safetensors"), "model.safetensors is a pointer of Git LFS"),
    "a pointer for the tokenizer": (_pointer("tokenizer_config.json"), "tokenizer_config.json is a pointer of Git LFS"),
    "a pointer for the config": (_pointer("config.json"), "config.json is a pointer of Git LFS"),
    "weights that are cut off": (_cut, "model.safetensors is cut off"),
    "no fast tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
}


def _copy(folder: Path, *changes: Change) -> ModelSource:
    shutil.copytree(str(resolve("demo", "student").path), folder)
    for change in changes:
        change(folder)
    return ModelSource(name="mine", path=str(folder))


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_by_name(case: str, tmp_path: Path) -> None:
    change, words = REFUSED[case]
    model = _copy(tmp_path / "model", change)
    (told,), _ = check_models(model, resolve("demo", "teacher"), Distillation())
    assert re.search(f"'mine'.*{words}", told)
    assert "\n" not in told


def test_all_that_is_wrong_with_two_models_is_named_at_once(tmp_path: Path) -> None:
    student = _copy(tmp_path / "student", _with("config.json", model_type="mamba"), _cut)
    teacher = _copy(tmp_path / "teacher", _template("{{ raise_exception('never') }}"), _pointer("model.safetensors"))
    told, _ = check_models(student, teacher, Distillation())
    for words in ("type 'mamba'", "is cut off", "renders no question", "is a pointer of Git LFS"):
        assert len([sentence for sentence in told if words in sentence]) == 1, told


def test_the_demo_and_a_setting_that_transformers_would_not_write_pass(tmp_path: Path) -> None:
    odd = _with("generation_config.json", temperature=0.1, do_sample=False)
    model = _copy(tmp_path / "model", odd)
    assert check_models(model, resolve("demo", "teacher"), Distillation(max_length=384)) == ([], [])


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    narrow = _with("config.json", max_position_embeddings=300)
    _, told = check_models(_copy(tmp_path / "model", narrow), resolve("demo", "teacher"), Distillation(max_length=384))
    assert told == ["student mine was made for texts of 300 tokens: longer rows are left out (kd.max_length is 384)"]


def test_seeds_with_tools_are_told_of_before_anything_is_spent_on_them(tmp_path: Path) -> None:
    def seeds(**counts: int) -> ArtifactRef:
        return ArtifactRef(kind="seeds", uri="s3://b/seeds/f/", sha256="s", fingerprint="f", counts=counts)

    student = source_of(TOOL_FAMILIES["qwen2.5"], tmp_path / "student", "mine")
    teacher = source_of(FAMILIES["qwen2.5"], tmp_path / "teacher", "theirs")
    assert check_tools(seeds(seeds=9), teacher, teacher) == ([], [])
    assert check_tools(seeds(seeds=9, with_tools=9), student, student) == ([], [])
    problems, remarks = check_tools(seeds(seeds=9, with_tools=9), student, teacher)
    assert problems == [
        "the chat template of teacher theirs knows no tools, and every seed uses some: choose a model made for tools, "
        "or other seeds"
    ]
    assert remarks == []
    with pytest.raises(ConfigurationError, match="teacher theirs knows no tools"):
        check_seeds(seeds(seeds=9, with_tools=9), Recipe.of({}), Models(student, teacher, {}))
    assert check_tools(seeds(seeds=9, with_tools=2), teacher, student) == (
        [],
        ["the chat template of student theirs knows no tools: the 2 of 9 seeds that use some are left out"],
    )


def test_a_quantised_teacher_is_refused_where_no_engine_runs_it(tmp_path: Path) -> None:
    """On a CPU; on a GPU, which is no matter of ours, for want of a package that evaluation needs."""
    told = _with("config.json", quantization_config={"quant_method": "awq", "bits": 4})
    teacher = _copy(tmp_path / "model", told)
    (on_cpu,), (on_gpu,) = (check_engines(teacher, Evaluation(), on_gpu=has, here=True) for has in (False, True))
    assert re.search(r"^'mine' cannot run on a CPU: its weights are quantised \(awq\)", on_cpu)
    assert re.search(r"^'mine' cannot be used here: .*evaluation needs, says: .*gptqmodel", on_gpu)
    assert check_engines(teacher, Evaluation(), on_gpu=True, here=False) == []
    assert check_engines(teacher, Evaluation(teacher="topk"), on_gpu=True, here=True) == []
    assert check_engines(teacher, Evaluation(teacher="topk", engine="transformers"), on_gpu=True, here=True) != []
    assert check_engines(resolve("demo", "teacher"), Evaluation(), on_gpu=False, here=True) == []


@pytest.mark.parametrize(("on_gpu", "told"), [(False, 1), (True, 0), (None, 0)])
def test_a_plan_and_a_run_are_told_the_same_of_where_engines_are(on_gpu: bool | None, told: int) -> None:
    recipe, demo = Recipe.of({"scoring": Scoring(pipeline_parallel=2)}), resolve("demo", "teacher")
    problems, _ = check_run(recipe, resolve("demo", "student"), {"demo": demo}, on_gpu=on_gpu, here=False)
    assert len([text for text in problems if text.startswith("scoring.pipeline_parallel is 2, and vLLM's CPU")]) == told
    assert check_run(recipe, None, {"demo": demo}, on_gpu=on_gpu, here=False) == ([], [])


def test_sizes_are_found_where_a_family_hides_them() -> None:
    class Nested(ModelSource):
        def text_file(self, name: str) -> str | None:
            whole = tiny_config("gemma3").to_dict()
            text = {key: whole["text_config"][key] for key in ("hidden_size", "model_type", "num_hidden_layers")}
            return json.dumps({**whole, "text_config": {**text, "layer_types": ["full_attention"] * 2}})

    config = Nested(name="nested").config()
    assert (config["hidden_size"], config["num_hidden_layers"]) == (64, 2)
    assert config["vocab_size"] == 262_208
    assert config["num_attention_heads"] == 8
