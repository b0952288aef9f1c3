"""Students to quantise: the demo's, and random ones whose rows K-quants divide."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from infra.store import storage
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.shipped import DEMO
from tests.support.families import tiny_config

VOCABULARY = 1216  # the demo's tokens, padded
_WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "max_position_embeddings": 512}


def random_student(folder: Path, family: str, **others: Any) -> Path:
    """A random model of that family, 256 wide, with the demo's tokenizer."""
    torch.manual_seed(0)
    sizes = {**_WIDE, "vocab_size": VOCABULARY, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None}
    config = tiny_config(family, **{**sizes, "sliding_window": 512, **others})
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(tensor + 0.1 * torch.randn_like(tensor) if tensor.ndim < 2 else 0.1 * torch.randn_like(tensor))
    model.save_pretrained(folder, safe_serialization=True)
    for path in (DEMO / "student").glob("tok*"):
        shutil.copy(path, folder)
    return folder


def kd_artifact(folder: Path, name: str, **inputs: ArtifactRef) -> ArtifactRef:
    """The model in a folder, in the place of a distilled student."""
    storage.ensure_bucket()
    work = Workspace("kd", 1, {"for": name}, inputs)
    if found := work.find():
        return found
    work.put_folder("model/", folder)
    return work.publish(("model/",), {}, {})


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def prompt() -> torch.Tensor:
    """Token ids of a question as the demo's template writes it: (1, T)."""
    tokenizer: Any = AutoTokenizer.from_pretrained(DEMO / "student")
    said = [{"role": "user", "content": "How many customers are there in each city?"}]
    ids: torch.Tensor = tokenizer.apply_chat_template(
        said, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    return ids
