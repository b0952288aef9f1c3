"""llama.cpp computes a GGUF file of every family that we convert as transformers computes what is read back from it."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.quantise.checks import GGUF_FAMILIES
from tasks.quantise.settings import Format
from tests.support.quantising import loaded, random_student

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("cyllama") is None, reason="the extra `quantise` is not installed"
)
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
PARTICULAR: dict[str, dict[str, Any]] = {
    "gemma2": {},
    "gemma3_text": {"num_hidden_layers": 6},  # llama.cpp wants a layer without a window: every sixth
    "llama": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10_000.0, **_LLAMA3}},
    "mistral": {},
    "phi3": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": True},
}
_SENTENCEPIECE = {"gemma2", "gemma3_text", "phi3"}
IDS = list(range(5, 60))


def test_every_family_that_is_converted_is_tried() -> None:
    assert PARTICULAR.keys() == GGUF_FAMILIES


@pytest.mark.parametrize("family", sorted(GGUF_FAMILIES))
def test_llama_cpp_computes_what_is_read_back(family: str, tmp_path: Path) -> None:
    from tasks.quantise import gguf, llama

    folder = random_student(tmp_path / "model", family, **PARTICULAR[family])
    if family in _SENTENCEPIECE:
        (folder / "tokenizer.model").write_bytes(_sentencepiece())
    model = loaded(folder)
    whole = tmp_path / "whole.gguf"
    gguf.convert(folder, whole, family)
    assert _agreed(model, whole, family, gguf, llama) >= 0.95
    forms: tuple[Format, ...] = ("q8_0", "q4_k_m")
    for form in forms:
        rounded = tmp_path / f"{form}.gguf"
        gguf.quantise(whole, rounded, form, 1)
        assert _agreed(model, rounded, family, gguf, llama) >= 0.8  # it rounds what comes into a layer as well


def _agreed(model: Any, path: Path, family: str, gguf: Any, llama: Any) -> float:
    """Share of next tokens that are alike."""
    gguf.dequantised(path, model, family)
    with torch.inference_mode():
        ours = model(torch.tensor([IDS])).logits[0].argmax(-1).tolist()
    with llama.opened(path, 1) as opened:
        theirs = opened.likeliest(IDS)
    return sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)


def _sentencepiece() -> bytes:
    import sentencepiece

    made = io.BytesIO()
    texts = [f"SELECT name{n} FROM customers WHERE city = 'Berlin' AND id > {n}" for n in range(200)]
    options: dict[str, Any] = {"vocab_size": 400, "model_type": "bpe", "byte_fallback": True, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=made, pad_id=0, eos_id=1, bos_id=2, unk_id=3, **options
    )
    return made.getvalue()
