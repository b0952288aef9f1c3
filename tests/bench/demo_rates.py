"""Which rates suit the demo, chosen on requests that no figure uses.

    python -m tests.bench demo_rates [--sft 2e-3 3.5e-3 …] [--kd 1e-3 2e-3 …] [--temperatures 2 1] [--seed 10]

The rate of SFT first, by what SFT comes to; with the best of them the rate of KD and of the control, each by its own
best, at the first temperature; then the other temperatures at the best rate of KD. The requests are of the pairings
that no training row has, as the shipped held-out rows are, and none of those. A best rate that is the first or the
last that was tried is `at_an_edge`: try further.
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
    parser.add_argument("--sft", type=float, nargs="+", default=[2e-3, 3.5e-3, 5e-3, 8e-3])
    parser.add_argument("--kd", type=float, nargs="+", default=[1e-3, 2e-3, 3.5e-3, 5e-3, 7e-3])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[2.0, 1.0])
    parser.add_argument("--steps", type=int, help="of SFT, and of KD (default: the demo's)")
    parser.add_argument("--seed", type=int, default=10, help="of the runs; figures are of 0, 1 and 2")
    options = parser.parse_args(arguments)
    data = _validation_flags()
    as_long = [f"--kd.max-steps={options.steps}"] if options.steps else []
    if options.steps:
        data.append(f"--sft.max-steps={options.steps}")

    def accuracies(*flags: str) -> dict[str, float]:
        numbers = distilled(options.seed, [*data, *flags])
        return {name: of["exec_accuracy"] for name, of in numbers.items()}

    few = "--kd.max-steps=1"  # nobody looks at KD yet
    sft = {rate: accuracies(f"--sft.learning-rate={rate}", few)["sft"] for rate in options.sft}
    best_sft = max(sft, key=lambda rate: sft[rate])
    first, *others = options.temperatures

    def distil(rate: float, temperature: float) -> dict[str, float]:
        flags = f"--sft.learning-rate={best_sft}", f"--kd.learning-rate={rate}", f"--kd.temperature={temperature}"
        return accuracies(*flags, *as_long)

    at_first = {rate: distil(rate, first) for rate in options.kd}
    kd, control = ({rate: found[name] for rate, found in at_first.items()} for name in ("kd", "sft_control"))
    best_kd, best_control = max(kd, key=lambda rate: kd[rate]), max(control, key=lambda rate: control[rate])
    by_temperature = {first: kd[best_kd]} | {temperature: distil(best_kd, temperature)["kd"] for temperature in others}
    best = {"sft": best_sft, "kd": best_kd, "sft_control": best_control}
    tried = {"sft": sft, "kd": kd, "sft_control": control}
    return {
        "n": ROWS,
        **tried,
        "kd_by_temperature": by_temperature,
        "best": best | {"temperature": max(by_temperature, key=lambda one: by_temperature[one])},
        "at_an_edge": [name for name, rate in best.items() if rate in (min(tried[name]), max(tried[name]))],
    }


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
