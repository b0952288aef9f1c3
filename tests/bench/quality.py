"""Does distillation help, beyond the spread of seeds? The demo, once a seed, through the command line.

    python -m tests.bench quality [--seeds 0 1 2] [--labels agents|teacher]

`--labels teacher` is the control that keeps us honest: the training responses are the teacher's own greedy
answers, so label noise and variety of style, which KD averages out, are gone.
JSON: per variant the mean and standard deviation over seeds, and KD minus the control, seed by seed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.stages import augment_workspace, load

METRICS = ("exec_accuracy", "cross_entropy", "kl_to_teacher")


def run(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="quality")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels", choices=["agents", "teacher"], default="agents")
    options = parser.parse_args(arguments)
    flags = greedy_label_flags() if options.labels == "teacher" else []
    by_seed = [distilled(seed, flags) for seed in options.seeds]
    variants = {
        name: {metric: mean_and_deviation([numbers[name][metric] for numbers in by_seed]) for metric in METRICS}
        for name in by_seed[0]
    }
    gain = [numbers["kd"]["exec_accuracy"] - numbers["sft_control"]["exec_accuracy"] for numbers in by_seed]
    return {
        "labels": options.labels,
        "seeds": options.seeds,
        "n": by_seed[0]["kd"]["n"],
        "variants": variants,
        "kd_minus_control": [round(value, 4) for value in gain],
    }


def distilled(seed: int, flags: list[str]) -> dict[str, dict[str, float]]:
    subprocess.run(
        [sys.executable, "-m", "flows.commands.main", "run", f"--seed={seed}", *flags], check=True, stdout=sys.stderr
    )
    home = Path(os.environ.get("DISTILFLOW_HOME", ".distilflow"))
    numbers: dict[str, dict[str, float]] = json.loads((home / "latest" / "results.json").read_text())["variants"]
    return numbers


def mean_and_deviation(values: list[float]) -> list[float]:
    return [round(statistics.mean(values), 4), round(statistics.stdev(values), 4) if len(values) > 1 else 0.0]


def greedy_label_flags() -> list[str]:
    """The agents' rows with the teacher's greedy answers, as a seeds file for the same flow."""
    from flows.params import PRESETS
    from infra.services.embedded import embedded_services
    from tasks.engines.generation import Ends, Prompt, TransformersGenerator
    from tasks.evaluate.heldout.scoring import load_model
    from tasks.models import load_tokenizer, resolve
    from tasks.rows import KEPT, read_rows
    from tasks.seeds.stage import Sources
    from tasks.shipped import DEMO
    from tasks.tokens.rows import TokenisedRow, tokenise

    preset = PRESETS["demo"]
    distilled(0, [])  # the agents' rows are made (or found) by an ordinary run
    with embedded_services():
        seeds = load(Sources.of("demo", None, None), heldout_share=0.1, response_required=False)
        ref = augment_workspace(seeds, preset.augmentation, "demo").find()
        assert ref is not None, "the ordinary run has left no rows"
        teacher = resolve("demo", "teacher")
        tokenizer, model = load_tokenizer(teacher), load_model(teacher)
        tokenised = [(row, tokenise(row, tokenizer, 384)) for row in read_rows(ref, KEPT)]
        usable = [(row, tokens) for row, tokens in tokenised if isinstance(tokens, TokenisedRow)]
        prompts = [Prompt(row.id, tokens.ids[: tokens.response_start]) for row, tokens in usable]
        generator = TransformersGenerator(model, Ends.of(teacher, tokenizer), max_new_tokens=64, batch_rows=160)
        answers = [answer.text for [answer] in generator.answers(prompts, None)]
    path = Path(os.environ.get("DISTILFLOW_HOME", ".distilflow")) / "greedy_labels.jsonl"
    with path.open("w") as stream:
        for (row, _tokens), text in zip(usable, answers, strict=True):
            entry = {"instruction": row.instruction, "input": row.input, "output": text, "database": row.database}
            stream.write(json.dumps(entry) + "\n")
    return [
        f"--seeds={path}",
        "--augmentation.no-enabled",
        f"--heldout={DEMO / 'heldout.jsonl'}",
        f"--databases={DEMO / 'databases'}",
    ]
