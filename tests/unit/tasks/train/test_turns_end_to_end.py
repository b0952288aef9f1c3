"""A conversation through all that supervises it: SFT, the teacher's store and KD mean the same tokens.

And training on it is training on each of its answers as a row of its own.
"""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from infra.store.artifacts import ArtifactRef, Workspace
from tasks.engines.scoring import TransformersEngine
from tasks.logits.scorer import score_shards
from tasks.logits.settings import Scoring
from tasks.logits.shards import plan
from tasks.logits.store.reader import SHARDS, TOKENIZER, TopKReader, write_tokenizer
from tasks.models import ModelSource, load_tokenizer, resolve
from tasks.rows import KEPT, Message, Role, Row, Turns, holds_conversations, to_parquet
from tasks.tokens.rows import TokenisedRow, tokenise
from tasks.tokens.scored import ScoredRow
from tasks.tokens.spans import unsupervised_note
from tasks.train.data.examples import Examples
from tasks.train.data.order import Example
from tasks.train.data.packing import MicroBatch, pack, use_packed_attention
from tasks.train.data.spool import ExampleStore, write_spool
from tasks.train.model.losses import DistillationLoss
from tasks.train.model.student import SupervisedLoss
from tasks.train.settings import Distillation
from tests.support.memory_store import MemoryStore
from tests.support.stages import scoring_workspace
from tests.support.templates import FAMILIES, source_of

K = 10
SCORING = Scoring(engine="transformers", max_length=256)
PAIRS = (
    ("Count all books\n\nbooks(id, title)", "SELECT COUNT(*) FROM books"),
    ("And their titles", "SELECT title FROM books ORDER BY title"),
    ("Only the first", "SELECT title FROM books ORDER BY title LIMIT 1"),
)


def _row(pairs: Any) -> Row:
    roles: tuple[Role, Role] = ("user", "assistant")
    said = [Message(role=role, content=text) for pair in pairs[:-1] for role, text in zip(roles, pair, strict=True)]
    return Row(instruction=pairs[-1][0], response=pairs[-1][1], history=tuple(said))


WHOLE = _row(PAIRS)
APART = [_row(PAIRS[: turn + 1]) for turn in range(3)]
OTHER = Row(instruction="Say it", response="5")


class _Made(NamedTuple):
    sft: dict[str, Example]
    kd: dict[str, Example]
    scored: dict[str, ScoredRow]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine(resolve("demo", "teacher").fetch())


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    return MemoryStore().replace(monkeypatch)


def _kept(rows: list[Row]) -> ArtifactRef:
    work = Workspace("augment", 1, {"rows": [row.id for row in rows]}, {})
    work.put(f"{KEPT}00000.parquet", to_parquet(rows))
    return work.publish((KEPT,), {"rows": len(rows)}, {})


def _made(rows: list[Row], turns: Turns, engine: TransformersEngine) -> _Made:
    """The examples of both trainings and the store, as the stages' programs make them."""
    kept, student = _kept(rows), resolve("demo", "student")
    sft = {example.row_id: example for example in Examples(kept, student, 256, None, turns)}
    store = _store(kept, rows, turns, engine)
    kd = {example.row_id: example for example in Examples(store, student, 256, Distillation())}
    return _Made(sft, kd, {scored.row_id: scored for scored in TopKReader(store)})


def _store(
    kept: ArtifactRef, rows: list[Row], turns: Turns, engine: TransformersEngine, teacher: ModelSource | None = None
) -> ArtifactRef:
    teacher = teacher or resolve("demo", "teacher")
    tokenizer = load_tokenizer(teacher)
    tokenised = [one for row in rows if isinstance(one := tokenise(row, tokenizer, 256, turns), TokenisedRow)]
    work = scoring_workspace(kept, teacher, K, SCORING, turns)
    score_shards(engine, plan(tokenised, SCORING.tokens_per_shard), work, K, SCORING.max_error, lambda *_: None)
    write_tokenizer(work, teacher)
    return work.publish((SHARDS, TOKENIZER), {"rows": len(tokenised)}, {})


def test_sft_the_store_and_kd_supervise_the_same_tokens_all_answers_of_three_turns(
    bucket: MemoryStore, engine: TransformersEngine, tmp_path: Any
) -> None:
    made = _made([WHOLE, OTHER], "all", engine)
    tokenizer = load_tokenizer(resolve("demo", "student"))
    sft, kd, scored = made.sft[WHOLE.id], made.kd[WHOLE.id], made.scored[WHOLE.id]
    assert list(sft.ids) == list(kd.ids) == list(scored.ids)
    assert sft.spans == kd.spans == scored.spans
    answers = [tokenizer.decode(sft.ids[span.start : span.stop]) for span in sft.spans]
    assert answers == [f"{answer}<|im_end|>" for _question, answer in PAIRS]
    assert kd.teacher_ids_RK is not None
    assert kd.teacher_ids_RK.shape == scored.topk_ids_RK.shape == (sft.supervised_tokens, K)
    np.testing.assert_array_equal(kd.teacher_ids_RK, scored.topk_ids_RK)

    batches = []
    for name in ("sft", "kd"):
        in_one_order = sorted(getattr(made, name).values(), key=lambda example: str(example.row_id))
        write_spool(tmp_path / name, in_one_order)
        spool = ExampleStore(tmp_path / name)
        assert spool.supervised_tokens == sum(example.supervised_tokens for example in spool)
        batches.append(pack(list(spool)))
    for one, other in itertools.pairwise(batches):
        assert torch.equal(one.positions_N, other.positions_N)
        assert torch.equal(one.labels_N, other.labels_N)
        assert torch.equal(one.input_ids_1T[0, one.positions_N + 1], one.labels_N)


def test_it_is_training_on_each_answer_as_a_row_of_its_own(bucket: MemoryStore, engine: TransformersEngine) -> None:
    whole, apart = _made([WHOLE], "all", engine), _made(APART, "last", engine)
    one, three = pack([whole.kd[WHOLE.id]]), pack([apart.kd[row.id] for row in APART])
    assert torch.equal(one.labels_N, three.labels_N)
    assert len(one.input_ids_1T[0]) < len(three.input_ids_1T[0]) / 1.5
    assert one.teacher_ids_NK is not None
    assert one.teacher_logprobs_NK is not None
    assert three.teacher_ids_NK is not None
    assert three.teacher_logprobs_NK is not None
    assert torch.equal(one.teacher_ids_NK, three.teacher_ids_NK)
    torch.testing.assert_close(one.teacher_logprobs_NK, three.teacher_logprobs_NK, atol=1 / 64, rtol=0)  # on its grid

    model = AutoModelForCausalLM.from_pretrained(resolve("demo", "student").fetch(), dtype=torch.float32)
    use_packed_attention(model)
    with torch.no_grad():
        ours_NV, theirs_NV = (_logits(model, batch) for batch in (one, three))
    torch.testing.assert_close(ours_NV, theirs_NV, atol=1e-5, rtol=1e-5)
    one = replace(one, teacher_logprobs_NK=three.teacher_logprobs_NK)
    for loss in (None, DistillationLoss()):
        module = SupervisedLoss(model, loss)
        ours, theirs = (_gradients(module, batch) for batch in (one, three))
        for name, gradient in ours.items():
            assert float((gradient - theirs[name]).norm() / theirs[name].norm().clamp_min(1e-6)) < 1e-4, name


def test_the_last_answer_alone_is_the_row_of_before(bucket: MemoryStore, engine: TransformersEngine) -> None:
    last = _made([WHOLE, OTHER], "last", engine)
    assert all(example.earlier == () for table in (last.sft, last.kd) for example in table.values())
    everything = _made([WHOLE, OTHER], "all", engine)
    assert last.sft[OTHER.id].spans == everything.sft[OTHER.id].spans
    tail = slice(-last.scored[WHOLE.id].supervised_tokens, None)
    np.testing.assert_array_equal(last.scored[WHOLE.id].topk_ids_RK, everything.scored[WHOLE.id].topk_ids_RK[tail])


@pytest.mark.parametrize("counts", [{}, {"conversations": 1}])
def test_rows_of_before_are_looked_at_for_conversations(bucket: MemoryStore, counts: dict[str, int]) -> None:
    for rows, held in (([OTHER, WHOLE], True), ([OTHER], False)):
        work = Workspace("augment", 1, {"rows": len(rows)}, {})
        assert not holds_conversations(ArtifactRef.missing(work))
        work.put(f"{KEPT}00000.parquet", to_parquet(rows))
        told = {name: number * held for name, number in counts.items()}
        assert holds_conversations(work.publish((KEPT,), {"rows": len(rows), **told}, {})) == held


def test_answers_that_cannot_be_supervised_are_counted_and_told(
    bucket: MemoryStore, engine: TransformersEngine, tmp_path: Path
) -> None:
    """A teacher whose earlier answers have no thoughts scores the last one; a student of other tokens learns that."""
    rows = [WHOLE, OTHER]
    kept, thoughtful = _kept(rows), _with_thoughts(resolve("demo", "teacher"), tmp_path / "teacher")
    sft = Examples(kept, thoughtful, 256, None, "all")
    assert [example.earlier for example in sft] == [(), ()]
    words = "; not supervised are 2 earlier answers that the chat template renders differently before another turn"
    assert unsupervised_note(sft.facts()) == words

    student = source_of(FAMILIES["llama3"], tmp_path / "student")
    anyhow = Distillation(min_alignment=0.0)
    of_all = Examples(_store(kept, rows, "all", engine), student, 512, anyhow)
    for example in of_all:
        assert example.teacher_logprobs_RK is not None
        assert len(example.earlier) == (2 if example.row_id == WHOLE.id else 0)
        for _span, part in example.parts():
            assert np.isfinite(example.teacher_logprobs_RK[part][-1]).any()  # each ends its turn as the teacher's does
    assert unsupervised_note(of_all.facts()) == ""
    of_last = Examples(_store(kept, rows, "all", engine, thoughtful), student, 512, anyhow)
    assert [example.earlier for example in of_last] == [(), ()]
    assert unsupervised_note(of_last.facts()) == "; not supervised are 2 earlier answers that the teacher did not score"


def _with_thoughts(source: ModelSource, folder: Path) -> ModelSource:
    """The model with the template of a family that drops earlier thoughts."""
    shutil.copytree(str(source.path), folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": FAMILIES["qwen3"].template}))
    return ModelSource(name="thoughtful", path=str(folder))


def _logits(model: Any, batch: MicroBatch) -> torch.Tensor:
    found = model(input_ids=batch.input_ids_1T, position_ids=batch.position_ids_1T, rows=batch.rows, use_cache=False)
    logits_NV: torch.Tensor = found.logits[0, batch.positions_N]
    return logits_NV


def _gradients(module: SupervisedLoss, batch: MicroBatch) -> dict[str, torch.Tensor]:
    module.zero_grad()
    module(*batch.inputs).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
