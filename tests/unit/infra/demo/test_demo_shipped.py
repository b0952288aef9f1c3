"""The files that the demo ships are what the code makes."""

import json
import random
from itertools import islice
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tasks.demo.build_data import DATA, HELD_OUT_ROWS, SEED_ROWS, DemoRow, rows_of_split, write_data
from tasks.demo.tokenizer import MAX_TOKENS, prompt_text, train_tokenizer
from tasks.demo.training import IGNORED, collate, encode_rows


def shipped_rows(name: str) -> list[DemoRow]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def test_shipped_data_is_what_the_build_writes(tmp_path: Path) -> None:
    write_data(tmp_path)
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert len(written) == 8
    for path in written:
        assert (tmp_path / path).read_bytes() == (DATA / path).read_bytes(), f"rebuild the demo: {path} differs"


def test_shipped_splits_share_no_request() -> None:
    seeds, held_out = shipped_rows("seeds.jsonl"), shipped_rows("heldout.jsonl")
    assert (len(seeds), len(held_out)) == (SEED_ROWS, HELD_OUT_ROWS)
    keys = [{(row["instruction"], row["database"]) for row in rows} for rows in (seeds, held_out)]
    assert [len(part) for part in keys] == [SEED_ROWS, HELD_OUT_ROWS]
    assert not keys[0] & keys[1]


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerFast:
    return train_tokenizer()


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_shipped_tokenizer_is_the_trained_one_and_writes_the_pipelines_prompt(
    name: str, trained: PreTrainedTokenizerFast
) -> None:
    shipped = AutoTokenizer.from_pretrained(DATA / name)
    rows = list(islice(rows_of_split(held_out=True, rng=random.Random(0)), 200))
    assert encode_rows(shipped, rows) == encode_rows(trained, rows)
    assert max(len(ids) for ids, _ in encode_rows(shipped, rows)) <= 110 < MAX_TOKENS
    for row in rows[:20]:
        message = {"role": "user", "content": f"{row['instruction']}\n\n{row['input']}"}
        prompt = shipped.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        assert prompt == prompt_text(row["instruction"], row["input"])
    assert (shipped.eos_token, shipped.pad_token) == ("<|im_end|>", "<|endoftext|>")
    text = "Ünïcode 日本 don't 42\r\n\tend"
    assert shipped.decode(shipped(text)["input_ids"]) == text


def test_labels_are_the_response_and_its_end_token_only() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DATA / "student")
    row = shipped_rows("seeds.jsonl")[0]
    short = row | {"output": "SELECT 1"}
    _, labels_BT = collate(encode_rows(tokenizer, [row, short]), tokenizer.pad_token_id)
    for labels_T, expected in zip(labels_BT.tolist(), (row["output"], "SELECT 1"), strict=True):
        kept = [label for label in labels_T if label != IGNORED]
        assert tokenizer.decode(kept) == expected + "<|im_end|>"
