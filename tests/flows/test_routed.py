"""A run with two teachers, one of a task category: a smaller K of what they stored, a round, and a validation part."""

from __future__ import annotations

from pathlib import Path

from tests.support import cli

DATA = Path(__file__).parents[2] / "tasks" / "demo" / "data"


def test_a_run_learns_from_the_teacher_of_each_category(services: object, home: Path, tmp_path: Path) -> None:
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text("\n".join((DATA / "seeds.jsonl").read_text().splitlines()[:40]))
    words = [
        *("run", '--teachers={"sql-filter": "demo-small"}', "--scoring.k=12", "--k=5"),
        *(f"--seeds={seeds}", f"--heldout={DATA / 'heldout.jsonl'}", f"--databases={DATA / 'databases'}"),
        *("--augmentation.no-enabled", "--sft.max-steps=60", "--kd.max-steps=6", "--evaluation.max-rows=8"),
        *("--rounds.rounds=1", "--rounds.steps=4", "--rounds.validation-rows=8", "--rounds.least-agreement=0"),
        *("--rounds.max-new-tokens=48", "--run.processes=1"),
    ]
    environment = {"DISTILFLOW_BUCKET": "routed-test"}
    done = cli.run(*words, **environment)
    assert done.returncode == 0, done.stderr
    found = cli.results(home)
    stages = found["stages"]
    stores = {name: stage for name, stage in stages.items() if name.startswith("logits")}
    rows = sum(stores[name]["counts"]["rows"] for name in stores if not name.startswith("logits_1"))
    assert rows == 40
    assert all(stage["facts"].get("k", 12) == 12 for stage in stores.values())
    assert stages["kd"]["facts"]["k"] == 5
    assert stages["trained_rows"]["counts"]["rows"] + stages["validation_rows"]["counts"]["rows"] == 40
    print({name: (stage["counts"], stage["facts"]) for name, stage in stages.items()})
    assert {"kd", "round_1", "kd_continued", "teacher"} <= found["variants"].keys()
    again = cli.run(*words, **environment)
    assert again.returncode == 0, again.stderr
    assert all(stage["cached"] for stage in cli.results(home)["stages"].values())
