"""vLLM drafts with a student as it is told to: the teacher, as its own draft, keeps every token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.processes.vllm_environment import vllm_environment
from tasks.models import resolve
from tasks.report.draft import config

ENGINE = """
import json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    model, how = sys.argv[1], json.loads(sys.argv[2])
    llm = LLM(
        model=model,
        dtype="float32",
        max_model_len=128,
        enforce_eager=True,
        disable_log_stats=False,
        kv_cache_memory_bytes=2**26,
        speculative_config=how,
    )
    prompts = [{"prompt_token_ids": [number, number + 1]} for number in range(20, 24)]
    llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True))
    counted = [one for one in llm.get_metrics() if hasattr(one, "value") and "spec" in one.name]
    print(json.dumps({one.name: one.value for one in counted}))
"""


@pytest.mark.timeout(300)
def test_a_teacher_that_drafts_for_itself_keeps_every_token() -> None:
    teacher = str(resolve("demo", "teacher").fetch())
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, teacher, json.dumps(config(teacher, "as it is"))],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **vllm_environment(), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    drafted, kept = (found[f"vllm:spec_decode_num_{what}_tokens"] for what in ("draft", "accepted"))
    assert drafted >= 4 * 4
    assert kept == drafted
