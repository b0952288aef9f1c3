"""Fine-tuning beside TRL's SFTTrainer: useful tokens a second at a vocabulary of 151,936.

    pip install '.[bench]'
    python -m tests.bench sft_vs_trl [--steps 8] [--rounds 2]

The same random model, rows, loss on responses only, global batch, fp32, AdamW, two processes. TRL once with its
defaults (but fp32: these are CPUs), once as its documentation advises for speed (packing, no gradient checkpointing).
Tokens are prompt and response, never padding, over the time of the whole training loop. They take turns; the best
round of each counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support.stages import training_workspace

MODEL = {
    "vocab_size": 151_936,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GLOBAL_BATCH = 16
MAX_LENGTH = 1024


def run(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="sft_vs_trl")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args(arguments)
    from infra.services.embedded import embedded_storage
    from infra.store import storage
    from tasks.models import load_tokenizer
    from tests.bench._models import as_artifact, random_model, wordy_rows

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["DISTILFLOW_HOME"] = scratch
        with embedded_storage():
            storage.ensure_bucket()
            model = random_model(Path(scratch), "model", **MODEL)
            rows = wordy_rows(GLOBAL_BATCH * options.steps)
            data = as_artifact(rows)
            prepared = Path(scratch) / "rows.jsonl"
            prepared.write_text("\n".join(json.dumps(_prompt_completion(row)) for row in rows))
            longest = max(len(load_tokenizer(model)(row.instruction + row.response).input_ids) for row in rows)
            assert longest < MAX_LENGTH - 50, longest
            found: dict[str, list[float]] = {"ours": [], "trl_default": [], "trl_best": []}
            for turn in range(options.rounds):
                found["ours"].append(_ours(model, data, options.steps, turn))
                for way in ("trl_default", "trl_best"):
                    found[way].append(_trl(way, str(model.path), prepared, options.steps, Path(scratch)))
                print({way: speeds[-1] for way, speeds in found.items()}, file=sys.stderr, flush=True)
    best = {way: max(speeds) for way, speeds in found.items()}
    return {
        **{f"{way}_tokens_s": round(speed) for way, speed in best.items()},
        "ratio_default": round(best["ours"] / best["trl_default"], 2),
        "ratio_best": round(best["ours"] / best["trl_best"], 2),
        "rounds": {way: [round(speed) for speed in speeds] for way, speeds in found.items()},
    }


def _prompt_completion(row: Any) -> dict[str, Any]:
    turns = [message.model_dump() for message in row.messages]
    return {"prompt": turns[:-1], "completion": turns[-1:]}


def _ours(model: Any, data: Any, steps: int, turn: int) -> float:
    from infra.store.artifacts import Workspace, facts_of
    from tasks.train import stage
    from tasks.train.settings import Training, TrainingRun

    training = Training(max_steps=steps, global_batch=GLOBAL_BATCH, max_length=MAX_LENGTH, learning_rate=1e-4)
    made = training_workspace("sft", model, data, training, 0)
    work = Workspace(made.kind, 1000 + turn, made.spec, made.inputs)
    run = TrainingRun(processes=2, micro_batch=GLOBAL_BATCH // 2)
    return float(facts_of(stage.train(work, "sft", model, data, training, run, 0, lambda event: None))["tokens_s"])


def _trl(way: str, model: str, rows: Path, steps: int, scratch: Path) -> float:
    out = scratch / f"{way}.json"
    spec = {"way": way, "model": model, "rows": str(rows), "steps": steps, "out": str(out)}
    spec |= {"global_batch": GLOBAL_BATCH, "max_length": MAX_LENGTH}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    subprocess.run(
        [*launcher, "-m", "tests.bench._trl", json.dumps(spec)],
        check=True,
        stdout=sys.stderr,
        env={**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2)), "HF_HUB_OFFLINE": "1"},
    )
    return float(json.loads(out.read_text())["tokens_s"])
