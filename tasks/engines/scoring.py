"""Engines that score rows with the teacher: token ids and supervised spans in, top K out.

`vllm` is the engine of production, on GPU and CPU; `transformers` is the reference that it is tested against; a vLLM
that runs elsewhere is in `tasks.engines.server`. All give raw log-probabilities (softmax in fp32, no temperature) of
supervised tokens only, best first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil

from infra.processes.guardian import is_tracker
from infra.processes.shares import bind_ranks
from tasks.tokens.rows import TokenisedRow, cut
from tasks.tokens.scored import ScoredRow

_REFERENCE_TOKENS = 2048  # whose logits over a vocabulary of 152,000 take 1.2 GB
_POSITIONS_AT_ONCE = 256  # a copy of all of them would take as much again, twice
_SHUTDOWN_S = 20.0


class Engine(Protocol):
    """Scores a batch of rows, in order."""

    def score(self, rows: Sequence[TokenisedRow], k: int) -> list[ScoredRow]: ...

    def close(self) -> None: ...


class VLLMEngine:
    """vLLM with `prompt_logprobs`: teacher-forced scoring of given ids."""

    def __init__(self, folder: Path, k: int, max_length: int, options: dict[str, Any]):
        self._llm, self._processes = start_vllm(
            folder,
            options,
            max_model_len=max_length + 1,
            max_logprobs=k + 1,
            logprobs_mode="raw_logprobs",
            enable_prefix_caching=False,  # a cached prefix has no prompt_logprobs (vllm#42019)
        )

    def score(self, rows: Sequence[TokenisedRow], k: int) -> list[ScoredRow]:
        outputs = self.generate(rows, k)
        return [_scored(row, output.prompt_logprobs, k) for row, output in zip(rows, outputs, strict=True)]

    def generate(self, rows: Sequence[TokenisedRow], k: int) -> Any:
        """vLLM's own outputs."""
        from vllm import SamplingParams

        parameters = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=k, detokenize=False, flat_logprobs=True
        )
        prompts: list[Any] = [{"prompt_token_ids": list(row.ids)} for row in rows]
        return self._llm.generate(prompts, parameters, use_tqdm=False)

    def close(self) -> None:
        end_vllm(self._llm, self._processes)


def _scored(row: TokenisedRow, flat: Any, k: int) -> ScoredRow:
    """vLLM's flat log-probs: position i describes token i; its first entry is the actual token, then rank 1 to K."""
    places_R = row.places_R
    first = int(places_R[0])
    start, shape = flat.start_indices[first], (-1, k + 1)
    ids = np.asarray(flat.token_ids[start:], dtype=np.int32).reshape(shape)[places_R - first]
    logprobs = np.asarray(flat.logprobs[start:], dtype=np.float32).reshape(shape)[places_R - first]
    if not np.array_equal(ids[:, 0], np.asarray(row.ids)[places_R]):
        raise AssertionError(f"the engine scored other tokens than those of row {row.row_id}")
    return ScoredRow(
        row.row_id, row.ids, row.response_start, logprobs[:, 0], ids[:, 1:], logprobs[:, 1:], earlier=row.earlier
    )


def start_vllm(folder: Path, options: dict[str, Any], **more: Any) -> tuple[Any, set[psutil.Process]]:
    """vLLM's `LLM` with `vllm_options`, and the processes that it has started."""
    from vllm import LLM

    before = processes_below()
    bind_ranks(options["tensor_parallel_size"] * options["pipeline_parallel_size"])
    llm = LLM(model=str(folder), trust_remote_code=False, disable_log_stats=True, **options, **more)
    return llm, processes_below() - before


def processes_below() -> set[psutil.Process]:
    """What this process has started by now, and what that has, but for resource trackers, which end with it."""
    return {process for process in psutil.Process().children(recursive=True) if not _is_tracker(process)}


def _is_tracker(process: psutil.Process) -> bool:
    try:
        return is_tracker(process)
    except psutil.NoSuchProcess:
        return False


def end_vllm(llm: Any, processes: Iterable[psutil.Process]) -> None:
    """End the engine and wait until its processes, and what they held of the GPU and of shared memory, are gone."""
    llm.llm_engine.engine_core.shutdown(timeout=_SHUTDOWN_S)
    _gone, alive = psutil.wait_procs(processes, timeout=_SHUTDOWN_S)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=_SHUTDOWN_S)


class TransformersEngine:
    """Any causal LM through transformers, one padded batch at a time: the reference."""

    def __init__(self, folder: Path, dtype: str = "float32"):
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, dtype=dtype, **attention_of(folder)
        )
        self._model = model.to(self._device).eval()

    def score(self, rows: Sequence[TokenisedRow], k: int) -> list[ScoredRow]:
        return [scored for batch in cut(rows, _REFERENCE_TOKENS) for scored in self._score(batch, k)]

    def close(self) -> None: ...

    def _score(self, rows: Sequence[TokenisedRow], k: int) -> list[ScoredRow]:
        torch = self._torch
        longest = max(len(row.ids) for row in rows)
        ids_BT = torch.zeros((len(rows), longest), dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for b, row in enumerate(rows):
            ids_BT[b, : len(row.ids)] = torch.tensor(row.ids)
            mask_BT[b, : len(row.ids)] = 1
        with torch.inference_mode():
            ids_BT, mask_BT = ids_BT.to(self._device), mask_BT.to(self._device)
            logits_BTV = self._model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
            scored = []
            for b, row in enumerate(rows):
                places_R, parts = torch.from_numpy(row.places_R).to(self._device), []
                for some_R in places_R.split(_POSITIONS_AT_ONCE):
                    # the hidden state before a token predicts it
                    logprobs_RV = logits_BTV[b, some_R - 1].float().log_softmax(dim=-1)
                    top = logprobs_RV.topk(k, dim=-1)
                    parts.append((logprobs_RV.gather(1, ids_BT[b, some_R, None])[:, 0], top.indices.int(), top.values))
                actual_R, ids_RK, logprobs_RK = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
                scored.append(
                    ScoredRow(
                        row.row_id, row.ids, row.response_start, actual_R, ids_RK, logprobs_RK, earlier=row.earlier
                    )
                )
        return scored


def attention_of(folder: Path) -> dict[str, str]:
    """What transformers is to be told of a model's attention: with its default, SDPA, it drops a cap on the scores."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    return {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}


def vllm_options(
    on_gpu: bool,
    dtype: str,
    tensor_parallel: int,
    gpu_memory: float,
    max_batched_tokens: int,
    pipeline_parallel: int = 1,
) -> dict[str, Any]:
    """Settings of the engine. Memory grows with batched tokens × vocabulary, hence the bound (vllm#52054)."""
    options = {
        "dtype": dtype,
        "tensor_parallel_size": tensor_parallel,
        "pipeline_parallel_size": pipeline_parallel,
        "gpu_memory_utilization": gpu_memory if on_gpu else 0.3,
        "max_num_batched_tokens": max_batched_tokens,
    }
    return options if on_gpu else {**options, "enforce_eager": True}
