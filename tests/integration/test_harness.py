"""lm-eval by task name on vLLM: a task of our own comes out as the model's own log-probs say."""

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigurationError, TransientError
from infra.processes.supervise import Event
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace
from infra.store.claims import made_once
from tasks.evaluate.benchmarks import harness
from tasks.evaluate.benchmarks.settings import Benchmarks
from tasks.logits.settings import Scoring
from tasks.models import ModelSource, load_tokenizer
from tasks.shipped import DEMO
from tests.support.eval_data import QUESTIONS, own_task, wait_after
from tests.support.processes import named, of_home

MODELS = {name: ModelSource(name=name, path=str(DEMO / name)) for name in ("student", "teacher")}
installed = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the extra `eval` is not installed")


@pytest.fixture
def options(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Benchmarks:
    """Six questions of three choices as an lm-eval task."""
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path / "home"))
    return Benchmarks(
        harness=("own_choice",),
        harness_task_folder=str(own_task(tmp_path)),
        harness_chat_template=False,
        harness_max_length=256,
    )


def _works(options: Benchmarks, scoring: Scoring) -> dict[str, Workspace]:
    return harness.LmEval(models=MODELS, options=options, scoring=scoring).workspaces()


def _run(options: Benchmarks, scoring: Scoring, on_event: Any = lambda event: None) -> dict[str, ArtifactRef]:
    """As the task does it."""

    def make(missing: dict[str, Workspace]) -> dict[str, ArtifactRef]:
        return harness.run(missing, MODELS, options, scoring, on_event)

    return made_once(_works(options, scoring), make, pytest.fail)


def _assert_as_the_log_probs_say(ref: ArtifactRef, model: ModelSource) -> None:
    found = ArtifactReader(ref).read_json(harness.RESULTS)["tasks"]["own_choice"]
    chosen = [_most_likely(model, question) for question in QUESTIONS]
    right = sum(best == question["answer"] for best, question in zip(chosen, QUESTIONS, strict=True))
    assert found["documents"] == ref.counts["documents"] == len(QUESTIONS)
    assert found["metrics"]["acc"]["value"] == pytest.approx(right / len(QUESTIONS))
    lines = ArtifactReader(ref).read("samples/own_choice.jsonl").decode().splitlines()
    told = [json.loads(line) for line in lines]
    best = [max(range(3), key=lambda c: float(one["filtered_resps"][c][0])) for one in told]
    assert best == [chosen[one["doc_id"]] for one in told]


@installed
def test_a_task_of_ones_own_scores_as_every_models_own_log_probs_say(options: Benchmarks) -> None:
    """On vLLM, one model after the other in one process."""
    refs = _run(options, Scoring(engine="vllm", max_batched_tokens=512))
    for name, model in MODELS.items():
        _assert_as_the_log_probs_say(refs[f"{name}/harness"], model)


@installed
def test_a_kill_costs_the_variant_under_way(options: Benchmarks, tmp_path: Path) -> None:
    """On the reference engine: the first variant is published by then, and its tasks are not run again.

    The second one waits for a file, so the kill cannot come too late.
    """
    scoring, released = Scoring(engine="transformers"), tmp_path / "released"
    wait_after(Path(str(options.harness_task_folder)), 1, released)

    def kill(event: Event) -> None:
        if event.get("variant") == "teacher/harness":
            running = named(of_home(os.environ["DISTILFLOW_HOME"]), "-m tasks.evaluate.benchmarks.harness_program")
            running[-1].kill()  # its guardian was there before it

    with pytest.raises(TransientError, match="harness ended with exit code 137"):
        _run(options, scoring, kill)
    works, asked = _works(options, scoring), list[str]()
    first = works["student/harness"].find()
    assert first is not None
    assert works["teacher/harness"].find() is None

    released.touch()
    refs = _run(options, scoring, lambda event: asked.append(event.get("variant", "")))
    assert set(filter(None, asked)) == {"teacher/harness"}
    assert refs["student/harness"] == first
    for name, model in MODELS.items():
        _assert_as_the_log_probs_say(refs[f"{name}/harness"], model)


def _most_likely(source: ModelSource, question: dict[str, Any]) -> int:
    """The choice with the most log-probability after the question, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert source.path is not None
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    model: Any = AutoModelForCausalLM.from_pretrained(source.path)
    sums = []
    for choice in question["choices"]:
        prompt = tokenizer(question["question"], add_special_tokens=False).input_ids
        ids = tokenizer(question["question"] + choice, add_special_tokens=False).input_ids
        with torch.inference_mode():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        sums.append(sum(float(logprobs[at - 1, ids[at]]) for at in range(len(prompt), len(ids))))
    return max(range(len(sums)), key=sums.__getitem__)


@installed
def test_lm_eval_ends_an_answer_where_the_template_closes_a_turn(tmp_path: Path) -> None:
    """A base whose own settings name another token, as those of most bases do."""
    from transformers import GenerationConfig

    from tasks.evaluate.benchmarks.harness_program import ending

    base = tmp_path / "base"
    shutil.copytree(str(DEMO / "teacher"), base)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "top_p": 0.8}))
    folder = ending(ModelSource(name="base", path=str(base)), tmp_path / "ending")
    told = GenerationConfig.from_pretrained(folder)
    tokenizer = load_tokenizer(MODELS["teacher"])
    assert set(told.eos_token_id) >= {0, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert told.top_p == 0.8
    assert json.loads((base / "generation_config.json").read_text())["eos_token_id"] == 0
    assert (folder / "model.safetensors").is_symlink()


@installed
def test_a_task_that_lm_eval_does_not_know_is_the_users_mistake(options: Benchmarks) -> None:
    wrong = options.model_copy(update={"harness": ("own_choice", "gsm9k")})
    with pytest.raises(ConfigurationError, match="knows no task 'gsm9k'"):
        harness.preflight(wrong)  # before anything is spent
    with pytest.raises(ConfigurationError, match="knows no task 'gsm9k'"):
        _run(wrong, Scoring())  # where another lm-eval runs it


@installed
def test_tasks_of_ones_own_are_found_without_reading_all_of_lm_evals(options: Benchmarks) -> None:
    assert harness.task_manager(options).all_tasks == ["own_choice"]


def test_lm_eval_that_is_not_installed_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigurationError, match="asks for gsm8k, mmlu, and lm-eval is not installed: install the extra"
    ):
        harness.preflight(Benchmarks(harness=("gsm8k", "mmlu")))


def test_a_changed_task_file_is_another_result(options: Benchmarks) -> None:
    before = _works(options, Scoring())["teacher/harness"].fingerprint
    file = Path(str(options.harness_task_folder)) / "own_choice.yaml"
    file.write_text(file.read_text() + "\n# changed\n")
    assert _works(options, Scoring())["teacher/harness"].fingerprint != before
