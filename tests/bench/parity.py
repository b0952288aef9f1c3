"""How far each engine and dtype is from transformers in fp32, in nats, for tiny random models of many families.

    python -m tests.bench parity [--families qwen2 llama …] [--rows 12]

Weights are stored in bf16, so that all compute with the same ones, and spread five times as wide as usual, so that no
distribution is flat. Differences are those of log-probabilities: of every supervised token, and of the reference's
top 10 where the engine has them too. `missed_share` of these it has not: ranks 10 and 11 swap where they are nearly
alike. A family that vLLM refuses here is told with its reason.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.engines.scoring import Engine
from tasks.shipped import DEMO
from tasks.tokens.rows import TokenisedRow
from tasks.tokens.scored import ScoredRow

FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "gemma2", "gemma3_text", "phi3", "granite", "olmo2")
K = 10
_LONGEST = 160
_VOCABULARY = 512
_SHAPE: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # of those that vLLM has on a CPU
    "max_position_embeddings": 2 * _LONGEST,
    "initializer_range": 0.1,
}


@dataclass(frozen=True)
class Difference:
    """From the reference, in nats; `missed_share` of its top K the other has not."""

    mean: float
    largest: float
    missed_share: float


def run(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="parity")
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--rows", type=int, default=12)
    options = parser.parse_args(arguments)
    from infra.processes.vllm_environment import vllm_environment

    os.environ |= vllm_environment()
    rows, table = random_rows(options.rows), []
    with tempfile.TemporaryDirectory() as place:
        for family in options.families:
            folder = random_model(Path(place) / family, family)
            for line in _of_family(folder, rows):
                table.append({"family": family, **line})
                print(table[-1], file=sys.stderr, flush=True)
    return {"rows": len(rows), "tokens": sum(row.supervised_tokens for row in rows), "k": K, "table": table}


def _of_family(folder: Path, rows: Sequence[TokenisedRow]) -> list[dict[str, Any]]:
    from tasks.engines.scoring import TransformersEngine, VLLMEngine, vllm_options

    reference = TransformersEngine(folder).score(rows, K)
    lines = []
    for engine, dtype in (("transformers", "bfloat16"), ("vllm", "float32"), ("vllm", "bfloat16")):
        line: dict[str, Any] = {"engine": engine, "dtype": dtype}
        try:
            if engine == "vllm":
                model: Engine = VLLMEngine(folder, K, _LONGEST, vllm_options(False, dtype, 1, 0.3, 1024))
            else:
                model = TransformersEngine(folder, dtype)
            found = difference(model.score(rows, K), reference)
            model.close()
            line |= {name: float(f"{value:.2g}") for name, value in vars(found).items()}
        except Exception as error:  # whatever vLLM raises for a family that it has not: a line of the table
            line["refused"] = str(error).partition("\n")[0]
        lines.append(line)
    return lines


def difference(scored: Sequence[ScoredRow], reference: Sequence[ScoredRow]) -> Difference:
    """Over all supervised tokens of rows in the same order."""
    apart, missed, wanted = [], 0, 0
    for ours, theirs in zip(scored, reference, strict=True):
        apart.append(np.abs(ours.actual_logprobs_R - theirs.actual_logprobs_R))
        same_RKK = theirs.topk_ids_RK[:, :, None] == ours.topk_ids_RK[:, None, :]
        place_RK, has_RK = same_RKK.argmax(axis=2), same_RKK.any(axis=2)
        found_RK = np.take_along_axis(ours.logprobs_RK, place_RK, axis=1)
        apart.append(np.abs(found_RK - theirs.logprobs_RK)[has_RK])
        missed, wanted = missed + int((~has_RK).sum()), wanted + has_RK.size
    every = np.concatenate(apart)
    return Difference(float(every.mean()), float(every.max()), missed / wanted)


def random_rows(count: int) -> list[TokenisedRow]:
    """Rows of random tokens, no two of the same length, the second half of each supervised."""
    rng = np.random.default_rng(0)
    lengths = np.linspace(24, _LONGEST - 1, count).astype(int)
    return [
        TokenisedRow(str(n), rng.integers(3, _VOCABULARY, length).tolist(), int(length // 2))
        for n, length in enumerate(lengths)
    ]


def random_model(folder: Path, family: str) -> Path:
    """Random weights in bf16 under the demo's tokenizer, windows far shorter than rows where the family has any."""
    import torch
    from transformers import AutoModelForCausalLM

    from tests.support.families import tiny_config

    known = tiny_config(family).to_dict()
    window = {"sliding_window": 32} if known.get("sliding_window") else {}
    config = tiny_config(family, **{key: value for key, value in _SHAPE.items() if key in known}, **window)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(DEMO / "student" / name, folder / name)
    return folder
