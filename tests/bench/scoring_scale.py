"""How scoring grows with the engines of a machine: 1, 2, 4 and 8 of a fixed rate, and two real ones on a core each.

    python -m tests.bench scoring_scale [--rate 10000] [--shards 32] [--real-tokens 60000]

The fixed-rate engines stand in for GPUs: each sleeps for as long as a teacher of that rate (tokens a second) would
compute, on `shards` shards of 16,384 tokens an engine; processes, the agenda, claims, compression and SeaweedFS are
real. `efficiency_N` is the tokens a second of N over N times those of one, from when all are up to the last batch: the
last shard that one engine does alone is in it, so few shards an engine show that rather than the path.
`encode_tokens_s` is what one core encodes, prompt and response: what bounds all engines together, times the cores.
`busy` is the part of all cores that was at work meanwhile, ours and others': near 1, efficiency shows the machine
rather than our path. `real_ratio`: two engines (transformers, random weights) with a core each, over one with a core.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from infra.processes.child import Reporter
from tests.bench import _fixed_rate

_ENGINES = (1, 2, 4, 8)
_SHARD, _ROW, _PROMPT = 16_384, 512, 64  # tokens
_K = 10
_MODEL = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}


def run(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="scoring_scale")
    parser.add_argument("--rate", type=float, default=10_000.0)
    parser.add_argument("--shards", type=int, default=32)
    parser.add_argument("--real-tokens", type=int, default=60_000)
    options = parser.parse_args(arguments)
    from infra.services.embedded import embedded_storage
    from infra.store import storage
    from tasks.models import resolve
    from tests.bench._models import random_model

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["DISTILFLOW_HOME"] = scratch
        os.environ[_fixed_rate.RATE] = str(options.rate)
        with embedded_storage():
            storage.ensure_bucket()
            teacher, folder = resolve("demo", "teacher"), Path(scratch)
            found = {n: _run(folder, "tests.bench._fixed_rate", teacher, n, n * options.shards) for n in _ENGINES}
            larger = random_model(folder, "larger", **_MODEL, **_HEADS)
            shards = max(4, options.real_tokens // _SHARD)
            real = {n: _run(folder, "tasks.logits.scorer", larger, n, shards, parts=2) for n in (1, 2)}
    speed = {n: one["tokens_s"] for n, one in found.items()}
    return {
        **{f"efficiency_{n}": round(speed[n] / (n * speed[1]), 3) for n in _ENGINES},
        "claims_per_shard": {n: one["claims_per_shard"] for n, one in found.items()},
        "encode_tokens_s": _encode_tokens_s(),
        "tokens_s": {n: round(tokens_s) for n, tokens_s in speed.items()},
        "busy": {n: one["busy"] for n, one in found.items()},
        "real_ratio": round(real[2]["tokens_s"] / real[1]["tokens_s"], 3),
        "real_tokens_s": {n: round(one["tokens_s"]) for n, one in real.items()},
        "real_busy": {n: one["busy"] for n, one in real.items()},
        "cores": len(os.sched_getaffinity(0)),
    }


class _Watched(Reporter):
    """Notes how busy the machine's cores were between the first progress and the last."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._seen: list[tuple[float, float]] = []

    def progress(self, done: int, total: int, **fields: Any) -> None:
        times = psutil.cpu_times()
        self._seen.append((sum(times), times.idle + times.iowait))

    @property
    def busy(self) -> float:
        (all_before, idle_before), (all_after, idle_after) = self._seen[0], self._seen[-1]
        return round(1 - (idle_after - idle_before) / max(all_after - all_before, 0.01), 2)


def _run(folder: Path, module: str, teacher: Any, engines: int, count: int, parts: int = 0) -> dict[str, Any]:
    """So many engines on so many shards, each on one of `parts` of the machine (default: as many as there are)."""
    from infra.processes.shares import shares
    from infra.store.artifacts import Workspace
    from tasks.engines.progress import Progress
    from tasks.logits import program
    from tasks.logits.scorer import Job
    from tasks.logits.settings import Scoring

    own = folder / f"{module}-{engines}"
    together = own / "up"
    together.mkdir(parents=True)
    os.environ[_fixed_rate.TOGETHER] = f"{together}:{engines}"
    os.environ["DISTILFLOW_PASS"] = f"{_fixed_rate.RATE} {_fixed_rate.TOGETHER}"  # engines are told of no others
    shards = _shards(count)
    supervised = {shard.name: shard.supervised_tokens for shard in shards}
    work = Workspace("bench-scale", engines, {"engine": module}, {})
    job = Job(work, teacher, _K, Scoring(engine="transformers"), _ROW, supervised)
    reporter = _Watched(own)
    progress = Progress(reporter, engines, 0, sum(supervised.values()))
    before, program.SCORER = program.SCORER, module
    try:
        on = shares(parts or engines)[:engines]
        claims = program.score_side_by_side(job, shards, on, own / "agenda", progress)
    finally:
        program.SCORER = before
    return {"tokens_s": progress.tokens_s, "claims_per_shard": round(claims / count, 2), "busy": reporter.busy}


def _shards(count: int) -> list[Any]:
    """So many, full of rows of one length."""
    from tasks.logits.shards import plan
    from tasks.tokens.rows import TokenisedRow

    ids = list(range(4, 4 + _ROW))
    return plan((TokenisedRow(f"{n:020x}", ids, _PROMPT) for n in range(count * _SHARD // _ROW)), _SHARD)


def _encode_tokens_s() -> int:
    """On one core."""
    from tasks.logits.store.format import encode_shard

    (shard,) = _shards(1)
    scored = _fixed_rate.FixedRateEngine(1e12, _K, _fixed_rate.VOCABULARY).score(shard.rows, _K)
    times = []
    for _ in range(5):
        began = time.process_time()
        encode_shard(scored)
        times.append(time.process_time() - began)
    return round(_SHARD / min(times))
