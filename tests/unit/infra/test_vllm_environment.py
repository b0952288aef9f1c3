"""What we tell vLLM by its environment is what the installed vLLM reads."""

import importlib.util
from pathlib import Path

import pytest

from infra.processes.vllm_environment import vllm_environment


def test_every_variable_is_one_that_vllm_reads() -> None:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    read = (Path(spec.origin).parent / "envs.py").read_text()  # importing it takes seconds
    for name in vllm_environment():
        assert f'"{name}"' in read or not name.startswith("VLLM_"), name


def test_an_engine_has_longer_to_start_than_a_large_teacher_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_ENGINE_READY_TIMEOUT_S", raising=False)
    assert float(vllm_environment()["VLLM_ENGINE_READY_TIMEOUT_S"]) > 145e9 / 50e6  # 72B in bf16 from a slow disk
    monkeypatch.setenv("VLLM_ENGINE_READY_TIMEOUT_S", "60")
    assert vllm_environment()["VLLM_ENGINE_READY_TIMEOUT_S"] == "60"
