"""Which precision is computed in, on which device; what quantised weights are, and who runs them."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from infra import devices
from infra.errors import ConfigurationError
from tasks.engines import device
from tasks.engines.quantised import check_device, check_transformers
from tasks.engines.sizes import Size
from tasks.evaluate.settings import Evaluation
from tasks.logits.settings import Scoring
from tasks.plan.sizes import QWEN2_5
from tasks.precision import Capability, Dtype, Precision, Quantised, dtype_of, note, training_dtype
from tasks.train.settings import TrainingRun

V100, T4, A100, H100 = (7, 0), (7, 5), (8, 0), (9, 0)
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
GPTQ = {"quant_method": "gptq", "bits": 8}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
INT8 = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [(None, "float32"), (V100, "float32"), (T4, "float32"), (A100, "bfloat16"), (H100, "bfloat16")],
)
def test_by_itself_it_is_bf16_where_a_gpu_has_it(capability: Capability | None, chosen: str) -> None:
    assert dtype_of("auto", capability, "s") == training_dtype("auto", capability) == chosen
    told = note("auto", capability)
    assert (told is not None) == (capability in (V100, T4))
    assert told is None or "has no bf16: computing in fp32" in told


def test_of_several_gpus_the_least_is_what_the_driver_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\n[ "$1" = "--query-gpu=compute_cap" ] && printf "9.0\\n8.6\\n12.0\\n[N/A]\\n"\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.capability() == (8, 6)
    assert device.capability() is None  # which asks torch first, and has no GPU here
    tool.unlink()
    assert devices.capability() is None
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert device.capability() == A100


@pytest.mark.parametrize(("asked", "chosen"), [("bf16", "bfloat16"), ("fp32", "float32")])
def test_what_is_asked_for_is_given_on_a_cpu_too(asked: Precision, chosen: Dtype) -> None:
    for capability in (None, A100, H100):
        assert training_dtype(asked, capability) == dtype_of(chosen, capability, "s") == chosen
        assert note(asked, capability) is None
    assert training_dtype("fp32", V100) == "float32"
    assert dtype_of("float16", T4, "s") == "float16"


def test_bf16_on_a_gpu_without_it_is_refused_by_the_settings_name() -> None:
    with pytest.raises(ConfigurationError, match=r"^run.precision=bf16: a GPU of compute capability 7.0 has no bf16: "):
        training_dtype("bf16", V100)
    with pytest.raises(ConfigurationError, match=r"^scoring.dtype=bfloat16: a GPU of compute capability 7.5 has no"):
        dtype_of("bfloat16", T4, "scoring.dtype=bfloat16")


def test_only_what_is_asked_for_is_part_of_an_identity() -> None:
    assert TrainingRun().identity() == Scoring().rounding() == {}
    assert TrainingRun(precision="fp32", zero_stage=3).identity() == {"precision": "fp32"}
    assert Scoring(dtype="bfloat16", gpu_memory=0.5).rounding() == {"dtype": "bfloat16"}
    assert "dtype" not in Evaluation(top_k=10).identity()
    assert Evaluation(top_k=10, dtype="bfloat16").identity()["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("told", "method", "bits"),
    [
        (AWQ, "awq", 4),
        (GPTQ, "gptq", 8),
        (FP8, "fp8", 8),
        (INT8, "compressed-tensors", 8),
        (NF4, "bitsandbytes", 4),
        ({}, "", None),
        ({"quant_method": "new"}, "new", None),
    ],
)
def test_quantised_weights_are_known_by_their_config(told: dict[str, Any], method: str, bits: int | None) -> None:
    for config in ({"quantization_config": told}, {"text_config": {"quantization_config": told}}):
        assert Quantised.of(config) == (Quantised(method, bits) if told else None)
    assert Quantised.of({"model_type": "qwen2", "quantization_config": None}) is None


@pytest.mark.parametrize(
    ("name", "told", "gigabytes"),
    [
        ("72B", AWQ, 41.6),  # Qwen/Qwen2.5-72B-Instruct-AWQ on the hub
        ("7B", AWQ, 5.57),
        ("7B", GPTQ, 8.9),
        ("72B", None, 2 * 72.706),
    ],
)
def test_quantised_weights_are_as_large_as_on_the_hub(name: str, told: dict[str, Any] | None, gigabytes: float) -> None:
    size = Size.of(name, {**QWEN2_5[name], "quantization_config": told})
    assert (size.quantised_bytes or 2 * size.parameters) / 1e9 == pytest.approx(gigabytes, rel=0.05)


@pytest.mark.parametrize("told", [AWQ, GPTQ, FP8])
def test_quantised_weights_are_refused_on_a_cpu_and_passed_on_to_vllm_as_they_are(
    told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"model_type": "qwen2", "quantization_config": told}
    with pytest.raises(ConfigurationError, match=rf"^'t' cannot run on a CPU: .*\({told['quant_method']}\): run it on"):
        check_device("t", config, on_gpu=False)
    check_device("t", config, on_gpu=True)
    check_device("t", {"model_type": "qwen2"}, on_gpu=False)
    monkeypatch.setattr(device, "capability", lambda: H100)
    assert device.dtype_here("auto", config, "s") == "auto"
    assert device.dtype_here("float16", config, "s") == "float16"
    assert device.dtype_here("auto", {"model_type": "qwen2"}, "s") == "bfloat16"


@pytest.mark.parametrize(("told", "package"), [(AWQ, "gptqmodel"), (GPTQ, "optimum")])
def test_what_transformers_lacks_for_them_is_told_in_one_sentence(told: dict[str, Any], package: str) -> None:
    for config in ({"quantization_config": told}, {"text_config": {"quantization_config": told}}):
        with pytest.raises(
            ConfigurationError, match=f"'t' cannot be used here.*evaluation needs.*{package}"
        ) as refused:
            check_transformers("t", config, "evaluation", "x")
        assert "\n" not in str(refused.value)
    check_transformers("t", {"model_type": "qwen2"}, "evaluation", "x")
