"""Engines that answer prompts: token ids in, answers out; greedy, or sampled several times.

`vllm` is the engine of production, on GPU and CPU; `transformers` is the reference that it is tested against,
and the faster one for the demo, whose models are done before vLLM has started. Both stop where `Ends` says, and take
no other defaults from the model's `generation_config.json` (Qwen's holds a repetition penalty, which would make
"greedy" mean something else from model to model).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tasks.engines.device import capability, dtype_here
from tasks.engines.memory import GENERATED_AT_ONCE
from tasks.engines.quantised import check_device
from tasks.engines.scoring import end_vllm, start_vllm, vllm_options
from tasks.models import ModelSource
from tasks.precision import Dtype
from tasks.text.answers import answer_of
from tasks.tokens.chat import stop_ids
from tasks.tokens.rows import ChatFormat

_PROMPTS_PER_CALL = 1024  # enough to fill the engine, few enough that progress is seen


@dataclass(frozen=True)
class Prompt:
    """What is answered; the key seeds its samples, so that they do not depend on the other prompts."""

    key: str
    ids: Sequence[int]


@dataclass(frozen=True)
class Sampling:
    """`n` answers a prompt, each token drawn at `temperature` from the likeliest ones that hold `top_p`."""

    n: int
    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True)
class Generated:
    """`text` without a thought before it, `tokens` of it without the end of turn; `truncated`: the limit came first."""

    text: str
    tokens: int
    truncated: bool


@dataclass(frozen=True)
class Ends:
    """Where a model's generation ends, at last with its `context`, and the answer in what it generated.

    `opening` is what comes last before an answer, where control tokens do: GPT-OSS thinks in other channels first.
    """

    tokenizer: Any
    stop_ids: tuple[int, ...]
    context: int
    opening: tuple[int, ...] = ()

    @staticmethod
    def of(source: ModelSource, tokenizer: Any) -> Ends:
        chat = ChatFormat.of(tokenizer)
        stops = stop_ids(source, chat.end_id, tokenizer.eos_token_id)
        opening = tokenizer.encode(chat.turn.before, add_special_tokens=False)
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        return Ends(tokenizer, stops, source.context(), tuple(opening) if special & set(opening) else ())

    def room(self, prompt: int, max_new_tokens: int) -> int:
        """Tokens that may follow a prompt of so many."""
        return max(1, min(max_new_tokens, self.context - prompt))

    def answer(self, generated: Sequence[int]) -> Generated:
        """The ids may run on (with padding) after the end of turn."""
        written, truncated = self.written(generated)
        ids = written if truncated else written[:-1]
        ids = ids[_after(self.opening, ids) :]
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        answer = answer_of(text)
        tokens = len(ids) if answer == text else len(self.tokenizer.encode(answer, add_special_tokens=False))
        return Generated(answer, tokens, truncated)

    def written(self, generated: Sequence[int]) -> tuple[list[int], bool]:
        """The ids up to the end of turn and with it, and whether the limit came first."""
        end = next((at for at, token in enumerate(generated) if token in self.stop_ids), None)
        return list(generated[: None if end is None else end + 1]), end is None


def _after(part: Sequence[int], ids: Sequence[int]) -> int:
    """Where `ids` go on after the last `part` in them; 0 where there is none."""
    size = len(part)
    places = (at + size for at in range(len(ids) - size, -1, -1) if tuple(ids[at : at + size]) == tuple(part))
    return next(places, 0) if size else 0


class Generator(Protocol):
    """Answers prompts in order; `sampling` None is greedy (one answer). `ids` are an answer's as `Ends` takes them."""

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling | None) -> Iterator[list[Generated]]: ...

    def ids(self, prompts: Sequence[Prompt], sampling: Sampling | None) -> Iterator[list[Sequence[int]]]: ...

    def close(self) -> None: ...


class VLLMGenerator:
    """vLLM: one engine, on the GPUs that it is given, until it is closed."""

    def __init__(self, folder: Path, ends: Ends, max_length: int, max_new_tokens: int, options: dict[str, Any]):
        self._ends = ends
        self._max_new_tokens = max_new_tokens
        self._llm, self._processes = start_vllm(
            folder, options, max_model_len=min(max_length, ends.context), generation_config="vllm"
        )

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling | None) -> Iterator[list[Generated]]:
        return ([self._ends.answer(ids) for ids in drawn] for drawn in self.ids(prompts, sampling))

    def ids(self, prompts: Sequence[Prompt], sampling: Sampling | None) -> Iterator[list[Sequence[int]]]:
        for start in range(0, len(prompts), _PROMPTS_PER_CALL):
            some = prompts[start : start + _PROMPTS_PER_CALL]
            given: list[Any] = [{"prompt_token_ids": list(prompt.ids)} for prompt in some]
            parameters = [self._parameters(prompt, sampling) for prompt in some]
            for output in self._llm.generate(given, parameters, use_tqdm=False):
                yield [one.token_ids for one in output.outputs]

    def _parameters(self, prompt: Prompt, sampling: Sampling | None) -> Any:
        from vllm import SamplingParams

        stop: dict[str, Any] = {
            "max_tokens": self._ends.room(len(prompt.ids), self._max_new_tokens),
            "stop_token_ids": list(self._ends.stop_ids),
            "detokenize": False,
        }
        if sampling is None:
            return SamplingParams(temperature=0.0, **stop)
        return SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=_seed(prompt, sampling),
            **stop,
        )

    def close(self) -> None:
        end_vllm(self._llm, self._processes)


class TransformersGenerator:
    """`generate` of transformers on padded batches: the reference."""

    def __init__(self, model: Any, ends: Ends, max_new_tokens: int, batch_rows: int):
        self._model = model
        self._ends = ends
        self._max_new_tokens = max_new_tokens
        self._batch_rows = batch_rows

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling | None) -> Iterator[list[Generated]]:
        return ([self._ends.answer(ids) for ids in drawn] for drawn in self.ids(prompts, sampling))

    def ids(self, prompts: Sequence[Prompt], sampling: Sampling | None) -> Iterator[list[Sequence[int]]]:
        for start in range(0, len(prompts), self._batch_rows):
            yield from self._ids(prompts[start : start + self._batch_rows], sampling)

    def _ids(self, prompts: Sequence[Prompt], sampling: Sampling | None) -> Iterator[list[Sequence[int]]]:
        import torch
        from transformers import GenerationConfig

        # padded on the left, so that all answers start at the same place
        longest = max(len(prompt.ids) for prompt in prompts)
        pad = self._ends.tokenizer.pad_token_id
        ids_BT = torch.full((len(prompts), longest), pad, device=self._model.device)
        mask_BT = torch.zeros_like(ids_BT)
        for b, prompt in enumerate(prompts):
            ids_BT[b, longest - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask_BT[b, longest - len(prompt.ids) :] = 1
        how: dict[str, Any] = {"do_sample": False}
        if sampling is not None:
            torch.manual_seed(_seed(prompts[0], sampling))  # one stream for the batch
            how = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": 0,
                "num_return_sequences": sampling.n,
            }
        settings = GenerationConfig(
            max_new_tokens=self._ends.room(longest, self._max_new_tokens),
            eos_token_id=list(self._ends.stop_ids),
            pad_token_id=pad,
            repetition_penalty=1.0,
            **how,
        )
        with torch.inference_mode():
            output_BT = self._model.generate(input_ids=ids_BT, attention_mask=mask_BT, generation_config=settings)
        n = sampling.n if sampling else 1
        new = output_BT[:, longest:].tolist()
        for b in range(len(prompts)):
            yield new[b * n : (b + 1) * n]

    def close(self) -> None:
        pass


def vllm_generator(
    source: ModelSource,
    ends: Ends,
    max_length: int,
    max_new_tokens: int,
    dtype: Dtype,
    tensor_parallel: int,
    gpu_memory: float,
) -> VLLMGenerator:
    """The engine with settings for this machine; prompt and answer together have at most `max_length` tokens.

    Raises ConfigurationError for a dtype that the GPU has not, and for a quantised model on a CPU.
    """
    config, on_gpu = source.json_file("config.json"), capability() is not None
    check_device(source.name, config, on_gpu=on_gpu)
    told = dtype_here(dtype, config, "evaluation.dtype=bfloat16")
    options = vllm_options(on_gpu, told, tensor_parallel, gpu_memory, GENERATED_AT_ONCE)
    return VLLMGenerator(source.fetch(), ends, max_length, max_new_tokens, options)


def _seed(prompt: Prompt, sampling: Sampling) -> int:
    return int(hashlib.sha256(f"{sampling.seed}:{prompt.key}".encode()).hexdigest()[:12], 16)
