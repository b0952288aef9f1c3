"""What llama.cpp makes of a GGUF file: its tokens of a text, and its likeliest next token at each position."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


class Llama:
    """A GGUF file in llama.cpp, on the CPU."""

    def __init__(self, model: Any, threads: int):
        self._model = model
        self._threads = threads

    def tokens(self, text: str) -> list[int]:
        """With control tokens by their names, and none added."""
        found: list[int] = self._model.get_vocab().tokenize(text, False, True)
        return found

    def likeliest(self, ids: Sequence[int]) -> list[int]:
        """After each of the ids."""
        from cyllama.llama.llama_cpp import (
            LlamaBatch,
            LlamaContext,
            LlamaContextParams,
            LlamaSampler,
            LlamaSamplerChainParams,
        )

        how = LlamaContextParams()
        how.n_ctx = how.n_batch = max(len(ids), 32)
        how.n_threads = how.n_threads_batch = self._threads
        context, batch = LlamaContext(self._model, how), LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
        sampler = LlamaSampler(LlamaSamplerChainParams())
        sampler.add_greedy()
        for place, token in enumerate(ids):
            batch.add(token, place, [0], True)
        try:
            context.decode(batch)
            return [sampler.sample(context, place) for place in range(len(ids))]
        finally:
            context.close()


@contextlib.contextmanager
def opened(path: Path, threads: int) -> Iterator[Llama]:
    from cyllama.llama import llama_cpp

    llama_cpp.disable_logging()
    llama_cpp.llama_backend_init()
    how = llama_cpp.LlamaModelParams()
    how.n_gpu_layers = 0
    model = llama_cpp.LlamaModel(str(path), how)
    try:
        yield Llama(model, threads)
    finally:
        model.close()
