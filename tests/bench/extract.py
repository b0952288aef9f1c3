"""What our path costs beside the engine itself: rows to stored shards, against vLLM's own `generate`.

    python -m tests.bench extract [--rows 600] [--k 10] [--repeats 3]

One engine in one process scores the same rows of the demo in turns: bare `generate` with the same log-probs
asked for, and our path (shards, arrays, compression, SeaweedFS). The best turn of each counts; tokens are prompt
and response.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from tests.support.stages import load


def run(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="extract")
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from infra.services.embedded import embedded_storage
    from infra.store import storage
    from infra.store.artifacts import Workspace
    from tasks.engines.scoring import VLLMEngine, vllm_options
    from tasks.logits.scorer import score_shards
    from tasks.logits.settings import Scoring
    from tasks.logits.shards import plan
    from tasks.models import load_tokenizer, resolve
    from tasks.rows import HELDOUT, read_rows
    from tasks.seeds.stage import Sources
    from tasks.tokens.rows import TokenisedRow, tokenise

    teacher, scoring = resolve("demo", "teacher"), Scoring()
    with embedded_storage():
        storage.ensure_bucket()
        data = load(Sources.of("demo", None, None), heldout_share=0.1, response_required=False)
        tokenizer = load_tokenizer(teacher)
        tokenised = (tokenise(row, tokenizer, scoring.max_length) for row in read_rows(data, HELDOUT))
        rows = [row for row in tokenised if isinstance(row, TokenisedRow)][: options.rows]
        shards = plan(rows, scoring.tokens_per_shard)
        engine = VLLMEngine(
            teacher.fetch(),
            options.k,
            max(len(row.ids) for row in rows),
            vllm_options(False, "float32", 1, scoring.gpu_memory, scoring.max_batched_tokens),
        )
        tokens = sum(len(row.ids) for row in rows)
        in_order = [row for shard in shards for row in shard.rows]
        bare, ours = [], []
        for turn in range(options.repeats + 1):  # the first one warms up
            work = Workspace("bench-extract", turn, {}, {})
            started = time.monotonic()
            engine.generate(in_order, options.k)
            between = time.monotonic()
            score_shards(engine, shards, work, options.k, scoring.max_error, lambda *_: None)
            bare.append(between - started)
            ours.append(time.monotonic() - between)
    bare_s, ours_s = min(bare[1:]), min(ours[1:])
    return {
        "engine": "vllm",
        "rows": len(rows),
        "tokens": tokens,
        "tokens_s": round(tokens / ours_s),
        "prefill_only_tokens_s": round(tokens / bare_s),
        "ratio": round(bare_s / ours_s, 3),
        "turns_s": {"generate": [round(s, 2) for s in bare], "ours": [round(s, 2) for s in ours]},
    }
