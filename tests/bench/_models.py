"""Models and rows of any size for benchmarks: random weights with the demo's tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from infra.store.artifacts import ArtifactRef
from tasks.augment import stage
from tasks.augment.settings import Augmentation
from tasks.models import ModelSource
from tasks.rows import KEPT, Row, to_parquet
from tasks.seeds.stage import Sources
from tasks.shipped import DEMO
from tests.support.endpoint_answers import answer
from tests.support.stages import augment_workspace, load


def random_model(folder: Path, name: str, **config: Any) -> ModelSource:
    """A Qwen2 of random weights; without `vocab_size` it has the demo's vocabulary."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    place = folder / name
    shutil.copytree(DEMO / "student", place)
    (place / "model.safetensors").unlink()
    settings = AutoConfig.from_pretrained(place)
    for key, value in config.items():
        setattr(settings, key, value)
    settings.layer_types = ["full_attention"] * settings.num_hidden_layers
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(settings).save_pretrained(place)
    return ModelSource(name=name, path=str(place))


def demo_rows() -> ArtifactRef:
    """The demo's seeds as training rows."""
    seeds = load(Sources.of("demo", None, None), heldout_share=0.1, response_required=True)
    work = augment_workspace(seeds, Augmentation(enabled=False), "")
    return work.find() or stage.copy_seeds(work, seeds)


def wordy_rows(count: int) -> list[Row]:
    """Rows of about 200 tokens, no two of the same length."""
    new = answer({"agent": "expansion", "n": count}, seed=0)["instructions"]
    return [
        Row(instruction=row["instruction"], response=" ".join([row["response"]] * (1 + number % 3)))
        for number, row in enumerate(new)
    ]


def as_artifact(rows: list[Row]) -> ArtifactRef:
    """Rows as what augmentation leaves."""
    from infra.store.artifacts import Workspace

    work = Workspace("augment", 1000, {"enabled": False, "rows": len(rows)}, {})
    work.put(f"{KEPT}00000.parquet", to_parquet(rows))
    return work.publish((KEPT,), {"rows": len(rows)}, {})
