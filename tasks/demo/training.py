"""Plain PyTorch training, generation and scoring for the models that the demo ships.

The pipeline's own training is DeepSpeed; this loop only makes the demo's starting point: a teacher and a
base student. Tensors: B rows of a batch, T tokens, N supervised tokens, V vocabulary.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

from tasks.demo.build_data import DemoRow
from tasks.demo.execution import opened
from tasks.demo.schemas import database_named
from tasks.demo.tokenizer import IM_END, prompt_text

IGNORED = -100

TokenIds = tuple[list[int], int]  # token ids, and how many of them are prompt (not supervised)


@dataclass(frozen=True)
class TrainingPlan:
    """AdamW with warm-up and cosine decay to zero; the weights kept are an exponential average."""

    steps: int
    batch_rows: int
    learning_rate: float
    warmup_steps: int = 50
    weight_decay: float = 0.05
    average_decay: float = 0.99


def encode_rows(tokenizer: PreTrainedTokenizerBase, rows: list[DemoRow]) -> list[TokenIds]:
    """Prompt, response and <|im_end|> of each row; the response and <|im_end|> are supervised."""
    prompts = tokenizer([prompt_text(row["instruction"], row["input"]) for row in rows])["input_ids"]
    responses = tokenizer([row["output"] + IM_END for row in rows])["input_ids"]
    return [(p + r, len(p)) for p, r in zip(prompts, responses, strict=True)]


def collate(examples: list[TokenIds], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids_BT padded on the right, and labels_BT where label t is the token that position t has to predict."""
    longest = max(len(ids) for ids, _ in examples)
    ids_BT = torch.full((len(examples), longest), pad_id)
    labels_BT = torch.full((len(examples), longest), IGNORED)
    for row, (ids, prompt_length) in enumerate(examples):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        labels_BT[row, prompt_length - 1 : len(ids) - 1] = torch.tensor(ids[prompt_length:])
    return ids_BT, labels_BT


def batches_by_length(rows: Iterator[TokenIds], batch_rows: int, pool_batches: int = 8) -> Iterator[list[TokenIds]]:
    """Batches of similar length, which wastes less on padding; the order inside a pool is shuffled by a stride."""
    while True:
        pool = sorted((next(rows) for _ in range(batch_rows * pool_batches)), key=lambda e: len(e[0]))
        for index in range(pool_batches):
            start = (index * 3 % pool_batches) * batch_rows
            yield pool[start : start + batch_rows]


def supervised_logits(model: Qwen2ForCausalLM, ids_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """logits_NV of the supervised positions only: the LM head is a third of these small models' work.

    Padding is on the right and attention is causal, so no mask is needed.
    """
    hidden_BTH = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    return model.lm_head(hidden_BTH[labels_BT != IGNORED])


def _learning_rate(plan: TrainingPlan, step: int) -> float:
    warm = min(1.0, (step + 1) / plan.warmup_steps)
    return plan.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / plan.steps))


def train(
    model: Qwen2ForCausalLM,
    batches: Iterator[list[TokenIds]],
    pad_id: int,
    plan: TrainingPlan,
    log: Callable[[str], None] = print,
) -> Qwen2ForCausalLM:
    """Train in fp32 and return a copy with the averaged weights."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay
    )
    average = copy.deepcopy(model).requires_grad_(False)
    model.train()
    started, running = time.monotonic(), 0.0
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(plan, step)
        ids_BT, labels_BT = collate(next(batches), pad_id)
        loss = F.cross_entropy(supervised_logits(model, ids_BT, labels_BT), labels_BT[labels_BT != IGNORED])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        # A short memory at first: the average must not remember the initial weights.
        decay = min(plan.average_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            for kept, current in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(current, 1 - decay)
        running += loss.item()
        if (step + 1) % 100 == 0:
            log(f"step {step + 1}/{plan.steps} loss {running / 100:.4f} {time.monotonic() - started:.0f}s")
            running = 0.0
    return average.eval()


@torch.no_grad()
def complete_sql(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, rows: list[DemoRow], batch_rows: int = 64
) -> list[str]:
    """The model's greedy answer to each row."""
    model.eval()
    prompts = tokenizer([prompt_text(row["instruction"], row["input"]) for row in rows])["input_ids"]
    order = sorted(range(len(rows)), key=lambda index: len(prompts[index]))
    answers = [""] * len(rows)
    for start in range(0, len(order), batch_rows):
        chosen = order[start : start + batch_rows]
        longest = max(len(prompts[index]) for index in chosen)
        ids = [[tokenizer.pad_token_id] * (longest - len(prompts[i])) + prompts[i] for i in chosen]
        mask = [[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen]
        output = cast(Any, model).generate(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts = tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            answers[index] = text
    return answers


def execution_accuracy(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, rows: list[DemoRow]) -> float:
    """The share of rows whose greedy answer returns what the row's own SQL returns."""
    answers = complete_sql(model, tokenizer, rows)
    right = [
        opened(database_named(row["database"])).same_result(row["output"], answer)
        for row, answer in zip(rows, answers, strict=True)
    ]
    return sum(right) / len(right)
