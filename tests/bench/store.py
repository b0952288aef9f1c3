"""What the top-K store costs: bytes, error and time, at K = 10, on one core.

    python -m tests.bench store [--data FILE.npz] [--k 10]

The npz has `ids` (N, Kmax) and `lp` (N, Kmax), sorted by rank, `lab` (N,) the actual tokens and `lens` (rows,)
tokens per row; a label outside Kmax gets a made-up log-prob below the last. Without `--data` the demo teacher
scores the demo's rows: a tiny vocabulary, which compresses too well to quote.

`bytes_per_token` is the whole file over its response tokens. Errors are those of the log-probs that are read
back; the KL is from the exact to the decoded distribution, both renormalised over K.
`parquet_zstd_bytes_per_token` stores the same float32s and int32s in Parquet.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tasks.logits.store.format import decode_shard, encode_shard
from tasks.logits.store.parquet import export_parquet
from tasks.tokens.scored import ScoredRow

_SECONDS = 2.0


def run(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="store")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--k", type=int, default=10)
    options = parser.parse_args(arguments)
    rows = _given(options.data, options.k) if options.data else _scored_by_the_demo_teacher(options.k)
    tokens = sum(len(row.actual_logprobs_R) for row in rows)
    shard = encode_shard(rows)
    error, kl = _errors(rows, list(decode_shard(shard, "bench")))
    with tempfile.TemporaryDirectory() as folder:
        export_parquet(rows, Path(folder) / "rows.parquet")
        parquet = (Path(folder) / "rows.parquet").stat().st_size
    return {
        "data": options.data.name if options.data else "demo teacher",
        "k": options.k,
        "tokens": tokens,
        "bytes_per_token": round(len(shard) / tokens, 2),
        "max_abs_error_nats": error,
        "mean_kl_error_nats": kl,
        "write_tokens_s": round(tokens / _seconds(lambda: encode_shard(rows))),
        "read_tokens_s": round(tokens / _seconds(lambda: list(decode_shard(shard, "bench")))),
        "parquet_zstd_bytes_per_token": round(parquet / tokens, 2),
    }


def _errors(exact: list[ScoredRow], decoded: list[ScoredRow]) -> tuple[float, float]:
    """Largest absolute error of a log-prob, and the mean KL over tokens, in nats."""
    ours, theirs = (np.concatenate([row.logprobs_RK for row in rows]).astype(np.float64) for rows in (exact, decoded))
    actual, actual_decoded = (np.concatenate([row.actual_logprobs_R for row in rows]) for rows in (exact, decoded))
    largest = max(np.abs(ours - theirs).max(), np.abs(actual.astype(np.float64) - actual_decoded).max())
    p, q = (np.exp(x - np.logaddexp.reduce(x, axis=1, keepdims=True)) for x in (ours, theirs))
    return float(largest), float((p * np.log(p / q)).sum(axis=1).mean())


def _seconds(work: Callable[[], Any]) -> float:
    """The median of some repetitions."""
    work()
    times: list[float] = []
    while sum(times) < _SECONDS or len(times) < 3:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def _given(path: Path, k: int) -> list[ScoredRow]:
    data = np.load(path)
    ids, logprobs, labels, lengths = (data[name] for name in ("ids", "lp", "lab", "lens"))
    is_label = ids == labels[:, None]
    below = logprobs[:, -1] - np.random.default_rng(0).exponential(2, len(labels))
    actual = np.where(is_label.any(axis=1), np.where(is_label, logprobs, 0).sum(axis=1), below).astype(np.float32)
    rows = []
    for number, (end, length) in enumerate(zip(np.cumsum(lengths), lengths, strict=True)):
        part = slice(end - length, end)
        row_id = hashlib.sha256(str(number).encode()).hexdigest()[:20]  # as long and as random as real ones
        rows.append(ScoredRow(row_id, labels[part].tolist(), 0, actual[part], ids[part, :k], logprobs[part, :k]))
    return rows


def _scored_by_the_demo_teacher(k: int) -> list[ScoredRow]:
    from tasks.engines.scoring import TransformersEngine
    from tasks.models import load_tokenizer, resolve
    from tasks.seeds.formats import parse
    from tasks.shipped import DEMO
    from tasks.tokens.rows import TokenisedRow, tokenise

    teacher, source = resolve("demo", "teacher"), str(DEMO / "seeds.jsonl")
    tokenizer, engine = load_tokenizer(teacher), TransformersEngine(teacher.fetch())
    seeds = parse(source, Path(source).read_bytes(), response_required=True)
    rows = [row for seed in seeds if isinstance(row := tokenise(seed, tokenizer, 2048), TokenisedRow)]
    rows.sort(key=lambda row: (len(row.ids), row.row_id))
    return [scored for start in range(0, len(rows), 64) for scored in engine.score(rows[start : start + 64], k)]
