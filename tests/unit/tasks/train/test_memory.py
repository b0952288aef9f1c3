"""The memory estimate: DeepSpeed's own formulas, real models' sizes, and advice that helps."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from infra.errors import OutOfMemoryError
from tasks.engines.sizes import ModelShape
from tasks.train.memory import Placement, advice, check_fits, estimate
from tasks.train.settings import Lora
from tests.support.families import tiny_config

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
    ours = estimate(shape, Placement(zero_stage=3, offload=offload), ranks, 0).states
    _, theirs, _ = estimate_zero3_model_states_mem_needs(
        shape.parameters, shape.largest_layer, ranks, cpu_offload=cpu, cpu_offload_params=offload == "parameters"
    )
    assert ours == pytest.approx(theirs, abs=2)
    ours = estimate(shape, Placement(zero_stage=2, offload="optimizer" if cpu else "none"), ranks, 0).states
    assert ours == pytest.approx(
        estimate_zero2_model_states_mem_needs(shape.parameters, ranks, cpu_offload=cpu)[1], abs=2
    )


def test_every_stage_and_what_is_advised_take_less() -> None:
    shape = ModelShape.of(QWEN_7B)
    by_stage = [estimate(shape, Placement(zero_stage=stage), 8, 8192).total for stage in (0, 1, 2, 3)]
    assert by_stage == sorted(by_stage, reverse=True)
    plain = Placement(zero_stage=2, micro_batch=2)
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
    least = Placement(zero_stage=3, micro_batch=1, gradient_checkpointing=True, offload="parameters")
    assert advice(shape, least, 8, 8192, Lora()).endswith("tokens at once: use more or larger devices")


@pytest.mark.parametrize("rank", [8, 64])
def test_adapters_are_those_that_peft_puts_on(rank: int) -> None:
    """Counted by hand for Qwen2.5-0.5B, and by peft for the model built on no memory."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    from tasks.train.model.adapters import with_adapters

    shape = ModelShape.of(QWEN)
    # a layer: q and o 896+896, k and v 896+128, gate, up and down 896+4864
    by_hand = 24 * rank * (2 * 1792 + 2 * 1024 + 3 * 5760)
    assert shape.adapters(rank) == by_hand
    with torch.device("meta"):
        model = with_adapters(AutoModelForCausalLM.from_config(Qwen2Config(**QWEN)), Lora(rank=rank))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == by_hand


def test_states_under_adapters_by_hand() -> None:
    """Qwen2.5-0.5B, rank 8: 494,032,768 weights of which biases are left out, 4,399,104 in adapters, 4 devices."""
    shape, lora = ModelShape.of(QWEN), Lora(rank=8)
    frozen, trained, gathered = shape.parameters, 4_399_104, 151_936 * 896
    by_stage = {
        0: 2 * frozen + 8 * trained + 12 * trained // 4,  # see `tasks.train.model.student`
        1: 2 * frozen + 8 * trained + 12 * trained // 4,
        2: 2 * frozen + 2 * trained + 18 * trained // 4,
        3: 4 * gathered + 2 * frozen // 4 + 18 * trained // 4,
    }
    for stage, wanted in by_stage.items():
        found = estimate(shape, Placement(zero_stage=stage), 4, 0, lora).states  # type: ignore[arg-type]
        assert found == pytest.approx(wanted, abs=4), stage
    on_cpu = {0: 4 * frozen + 16 * trained, 2: 4 * frozen + 4 * trained + 16 * trained // 4}
    for stage, wanted in on_cpu.items():
        run = Placement(zero_stage=stage)  # type: ignore[arg-type]
        assert estimate(shape, run, 4, 0, lora, half=False).states == pytest.approx(wanted, abs=4), stage


@pytest.mark.parametrize("ranks", [1, 8])
@pytest.mark.parametrize("offload", ["none", "optimizer"])
def test_adapters_cost_what_deepspeed_says_of_a_model_of_their_size(ranks: int, offload: Any) -> None:
    """And the frozen weights, of which DeepSpeed's estimators know nothing, two bytes each on top."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    shape, lora = ModelShape.of(QWEN_7B), Lora(rank=16)
    trained, cpu = shape.adapters(lora.rank), offload != "none"
    ours = estimate(shape, Placement(zero_stage=2, offload=offload), ranks, 0, lora).states
    theirs = estimate_zero2_model_states_mem_needs(trained, ranks, cpu_offload=cpu)[1]
    assert ours == pytest.approx(theirs + 2 * shape.parameters, abs=4)
    ours = estimate(shape, Placement(zero_stage=3, offload=offload), ranks, 0, lora).states
    _, theirs, _ = estimate_zero3_model_states_mem_needs(
        trained, shape.largest_layer, ranks, cpu_offload=cpu, cpu_offload_params=False
    )
    assert ours == pytest.approx(theirs + 2 * shape.parameters / ranks, abs=4)


def test_what_cannot_fit_is_refused_with_what_to_change_and_what_just_fits_is_not() -> None:
    shape, run, gib = ModelShape.of(QWEN_7B), Placement(zero_stage=2, micro_batch=2), 2**30
    states = estimate(shape, run, 8, 0).states
    check_fits(shape, run, 8, 8192, None, states)
    with pytest.raises(OutOfMemoryError, match=r"does not fit into 24.0 GiB a device: ZeRO-2 on 8 .*zero_stage to 3"):
        check_fits(shape, run, 8, 8192, None, 24 * gib)
    check_fits(shape, run, 8, 8192, Lora(), 24 * gib)
    check_fits(shape, run.model_copy(update={"zero_stage": 3}), 8, 8192, None, 24 * gib)


@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (2, 1), (2, 2), (3, 2)])
def test_the_estimate_on_a_cpu_is_no_more_than_what_training_there_takes(stage: Any, ranks: int) -> None:
    """Adam in fp32 takes 16 bytes a parameter at the least; what fits must not be refused."""
    shape = ModelShape.of(QWEN)
    everything = ranks * estimate(shape, Placement(zero_stage=stage), ranks, 0, half=False).states
    split = 4 * shape.parameters if stage else 0  # each partition's copy of the weights
    whole = 4 * shape.parameters * (ranks - 1) if stage < 3 else 8 * shape.largest_layer * ranks
    assert everything <= 16 * shape.parameters + split + whole + ranks


def test_the_estimate_needs_nothing_heavy() -> None:
    code = (
        "import sys, tasks.train.memory; print([m for m in ('torch', 'deepspeed', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


MOE: dict[str, Any] = {  # Qwen3-30B-A3B
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151_936,
    "tie_word_embeddings": False,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
MIXTRAL: dict[str, Any] = {  # 8x7B
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32_000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


@pytest.mark.parametrize(
    ("config", "billions", "active"),
    [
        (MOE, 30.53, 3.35),
        (MIXTRAL, 46.70, 12.88),
        (MOE | {"mlp_only_layers": [0]}, 29.96, 3.35),
        (QWEN_7B, 7.616, 7.616),
        (QWEN_7B | {"num_experts": None}, 7.616, 7.616),
    ],
)
def test_all_experts_are_held_and_some_are_met(config: dict[str, Any], billions: float, active: float) -> None:
    shape = ModelShape.of(config)
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=3e-3)
    assert shape.active / 1e9 == pytest.approx(active, rel=1e-2)


@pytest.mark.parametrize("family", ["qwen2", "qwen2_moe", "qwen3_moe", "mixtral", "glm4_moe", "olmoe", "ernie4_5_moe"])
def test_counts_are_those_of_the_model_itself(family: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    config = tiny_config(family, hidden_size=64)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    real = sum(parameter.numel() for parameter in model.parameters())
    assert ModelShape.of(config.to_dict()).parameters == pytest.approx(real, rel=0.03)
