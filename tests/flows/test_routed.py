"""A run with two teachers, one of them of a task category: students learn from a smaller K of what both stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.store.artifacts import read_record
from tests.support import cli

DATA = Path(__file__).parents[2] / "tasks" / "demo" / "data"
BUCKET = "routed-test"


def test_a_run_learns_from_the_teacher_of_each_category(
    services: object, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILFLOW_BUCKET", BUCKET)
    given = [json.loads(line) for line in (DATA / "seeds.jsonl").read_text().splitlines()[:40]]
    (tmp_path / "seeds.jsonl").write_text("\n".join(map(json.dumps, given)))
    filters = sum(row["category"] == "sql-filter" for row in given)
    done = cli.run(
        *("run", '--teachers={"sql-filter": "demo-small"}', "--scoring.k=12", "--k=5", "--run.processes=1"),
        *(f"--seeds={tmp_path / 'seeds.jsonl'}", f"--heldout={DATA / 'heldout.jsonl'}"),
        *(f"--databases={DATA / 'databases'}", "--augmentation.no-enabled"),
        *("--sft.max-steps=4", "--kd.max-steps=4", "--evaluation.max-rows=8"),
    )
    assert done.returncode == 0, done.stderr
    found = cli.results(home)
    records = {name: read_record(stage["uri"]) for name, stage in found["stages"].items() if "uri" in stage}
    stored = {name: record for name, record in records.items() if record and name.startswith("logits")}
    assert {name: record.counts["rows"] for name, record in stored.items()} == {
        "logits": 40 - filters,
        "logits (sql-filter)": filters,
    }
    kd = records["kd"]
    assert kd is not None
    assert kd.facts["k"] == 5
    assert kd.counts["rows"] == 40
    assert {"base", "sft", "sft_control", "kd", "teacher"} == found["variants"].keys()
