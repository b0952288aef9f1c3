"""The scorer with an engine of a fixed rate in the teacher's place: its compute is a sleep, all else is real.

What a token's top K are is drawn once, so that only what follows (arrays, compression, storage) takes the CPU. Engines
begin together, whenever each was up.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infra.processes import child
from tasks.logits import scorer
from tasks.logits.scorer import Job
from tasks.tokens.rows import TokenisedRow
from tasks.tokens.scored import ScoredRow

RATE, TOGETHER = "BENCH_TOKENS_S", "BENCH_ENGINES"
VOCABULARY = 151_936  # Qwen2.5's
_DRAWN = 4096


class FixedRateEngine:
    """Takes as long for a batch as a teacher that scores so many tokens a second."""

    def __init__(self, tokens_s: float, k: int, vocabulary: int):
        self._tokens_s = tokens_s
        random = np.random.default_rng(0)
        gaps_NK = random.exponential(1.0, (_DRAWN, k))
        self._logprobs_NK = -np.cumsum(gaps_NK, axis=1).astype(np.float32) - 0.05
        self._ids_NK = random.integers(0, vocabulary, (_DRAWN, k), dtype=np.int32)

    def score(self, rows: Sequence[TokenisedRow], k: int) -> list[ScoredRow]:
        began = time.monotonic()
        scored = [self._scored(row) for row in rows]
        seconds = sum(len(row.ids) for row in rows) / self._tokens_s
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))
        return scored

    def close(self) -> None: ...

    def _scored(self, row: TokenisedRow) -> ScoredRow:
        places = row.places_R % _DRAWN
        logprobs = self._logprobs_NK[places]
        return ScoredRow(row.row_id, row.ids, row.response_start, logprobs[:, 0] - 1, self._ids_NK[places], logprobs)


def make_engine(job: Job) -> FixedRateEngine:
    """One of several, once all are up."""
    engine = FixedRateEngine(float(os.environ[RATE]), job.k, VOCABULARY)
    folder, engines = os.environ[TOGETHER].rsplit(":", 1)
    (Path(folder) / f"{os.getpid()}").touch()
    while len(list(Path(folder).iterdir())) < int(engines):
        time.sleep(0.02)
    return engine


if __name__ == "__main__":
    scorer.make_engine = make_engine  # type: ignore[assignment]
    child.run(scorer.main, Path(sys.argv[-1]))
