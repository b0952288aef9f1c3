"""The script of the documentation, as it stands there: a store, rows and the loss, without the pipeline."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tasks.augment.export import messages
from tasks.engines.scoring import TransformersEngine
from tasks.logits.coverage import CoverageCounter
from tasks.logits.store.format import encode_shard
from tasks.rows import Row
from tasks.shipped import DEMO
from tasks.tokens.rows import TokenisedRow, tokenise

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "examples" / "own_loop.py"
K = 10


def _rows() -> list[Row]:
    entries = [json.loads(line) for line in (DEMO / "seeds.jsonl").read_text().splitlines()[:16]]
    texts = [{"instruction": e["instruction"], "input": e["input"], "response": e["output"]} for e in entries]
    return [Row(**text, task_category=e["category"]) for text, e in zip(texts, entries, strict=True)]


def _run(shards: Path, rows: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(SCRIPT), str(shards), str(DEMO / "student"), str(rows)]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_the_script_reads_what_a_teacher_said_and_learns_it(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "teacher")
    rows = _rows()
    found = [tokenise(row, tokenizer, 384) for row in rows]
    tokenised = [row for row in found if isinstance(row, TokenisedRow)]
    scored = TransformersEngine(DEMO / "teacher").score(tokenised, K)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "00000.topk").write_bytes(encode_shard(scored[:9]))
    (tmp_path / "shards" / "00001.topk").write_bytes(encode_shard(scored[9:]))
    exported = tmp_path / "rows.jsonl"
    exported.write_text("".join(json.dumps(messages(row)) + "\n" for row in rows))

    done = _run(tmp_path / "shards", exported, tmp_path)
    assert done.returncode == 0, done.stderr
    coverage = CoverageCounter(K)
    for one in scored:
        coverage.add(one.logprobs_RK, "")
    told = re.match(rf"{len(scored)} rows; the top {K} hold ([\d.]+)% of the teacher's probability", done.stdout)
    assert told is not None, done.stdout
    assert float(told[1]) == pytest.approx(100 * coverage.summary()["mean"], abs=0.2)  # the store rounds to 1/128 nat
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert len(losses) == 20
    assert losses[-1] < 0.6 * losses[0]

    (tmp_path / "shards" / "00001.topk").write_bytes(encode_shard(scored[9:])[:-3])
    done = _run(tmp_path / "shards", exported, tmp_path)
    assert done.returncode != 0
    assert "shard 00001.topk is cut short" in done.stderr
