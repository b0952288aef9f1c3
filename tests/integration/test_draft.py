"""vLLM drafts with a student as it is told to: the teacher, as its own draft, keeps every token.

vLLM 0.32's CPU build fills a copy where it gives each drafted position its request's temperature, so that the teacher's
distributions are not numbers at any temperature but 0 (`tasks.report.draft.ON_A_CPU`). That one function is replaced
here by what it documents: where the test fails without it, and passes with it, the sentence is due.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.processes.vllm_environment import vllm_environment
from tasks.models import resolve
from tasks.report.draft import ON_A_CPU, config

ENGINE = """
import json, sys
import torch
from vllm import LLM, SamplingParams
from vllm.v1.sample import rejection_sampler

def expanded(of_requests, ends, positions, replace_from=0, replace_to=0):
    of_positions = of_requests.repeat_interleave(torch.diff(ends, prepend=ends.new_zeros(1)).long())
    return of_positions.masked_fill(of_positions == replace_from, replace_to) if replace_to else of_positions

if __name__ == "__main__":
    model, how = sys.argv[1], json.loads(sys.argv[2])
    if sys.argv[3] == "mended":
        rejection_sampler.expand_batch_to_tokens = expanded
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
    for temperature in map(float, sys.argv[4:]):
        llm.generate(prompts, SamplingParams(temperature=temperature, seed=0, max_tokens=24, ignore_eos=True))
    counted = [one for one in llm.get_metrics() if hasattr(one, "value") and "spec" in one.name]
    print(json.dumps({one.name: one.value for one in counted}))
"""


@pytest.mark.timeout(300)
def test_a_teacher_that_drafts_for_itself_keeps_every_token() -> None:
    drafted, kept = _drafted_and_kept("mended", 0.0, 1.0)
    assert drafted >= 2 * 4 * 4
    assert kept == drafted


@pytest.mark.timeout(300)
def test_what_is_said_of_drafts_on_a_cpu_is_still_so() -> None:
    drafted, kept = _drafted_and_kept("as it is", 1.0)
    assert "at temperature 0" in ON_A_CPU
    assert kept < drafted / 2, "vLLM drafts rightly on a CPU now: take the sentence away"


def _drafted_and_kept(sampler: str, *temperatures: float) -> tuple[float, float]:
    teacher = str(resolve("demo", "teacher").fetch())
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            ENGINE,
            teacher,
            json.dumps(config(teacher, "as it is")),
            sampler,
            *map(str, temperatures),
        ],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **vllm_environment(), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return found["vllm:spec_decode_num_draft_tokens"], found["vllm:spec_decode_num_accepted_tokens"]
