"""A model that is another one in all but its tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tasks.models import ModelSource


def shuffled_ids(model: ModelSource, folder: Path) -> ModelSource:
    """The model with every token under another id: another tokenizer, the same distributions over texts."""
    shutil.copytree(str(model.path), folder)
    config = json.loads((folder / "config.json").read_text())
    size = config["vocab_size"]
    new_id = np.random.default_rng(0).permutation(size)
    told = json.loads((folder / "tokenizer.json").read_text())
    told["model"]["vocab"] = {token: int(new_id[old]) for token, old in told["model"]["vocab"].items()}
    told["added_tokens"] = [{**entry, "id": int(new_id[entry["id"]])} for entry in told["added_tokens"]]
    (folder / "tokenizer.json").write_text(json.dumps(told))
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "embed_tokens" in name or "lm_head" in name:
            moved = torch.empty_like(weight)
            moved[torch.from_numpy(new_id)] = weight
            weights[name] = moved
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "generation_config.json"):
        if (folder / name).exists():
            settings = json.loads((folder / name).read_text())
            for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
                if isinstance(settings.get(key), int):
                    settings[key] = int(new_id[settings[key]])
            (folder / name).write_text(json.dumps(settings))
    return ModelSource(name="shuffled", path=str(folder))
