"""The models that the demo ships are what it says they are."""

import json

import pytest
from transformers import AutoTokenizer, Qwen2ForCausalLM

from tasks.demo.build_data import DATA
from tasks.demo.training import execution_accuracy


@pytest.mark.parametrize(
    ("name", "every", "low", "high"),
    [
        ("teacher", 16, 0.85, 1.0),
        ("teacher-medium", 16, 0.7, 1.0),
        ("teacher-small", 16, 0.5, 1.0),
        *((name, 40, 0.0, 0.05) for name in ("student", "student-medium", "student-small")),
    ],
)
def test_the_teacher_knows_the_task_and_the_base_student_does_not(
    name: str, every: int, low: float, high: float
) -> None:
    rows = [json.loads(line) for line in (DATA / "heldout.jsonl").read_text().splitlines()][::every]
    tokenizer = AutoTokenizer.from_pretrained(DATA / name)
    model = Qwen2ForCausalLM.from_pretrained(DATA / name, dtype="float32")
    assert model.config.hidden_size // model.config.num_attention_heads in (32, 64)  # what vLLM takes on a CPU
    assert low <= execution_accuracy(model, tokenizer, rows) <= high
    assert (DATA / name / "model.safetensors").stat().st_size <= 8 * 1024**2
