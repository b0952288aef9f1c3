"""A pretrained model for the benchmark on real text: out of a GGUF file, and cut to fewer layers for a student.

GGUF files of base models have no chat template: they get the turns of Gemma, whose tokens they have.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

START, END = "<start_of_turn>", "<end_of_turn>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    f"{{{{ '{START}' + role + '\n' + message['content'] | trim + '{END}\n' }}}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{START}model\n' }}}}{{% endif %}}"
)


def prepare(gguf: Path, folder: Path) -> None:
    """A Hugging Face folder in fp32 out of a GGUF file; needs the package `gguf`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    if not tokenizer.chat_template:
        tokenizer.add_special_tokens({"additional_special_tokens": [START, END]})
        tokenizer.chat_template = TEMPLATE
    quantised = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = quantised.config
    if len(tokenizer) > config.vocab_size:
        raise SystemExit(f"{gguf}: its vocabulary lacks {START} or {END}, so it needs a chat template of its own")
    del config.quantization_config  # which no weight is any more
    model = AutoModelForCausalLM.from_config(config)  # one that may be saved
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def kept_layers(layers: int, every: float) -> list[int]:
    """Every second (third …) of the layers, the last one among them, which the head is used to; of 1.2, five of six."""
    return [layers - 1 - round(number * every) for number in range(int((layers - 1) / every), -1, -1)]


def cut(source: Path, folder: Path, kept: Sequence[int]) -> Path:
    """The model in `source` without its other layers, in `folder`; found where it was cut before."""
    from transformers import AutoModelForCausalLM

    if not (folder / "config.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        model = AutoModelForCausalLM.from_pretrained(source, dtype="float32")
        model.model.layers = type(model.model.layers)(model.model.layers[place] for place in kept)
        for number, layer in enumerate(model.model.layers):
            layer.self_attn.layer_idx = number
        if kinds := getattr(model.config, "layer_types", None):
            model.config.layer_types = [kinds[place] for place in kept]
        model.config.num_hidden_layers = len(kept)
        making = folder.with_name(f"{folder.name}.part")
        model.save_pretrained(making)
        for path in source.iterdir():
            if path.suffix != ".safetensors" and not (making / path.name).exists():
                shutil.copy(path, making)
        making.rename(folder)
    return folder


def shape_of(folder: Path) -> dict[str, Any]:
    """What the model's own configuration says of its size."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return {name: config.get(name) for name in ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")}
