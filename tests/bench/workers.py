"""Independent points of a sweep through the pools: two stages at a time over one, engines of one thread each.

    python -m tests.bench workers [--points 2] [--steps 400]

A point is the demo under a seed of its own: SFT, control, KD and evaluation in the gpu pool. What points share (rows,
the teacher's scores and answers) is made before. `ratio` is points an hour with two at a time over points an hour
with one; other seeds each time, so nothing is found.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

GRID: dict[str, Any] = {"students": ["demo"], "teachers": ["demo"], "ks": [10]}


def run(words: list[str]) -> dict[str, Any]:
    """Seconds for all points, with one stage at a time and with two."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench workers", description=__doc__)
    parser.add_argument("--points", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args(words)
    from tests.support.cluster import cluster

    os.environ["OMP_NUM_THREADS"] = "1"
    shared = {
        "sft.max_steps": options.steps,
        "kd.max_steps": options.steps,
        "run.processes": 1,
        "stages_on": "stage/gpu",
    }
    took: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder)) as production:

        def swept(seeds: list[int], at_once: int) -> float:
            production.bootstrap(gpus=at_once)
            began = time.monotonic()
            sweep = production.run("sweep/teacher-size", **GRID, others={"seed": seeds}, shared=shared, at_once=at_once)
            if (end := production.wait_for_end(sweep, 3600)) != "Completed":
                raise SystemExit(f"the sweep ended as {end}")
            return time.monotonic() - began

        swept([0], 1)
        for at_once in (1, 2):
            first = 1 + (at_once - 1) * options.points
            took[at_once] = swept(list(range(first, first + options.points)), at_once)
    return {
        "points": options.points,
        "steps": options.steps,
        "one_at_a_time_s": round(took[1], 1),
        "two_at_a_time_s": round(took[2], 1),
        "ratio": round(took[1] / took[2], 3),
    }
