"""lm-eval by task name on vLLM: a task of our own comes out as the model's own log-probs say."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest

from infra.artifacts import ArtifactReader
from infra.errors import ConfigurationError
from infra.models import DEMO, ModelSource, load_tokenizer
from tasks.evaluate import harness
from tasks.evaluate.benchmark_settings import Benchmarks
from tasks.logits.settings import Scoring
from tests.support.eval_data import QUESTIONS, own_task

MODEL = ModelSource(name="teacher", path=str(DEMO / "teacher"))
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


def _run(options: Benchmarks, scoring: Scoring) -> Any:
    work = harness.workspace(MODEL, options, scoring)
    return harness.run(work, MODEL, options, scoring, lambda event: None)


@installed
@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_a_task_of_ones_own_scores_as_the_models_own_log_probs_say(
    options: Benchmarks, engine: Literal["vllm", "transformers"]
) -> None:
    scoring = Scoring(engine=engine, max_batched_tokens=512)
    ref = _run(options, scoring)
    found = ArtifactReader(ref).read_json(harness.RESULTS)["tasks"]["own_choice"]
    chosen = [_most_likely(question) for question in QUESTIONS]
    accuracy = sum(best == question["answer"] for best, question in zip(chosen, QUESTIONS, strict=True)) / len(
        QUESTIONS
    )
    assert found["documents"] == ref.counts["documents"] == len(QUESTIONS)
    assert found["metrics"]["acc"]["value"] == pytest.approx(accuracy)
    lines = ArtifactReader(ref).read("samples/own_choice.jsonl").decode().splitlines()
    told = [json.loads(line) for line in lines]
    best = [max(range(3), key=lambda c: float(one["filtered_resps"][c][0])) for one in told]
    assert best == [chosen[one["doc_id"]] for one in told]
    assert harness.workspace(MODEL, options, scoring).find() is not None


def _most_likely(question: dict[str, Any]) -> int:
    """The choice with the most log-probability after the question, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert MODEL.path is not None
    tokenizer = AutoTokenizer.from_pretrained(MODEL.path)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL.path)
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

    from tasks.evaluate.harness_program import ending

    base = tmp_path / "base"
    shutil.copytree(str(MODEL.path), base)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "top_p": 0.8}))
    folder = ending(ModelSource(name="base", path=str(base)), tmp_path / "ending")
    told = GenerationConfig.from_pretrained(folder)
    tokenizer = load_tokenizer(MODEL)
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


def test_lm_eval_that_is_not_installed_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigurationError, match="asks for gsm8k, mmlu, and lm-eval is not installed: install the extra"
    ):
        harness.preflight(Benchmarks(harness=("gsm8k", "mmlu")))


def test_a_changed_task_file_is_another_result(options: Benchmarks) -> None:
    before = harness.workspace(MODEL, options, Scoring()).fingerprint
    file = Path(str(options.harness_task_folder)) / "own_choice.yaml"
    file.write_text(file.read_text() + "\n# changed\n")
    assert harness.workspace(MODEL, options, Scoring()).fingerprint != before
