"""A student with a tokenizer of its own: its rows, the teacher's distributions, and a refusal where too few move."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from infra.errors import ConfigurationError
from infra.store.artifacts import ArtifactRef
from tasks.engines.scoring import TransformersEngine
from tasks.logits.scorer import score_shards
from tasks.logits.settings import Scoring
from tasks.logits.shards import plan
from tasks.logits.store.reader import SHARDS, TOKENIZER, TopKReader, write_tokenizer
from tasks.models import ModelSource, load_tokenizer, resolve
from tasks.rows import KEPT, read_rows
from tasks.tokens.rows import TokenisedRow, tokenise
from tasks.train.data.examples import Examples
from tasks.train.settings import Distillation
from tests.support.stages import scoring_workspace

K = 10


@pytest.fixture(scope="module")
def store(rows: ArtifactRef) -> ArtifactRef:
    teacher, scoring = resolve("demo", "teacher"), Scoring(engine="transformers", max_length=256, tokens_per_shard=5000)
    tokenizer = load_tokenizer(teacher)
    tokenised = [tokenise(row, tokenizer, 256) for row in read_rows(rows, KEPT)]
    work = scoring_workspace(rows, teacher, K, scoring)
    shards = plan([row for row in tokenised if isinstance(row, TokenisedRow)], scoring.tokens_per_shard)[:2]
    heard: list[tuple[int, int]] = []
    engine = TransformersEngine(teacher.fetch())
    tokens = score_shards(engine, shards, work, K, scoring.max_error, lambda *counts: heard.append(counts))
    assert heard[-1] == (tokens, sum(shard.supervised_tokens for shard in shards))
    write_tokenizer(work, teacher)
    return work.publish((SHARDS, TOKENIZER), {"rows": len(tokenised)}, {})


@pytest.fixture
def student(tmp_path: Path) -> ModelSource:
    """The demo student with a tokenizer trained on something else, and another chat template."""
    folder = tmp_path / "student"
    shutil.copytree(str(resolve("demo", "student").path), folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["SELECT name FROM books WHERE id = 1", "the number of books"] * 5, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return ModelSource(name="other", path=str(folder))


def test_the_students_own_rows_get_the_teachers_distributions(store: ArtifactRef, student: ModelSource) -> None:
    stream, tokenizer = Examples(store, student, 512, Distillation(min_alignment=0.1)), load_tokenizer(student)
    examples, facts = list(stream), stream.facts()
    assert facts["alignment"]["rows_with_other_text"] == 0
    assert 0.1 < facts["alignment"]["positions"] < 1
    assert facts["skipped"]["not scored by the teacher"] > 0
    scored = {row.row_id: row for row in TopKReader(store)}
    assert {example.row_id for example in examples} == set(scored)
    right = moved = 0
    for example in examples:
        assert tokenizer.decode(example.ids).startswith("[user] ")
        assert example.teacher_ids_RK is not None
        assert example.teacher_logprobs_RK is not None
        labels = np.array(example.ids[example.response_start :])
        has_teacher = np.isfinite(example.teacher_logprobs_RK).any(axis=1)
        best = example.teacher_logprobs_RK.argmax(axis=1)
        predicted = example.teacher_ids_RK[np.arange(len(labels)), best]
        right += int((predicted == labels)[has_teacher].sum())
        moved += int(has_teacher.sum())
    assert right / moved > 0.5  # a demo teacher that knows its rows; shifted by one it would know none


def test_too_little_alignment_is_refused(store: ArtifactRef, student: ModelSource) -> None:
    stream = Examples(store, student, 512, Distillation(min_alignment=0.99))
    assert list(stream)
    with pytest.raises(ConfigurationError, match="cut these rows too differently.*`kd.min_alignment` asks for 99%"):
        stream.facts()


def test_with_one_tokenizer_the_scored_ids_are_trained_on(store: ArtifactRef) -> None:
    stream = Examples(store, resolve("demo", "student"), 512, Distillation())
    examples = list(stream)
    assert "alignment" not in stream.facts()
    scored = {row.row_id: row for row in TopKReader(store)}
    for example in examples:
        assert list(example.ids) == list(scored[example.row_id].ids)
        np.testing.assert_array_equal(example.teacher_ids_RK, scored[example.row_id].topk_ids_RK)
