"""vLLM and transformers answer alike, and samples are the same from run to run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from infra.processes.vllm_environment import vllm_environment
from tasks.engines.generation import Ends, Generator, Prompt, Sampling, TransformersGenerator, vllm_generator
from tasks.evaluate.heldout.scoring import load_model
from tasks.models import load_tokenizer, resolve
from tasks.seeds.formats import parse
from tasks.tokens.rows import TokenisedRow, tokenise

MAX_NEW = 32
SAMPLING = Sampling(n=3, temperature=1.0, top_p=1.0, seed=5)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(resolve("demo", "student"))


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[Prompt]:
    from tasks.shipped import DEMO

    rows = parse("heldout.jsonl", (DEMO / "heldout.jsonl").read_bytes(), response_required=True)[:24]
    tokenised = [tokenise(row, tokenizer, 384) for row in rows]
    return [Prompt(t.row_id, t.ids[: t.response_start]) for t in tokenised if isinstance(t, TokenisedRow)]


@pytest.fixture(scope="module")
def vllm(tokenizer: Any) -> Iterator[Generator]:
    os.environ |= vllm_environment()
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    teacher = resolve("demo", "teacher")
    generator = vllm_generator(teacher, Ends.of(teacher, tokenizer), 320 + MAX_NEW, MAX_NEW, "auto", 1, 0.9)
    yield generator
    generator.close()
    left = [process for process in psutil.Process().children(recursive=True) if process.pid not in before]
    assert not [process for process in left if "EngineCor" in process.name()], "the engine outlives its closing"


@pytest.fixture(scope="module")
def reference(tokenizer: Any) -> Generator:
    teacher = resolve("demo", "teacher")
    return TransformersGenerator(load_model(teacher), Ends.of(teacher, tokenizer), MAX_NEW, batch_rows=8)


def test_greedy_answers_are_those_of_the_reference(
    vllm: Generator, reference: Generator, prompts: list[Prompt]
) -> None:
    ours, theirs = (list(engine.answers(prompts, None)) for engine in (vllm, reference))
    assert ours == theirs
    assert len({answer.text for [answer] in ours}) > 12  # and they are answers, not one text for all
    assert any(not answer.truncated for [answer] in ours)


def test_samples_differ_among_themselves_but_not_from_run_to_run_or_with_the_company_they_are_in(
    vllm: Generator, prompts: list[Prompt]
) -> None:
    first = list(vllm.answers(prompts, SAMPLING))
    again = list(vllm.answers(prompts[::-1], SAMPLING))[::-1]
    assert first == again
    assert all(len(answers) == 3 for answers in first)
    assert any(len({answer.text for answer in answers}) > 1 for answers in first)


def test_the_reference_samples_as_often_as_asked(reference: Generator, prompts: list[Prompt]) -> None:
    sampled = list(reference.answers(prompts[:4], SAMPLING))
    assert [len(answers) for answers in sampled] == [3] * 4
    assert sampled == list(reference.answers(prompts[:4], SAMPLING))
    assert any(len({answer.text for answer in answers}) > 1 for answers in sampled)
