"""Do on-policy rounds help, beyond the spread of seeds and beyond training for as long? The demo, once a seed.

    python -m tests.bench rounds [--seeds 0 1 2] [--rounds 2] [--labels agents|teacher] [FLAGS of `distilflow run` …]

JSON: for the SFT control, kd, kd continued for as many optimizer steps as all rounds take, and the student after each
round, the mean and the standard deviation over seeds of execution accuracy and of KL to the teacher.
"""

from __future__ import annotations

import argparse
from typing import Any

from tests.bench.quality import distilled, greedy_label_flags, mean_and_deviation

METRICS = ("exec_accuracy", "kl_to_teacher")


def run(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="rounds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--labels", choices=["agents", "teacher"], default="agents", help="as the bench quality has it")
    options, flags = parser.parse_known_args(arguments)
    if options.labels == "teacher":
        flags += greedy_label_flags()
    all_rounds = [f"--rounds.rounds={options.rounds}", "--rounds.least-agreement=0"]
    by_seed = [distilled(seed, [*all_rounds, *flags]) for seed in options.seeds]
    names = ["sft_control", "kd", "kd_continued", *(f"round_{number + 1}" for number in range(options.rounds))]
    found = {
        name: {metric: mean_and_deviation([numbers[name][metric] for numbers in by_seed]) for metric in METRICS}
        for name in names
    }
    gain = [numbers[names[-1]]["exec_accuracy"] - numbers["kd_continued"]["exec_accuracy"] for numbers in by_seed]
    return {
        "labels": options.labels,
        "seeds": options.seeds,
        "n": by_seed[0]["kd"]["n"],
        **found,
        "last_round_minus_continued": [round(value, 4) for value in gain],
    }
