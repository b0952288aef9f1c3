"""The memory estimate: DeepSpeed's own formulas, real models' sizes, and advice that helps."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.train.memory import ModelShape, advice, estimate
from tasks.train.settings import TrainingRun

QWEN: dict[str, Any] = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}
QWEN_7B = QWEN | {
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152_064,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(("config", "billions"), [(QWEN, 0.494), (QWEN_7B, 7.616)])
def test_parameters_are_those_of_the_real_models(config: dict[str, Any], billions: float) -> None:
    assert ModelShape.of(config).parameters / 1e9 == pytest.approx(billions, rel=1e-3)


@pytest.mark.parametrize("ranks", [1, 8])
@pytest.mark.parametrize("offload", ["none", "optimizer", "parameters"])
def test_states_are_deepspeeds_own_estimate(ranks: int, offload: Any) -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    shape = ModelShape.of(QWEN_7B)
    cpu = offload != "none"
    ours = estimate(shape, TrainingRun(zero_stage=3, offload=offload), ranks, 0).states
    _, theirs, _ = estimate_zero3_model_states_mem_needs(
        shape.parameters, shape.largest_layer, ranks, cpu_offload=cpu, cpu_offload_params=offload == "parameters"
    )
    assert ours == pytest.approx(theirs, abs=2)
    ours = estimate(shape, TrainingRun(zero_stage=2, offload="optimizer" if cpu else "none"), ranks, 0).states
    assert ours == pytest.approx(
        estimate_zero2_model_states_mem_needs(shape.parameters, ranks, cpu_offload=cpu)[1], abs=2
    )


def test_every_stage_and_what_is_advised_take_less() -> None:
    shape = ModelShape.of(QWEN_7B)
    by_stage = [estimate(shape, TrainingRun(zero_stage=stage), 8, 8192).total for stage in (0, 1, 2, 3)]
    assert by_stage == sorted(by_stage, reverse=True)
    plain = TrainingRun(zero_stage=2, micro_batch=2)
    saved = estimate(shape, plain.model_copy(update={"gradient_checkpointing": True}), 8, 8192)
    assert saved.activations < estimate(shape, plain, 8, 8192).activations / 5
    text = advice(shape, plain, 8, 8192)
    for words in (
        "7.62 billion",
        "run.micro_batch",
        "run.gradient_checkpointing",
        "run.zero_stage to 3",
        "run.offload",
    ):
        assert words in text
    least = TrainingRun(zero_stage=3, micro_batch=1, gradient_checkpointing=True, offload="parameters")
    assert advice(shape, least, 8, 8192).endswith("use more or larger devices")
