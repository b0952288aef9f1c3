"""Which rates suit the demo, chosen on requests that no figure uses: one run for each rate, temperature and recipe.

    python -m tests.bench demo_rates [--sft 8e-4 1.2e-3 2e-3] [--kd 2.5e-4 5e-4 1e-3] [--temperatures 1 2] [--seed 10]

The rate of SFT first, by what SFT comes to; with the best of them every rate and temperature of KD, and the control
at every rate, since the control is as good as the best of its own. The requests are of the pairings that no training
row has, as the shipped held-out rows are, and none of those.
JSON: accuracy at every point, and the best ones.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from tests.bench.quality import distilled

ROWS = 1280


def run(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="demo_rates")
    parser.add_argument("--sft", type=float, nargs="+", default=[8e-4, 1.2e-3, 2e-3])
    parser.add_argument("--kd", type=float, nargs="+", default=[2.5e-4, 5e-4, 1e-3])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--seed", type=int, default=10, help="of the runs; figures are of 0, 1 and 2")
    options = parser.parse_args(arguments)
    data = _validation_flags()

    def accuracies(*flags: str) -> dict[str, float]:
        numbers = distilled(options.seed, [*data, *flags])
        return {name: of["exec_accuracy"] for name, of in numbers.items()}

    few = "--kd.max-steps=1"  # nobody looks at KD yet
    sft = {rate: accuracies(f"--sft.learning-rate={rate}", few)["sft"] for rate in options.sft}
    best_sft = max(sft, key=lambda rate: sft[rate])
    kd, control = dict[str, float](), dict[float, float]()
    for rate in options.kd:
        for temperature in options.temperatures:
            flags = f"--sft.learning-rate={best_sft}", f"--kd.learning-rate={rate}", f"--kd.temperature={temperature}"
            found = accuracies(*flags)
            kd[f"{rate:g} at {temperature:g}"], control[rate] = found["kd"], found["sft_control"]
    best_kd, best_control = max(kd, key=lambda point: kd[point]), max(control, key=lambda rate: control[rate])
    best = {"sft": best_sft, "kd": best_kd, "sft_control": best_control}
    return {"n": ROWS, "sft": sft, "kd": kd, "sft_control": control, "best": best}


def _validation_flags() -> list[str]:
    """Held-out requests of their own, in a file."""
    from tasks.demo.build_data import HELD_OUT_ROWS, distinct_rows
    from tasks.shipped import DEMO

    shipped = distinct_rows(HELD_OUT_ROWS, held_out=True, seed="heldout")
    used = {(row["instruction"], row["database"]) for row in shipped}
    rows = distinct_rows(ROWS + HELD_OUT_ROWS, held_out=True, seed="validation")
    apart = [row for row in rows if (row["instruction"], row["database"]) not in used][:ROWS]
    path = Path(os.environ.get("DISTILFLOW_HOME", ".distilflow")) / "validation.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in apart))
    return [f"--heldout={path}", f"--databases={DEMO / 'databases'}"]
