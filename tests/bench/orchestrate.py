"""What orchestration costs: a rerun that finds everything, a stage's share of it, the way through a pool, an import.

`python -m tests.bench orchestrate [--runs N]`: the demo of a few steps on servers that are up (started here, in a
folder of their own). `warm_rerun_s` is the whole command, as a person waits for it; `overhead_per_stage_s` the flow
alone, divided by its stages; `dispatch_s` what sending a stage to a pool with an idle worker takes, with nothing to
do there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SMALL = [
    *("--sft.max-steps=10", "--kd.max-steps=10", "--evaluation.max-rows=20", "--augmentation.expansions-per-seed=0"),
    *("--augmentation.max-rows=60", "--scoring.engine=transformers"),
]
_FLOWS = "import flows.distill, flows.sweep, flows.stage, sys; print('torch' in sys.modules)"


def run(words: list[str]) -> dict[str, Any]:
    """Medians of `--runs` runs each."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench orchestrate", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args(words).runs
    from tests.support.cluster import cluster

    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder)) as production:
        results = Path(folder) / "latest" / "results.json"
        _distil()
        reruns, inside, sent = [], [], []
        for _ in range(runs):
            reruns.append(_distil())
            outcome = json.loads(results.read_text())
            assert all(stage["cached"] for stage in outcome["stages"].values())
            inside.append(outcome["seconds"])
            sent.append(_sent_away(production))
        stages = len(outcome["stages"])
    imports = [_seconds([sys.executable, "-c", _FLOWS]) for _ in range(runs)]
    imported = subprocess.run([sys.executable, "-c", _FLOWS], capture_output=True, text=True, check=True).stdout
    return {
        "warm_rerun_s": round(statistics.median(reruns), 2),
        "overhead_per_stage_s": round(statistics.median(inside) / stages, 3),
        "dispatch_s": round(statistics.median(sent), 2),
        "flow_import_s": round(statistics.median(imports), 2),
        "imports_torch": imported.strip() == "True",
        "stages": stages,
        "runs": runs,
    }


def _sent_away(production: Any) -> float:
    """A stage that is refused at once where it runs: the way there and back."""
    run = production.run("stage/gpu", stage="train", arguments={})
    began = time.monotonic()
    production.wait_for_end(run)
    return time.monotonic() - began


def _distil(*words: str) -> float:
    return _seconds([sys.executable, "-m", "flows.commands.main", "run", *SMALL, *words])


def _seconds(command: list[str]) -> float:
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return time.monotonic() - began
