"""Make the demo's teacher and base student and write them as Hugging Face folders.

Part of `python -m tasks.demo.build`. The teacher is trained on endless correct rows of the training
pairings, in all styles; the order of tables and columns in its prompts is shuffled half of the time, which
makes it read the schema instead of remembering it and so carries over to held-out pairings. The base
student is pretrained on the domain's text unpaired (requests, schemas and SQL, each alone): it knows the
language but not the task.
"""

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.generation import GenerationConfig

from tasks.demo.build_data import DemoRow, rows_of_split
from tasks.demo.schemas import Database, SqlTable, database_named, schema_text
from tasks.demo.tokenizer import MAX_TOKENS
from tasks.demo.training import TokenIds, TrainingPlan, batches_by_length, encode_rows, train

HEAD_DIM = 32  # vLLM's CPU attention refuses 16.
TEACHERS = {"teacher-small": (96, 3), "teacher-medium": (128, 3), "teacher": (192, 4)}  # hidden size, layers
STUDENTS = {"student-small": (64, 2), "student-medium": (96, 3), "student": (128, 3)}
TEACHER_PLAN = TrainingPlan(steps=2_400, batch_rows=32, learning_rate=2e-3)
BASE_PLAN = TrainingPlan(steps=600, batch_rows=64, learning_rate=2e-3)
_ENCODED_AT_ONCE = 512


def _model(tokenizer: PreTrainedTokenizerFast, *, hidden: int, layers: int, seed: int) -> Qwen2ForCausalLM:
    heads = hidden // HEAD_DIM
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            # Like Qwen2's own checkpoints, the embedding is a little larger than the tokenizer.
            vocab_size=-(-len(tokenizer) // 64) * 64,
            hidden_size=hidden,
            intermediate_size=hidden * 5 // 2,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2,
            max_position_embeddings=MAX_TOKENS,
            tie_word_embeddings=True,
            initializer_range=0.04,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
    )


def new_teacher(tokenizer: PreTrainedTokenizerFast, name: str = "teacher") -> Qwen2ForCausalLM:
    hidden, layers = TEACHERS[name]
    return _model(tokenizer, hidden=hidden, layers=layers, seed=1)


def new_student(tokenizer: PreTrainedTokenizerFast, name: str = "student") -> Qwen2ForCausalLM:
    hidden, layers = STUDENTS[name]
    return _model(tokenizer, hidden=hidden, layers=layers, seed=2)


def _shuffled(database: Database, rng: random.Random) -> Database:
    def shuffled_columns(table: SqlTable) -> SqlTable:
        return dataclasses.replace(table, columns=tuple(rng.sample(table.columns, len(table.columns))))

    tables = [shuffled_columns(table) for table in database.tables]
    rng.shuffle(tables)
    return Database(database.name, tuple(tables))


def teacher_rows(rng: random.Random) -> Iterator[DemoRow]:
    """Endless correct rows of the training pairings, half of them with a shuffled schema."""
    for row in rows_of_split(held_out=False, rng=rng):
        if rng.random() < 0.5:
            row = row | {"input": schema_text(_shuffled(database_named(row["database"]), rng))}
        yield row


def encoded(tokenizer: PreTrainedTokenizerFast, rows: Iterator[DemoRow]) -> Iterator[TokenIds]:
    while True:
        yield from encode_rows(tokenizer, [next(rows) for _ in range(_ENCODED_AT_ONCE)])


def unpaired_texts(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Iterator[TokenIds]:
    """One field of a row each time, as plain text up to <|endoftext|>: every token but the first is supervised."""
    for row in rows_of_split(held_out=False, rng=rng):
        field = rng.choices(("instruction", "input", "output"), (0.45, 0.1, 0.45))[0]
        yield tokenizer(row[field] + tokenizer.pad_token)["input_ids"], 1


def train_teacher(
    tokenizer: PreTrainedTokenizerFast, name: str = "teacher", plan: TrainingPlan = TEACHER_PLAN
) -> Qwen2ForCausalLM:
    examples = encoded(tokenizer, teacher_rows(random.Random("teacher")))
    batches = batches_by_length(examples, plan.batch_rows)
    return train(new_teacher(tokenizer, name), batches, tokenizer.pad_token_id, plan)


def train_base_student(
    tokenizer: PreTrainedTokenizerFast, name: str = "student", plan: TrainingPlan = BASE_PLAN
) -> Qwen2ForCausalLM:
    examples = unpaired_texts(tokenizer, random.Random("base"))
    batches = batches_by_length(examples, plan.batch_rows)
    return train(new_student(tokenizer, name), batches, tokenizer.pad_token_id, plan)


def save_model(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights in fp16, configuration, tokenizer and chat template."""
    half = model.half()
    half.config.dtype = torch.float16
    half.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
