"""What shares a passage with a benchmark that the run names is not trained on, with agents and without."""

from __future__ import annotations

import json
from pathlib import Path

from infra.stage import Made, Unseen
from infra.store.artifacts import facts_of
from tasks.augment.settings import Augmentation
from tasks.augment.stage import Augment
from tasks.evaluate.benchmarks.protect import ProtectBenchmarks
from tasks.evaluate.benchmarks.settings import Benchmarks
from tasks.rows import KEPT, REJECTED, read_rows
from tasks.seeds.stage import Sources
from tasks.text.leaks import BENCHMARK
from tests.support.stages import load, made

OFTEN = "You are given a text and a question about it, read both with care and answer the question in one sentence."
ASKED = [
    f"{OFTEN} Which of the nine lighthouses on the northern coast was built before the great flood of that winter?",
    f"{OFTEN} How many of the forty sheep that the shepherd counted at noon were still on the hill at night?",
]


def test_rows_with_a_passage_of_a_benchmark_are_left_out(bucket: str, tmp_path: Path) -> None:
    benchmark, seeds = tmp_path / "questions.json", tmp_path / "seeds.jsonl"
    benchmark.write_text(json.dumps([{"instruction": text, "output": "x"} for text in ASKED]))
    told = ["Tell me: how many of the forty sheep that the shepherd counted at noon were still there?"]
    told += [f"{OFTEN} What is the name of tower {n}?" for n in range(9)]
    seeds.write_text("\n".join(json.dumps({"instruction": text, "output": "y"}) for text in told))
    (tmp_path / "held.jsonl").write_text(json.dumps({"instruction": "Who wrote the book?", "output": "z"}))
    options = Benchmarks(alpaca_eval=str(benchmark), max_questions=1)
    assert ProtectBenchmarks(options=options).is_needed
    assert not ProtectBenchmarks(options=Benchmarks()).is_needed
    protected = made(ProtectBenchmarks(options=options))
    sources = Sources(str(seeds), str(tmp_path / "held.jsonl"), None)
    said = ProtectBenchmarks(options=options).show(Made(refs={"protect": protected}), Unseen())
    assert said.endswith("passages of 2 questions are kept out of training")
    loaded = load(sources, heldout_share=0.2, response_required=True)
    off = Augmentation(enabled=False)
    rows = made(Augment(seeds=loaded, agent_model="", options=off, protected=protected))
    assert [row.instruction for row in read_rows(rows, REJECTED)] == told[:1]
    assert len(list(read_rows(rows, KEPT))) == rows.counts["rows"] == loaded.counts["seeds"] - 1
    assert facts_of(rows)["rejected"] == {"selection": {BENCHMARK: 1}}
    all_of_them = made(Augment(seeds=loaded, agent_model="", options=off))
    assert all_of_them.counts["rows"] == loaded.counts["seeds"]
    assert all_of_them.fingerprint != rows.fingerprint
