"""The finished model as a Hugging Face folder: safetensors, what the base is beside its weights, and a card."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from re import Pattern
from typing import Any

import torch
from deepspeed.runtime.keep_in_fp32 import keep_in_fp32_pattern
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor
from transformers import GenerationConfig

from infra.store.artifacts import Workspace
from tasks.models import copy_beside_weights
from tasks.text.markdown import markdown_text
from tasks.tokens.chat import GENERATION, stop_at
from tasks.train.model.adapters import merged
from tasks.train.settings import Lora

CARD = "README.md"
_TEMPLATES = Environment(
    loader=PackageLoader("tasks.train"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_TEMPLATES.filters |= {"md": markdown_text, "yaml": json.dumps}


def export(
    engine: Any,
    work: Workspace,
    source: Path,
    stops: Collection[int],
    zero_stage: int,
    lora: Lora | None,
    dtype: torch.dtype,
    card: Mapping[str, Any],
) -> None:
    """Put the folder into the workspace; generation ends at the ids `stops`. All ranks call it, the first writes."""
    model = engine.module.model
    state = model.state_dict()
    if zero_stage == 3:  # each rank holds a part; rank 0 gets the whole, with the wrapper's prefix
        state = engine._zero3_consolidated_16bit_state_dict()
        ours = {name for name in state or {} if name.startswith("model.")}  # and not the loss's view of the head
        state = {name.removeprefix("model."): state[name] for name in ours}
    if torch.distributed.get_rank() != 0:
        return
    if lora is not None:
        model, state = model.get_base_model(), merged(source, state, lora)
    with tempfile.TemporaryDirectory() as target:
        write_model(model, state, source, Path(target), stops, dtype)
        (Path(target) / CARD).write_text(render_card(card))
        work.put_folder("model/", Path(target))


def write_model(
    model: Any, state: Mapping[str, Tensor], source: Path, target: Path, stops: Collection[int], dtype: torch.dtype
) -> None:
    """Write the weights `state` of a plain model, and what its base in `source` is beside them, into `target`.

    In `dtype`, but for what the family keeps in fp32 (the biases that DeepSeek-V3 chooses experts by).
    """
    state = converted(state, dtype, keep_in_fp32_pattern(model, None, dtype))
    model.config.dtype = dtype
    model.generation_config = GenerationConfig()  # transformers refuses to write what some models come with
    model.save_pretrained(target, state_dict=state, safe_serialization=True)
    (target / GENERATION).unlink(missing_ok=True)
    copy_beside_weights(source, target)
    stop_at(target, stops)


def converted(state: Mapping[str, Tensor], dtype: torch.dtype, exact: Pattern[str] | None = None) -> dict[str, Tensor]:
    """The weights in `dtype`, or fp32 where a name matches `exact`; what is tied stays one tensor, written once."""
    made: dict[Any, Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        wanted = torch.float32 if exact and exact.search(name) else dtype
        place = tensor.data_ptr(), tensor.shape, tensor.stride(), wanted
        found[name] = made.setdefault(place, tensor if tensor.dtype == wanted else tensor.to(wanted))
    return found


def render_card(facts: Mapping[str, Any]) -> str:
    """The model card: what was trained, on what, from what, and how it went."""
    return _TEMPLATES.get_template("model_card.md.jinja").render(**facts)
