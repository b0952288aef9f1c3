"""Training on what the student wrote: the very ids, without cross-entropy, beside rows that it was given."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from infra.errors import ConfigurationError
from infra.processes.child import Reporter
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.logits import program
from tasks.logits.settings import Scoring
from tasks.logits.store.reader import SHARDS, TOKENIZER, TopKReader, read_shard, write_shard
from tasks.models import ModelSource, load_tokenizer, resolve
from tasks.rows import KEPT, Row, read_rows, to_parquet
from tasks.tokens.rows import TokenisedRow, tokenise, tokenizer_digests
from tasks.tokens.written import KIND, Written, read_written, written_parquet
from tasks.train.data.examples import Examples
from tasks.train.data.feed import feeding
from tasks.train.data.mixture import Mixture
from tasks.train.data.packing import MicroBatch, pack, use_packed_attention
from tasks.train.data.spool import ExampleStore, write_spool
from tasks.train.model.losses import DistillationLoss
from tasks.train.model.student import SupervisedLoss
from tasks.train.settings import Distillation
from tests.support.memory_store import MemoryStore
from tests.support.stages import scoring_workspace

STUDENT, TEACHER = resolve("demo", "student"), resolve("demo", "teacher")
SCORING = Scoring(engine="transformers", max_length=256, tokens_per_shard=128)
KD = Distillation(kd_weight=0.25, tail="bucket")
GIVEN = [Row(instruction=f"Count the {what}", response=f"SELECT COUNT(*) FROM {what}") for what in ("books", "loans")]
ASKED = [Row(instruction="List all titles", response="titles"), Row(instruction="Say it", response="5 loans")]


@pytest.fixture(autouse=True)
def bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    return MemoryStore().replace(monkeypatch)


def _letter_by_letter(row: Row) -> Written:
    """The response in tokens that the tokenizer would not cut it into, as a model may write it."""
    tokenizer = load_tokenizer(STUDENT)
    tokens = tokenise(row, tokenizer, 256)
    assert isinstance(tokens, TokenisedRow)
    letters = [token for letter in row.response for token in tokenizer.encode(letter, add_special_tokens=False)]
    ids = [*tokens.ids[: tokens.response_start], *letters, tokens.ids[-1]]
    assert ids != list(tokens.ids)
    return Written(row, TokenisedRow(f"{len(ids):016x}", ids, tokens.response_start))


WRITTEN = [_letter_by_letter(row) for row in ASKED]


def _rollout(tokenizer: dict[str, str] | None = None) -> ArtifactRef:
    work = Workspace(KIND, 1, {}, {})
    work.put(f"{KEPT}00000.parquet", written_parquet(WRITTEN, {"student": ["me"] * 2}))
    return work.publish((KEPT,), {"rows": len(WRITTEN)}, {"tokenizer": tokenizer or tokenizer_digests(STUDENT)})


def _given() -> ArtifactRef:
    work = Workspace("augment", 1, {}, {})
    work.put(f"{KEPT}00000.parquet", to_parquet(GIVEN))
    return work.publish((KEPT,), {"rows": len(GIVEN)}, {})


def _scored(rows: ArtifactRef, folder: Path, k: int = 4, teacher: ModelSource = TEACHER) -> ArtifactRef:
    """As the stage's program scores them."""
    work = scoring_workspace(rows, teacher, k, SCORING)
    spec = {
        "rows": rows.model_dump(),
        "teacher": teacher.model_dump(),
        "k": k,
        "scoring": SCORING.model_dump(),
        "turns": "last",
        "workspace": work.description(),
    }
    made = program.main(json.loads(json.dumps(spec)), Reporter(folder))
    return work.publish((SHARDS, TOKENIZER), made["counts"], made["facts"])


def _spooled(given: ArtifactRef, rollouts: ArtifactRef, folder: Path) -> ExampleStore:
    parts = [Examples(scores, STUDENT, 256, KD) for scores in (given, rollouts)]
    write_spool(folder, Mixture(parts, KD.kd_weight))
    return ExampleStore(folder)


def test_a_file_of_answers_is_one_of_rows_too() -> None:
    rollout = _rollout()
    assert list(read_written(rollout)) == WRITTEN
    assert list(read_rows(rollout, KEPT)) == ASKED


def test_the_ids_that_a_student_wrote_are_scored_and_trained_on_unchanged(tmp_path: Path) -> None:
    scores = _scored(_rollout(), tmp_path)
    wanted = {one.tokens.row_id: one.tokens for one in WRITTEN}
    assert {row.row_id: list(row.ids) for row in TopKReader(scores)} == {key: one.ids for key, one in wanted.items()}
    spool = _spooled(_scored(_given(), tmp_path), scores, tmp_path / "spool")
    assert [example.kd_weight for example in spool] == [0.25, 0.25, 1.0, 1.0]
    for example in list(spool)[2:]:
        tokens = wanted[example.row_id]
        assert (list(example.ids), example.response_start) == (tokens.ids, tokens.response_start)
    with feeding(spool, [1, 3], 1, 0, 0, 1) as feed:
        (batch,) = feed.step(1).micro_batches
    assert batch.kd_weight_N is not None
    labels = [id_ for one in wanted.values() for id_ in one.ids[one.response_start :]]
    assert set(batch.labels_N[batch.kd_weight_N == 1].tolist()) == set(labels)


def _gradients(module: SupervisedLoss, batch: MicroBatch) -> dict[str, torch.Tensor]:
    module.zero_grad()
    module(*batch.inputs).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_a_mixed_batch_has_the_gradients_of_both_losses_and_no_cross_entropy_on_what_the_student_wrote(
    tmp_path: Path,
) -> None:
    spool = _spooled(_scored(_given(), tmp_path), _scored(_rollout(), tmp_path), tmp_path / "spool")
    model: Any = AutoModelForCausalLM.from_pretrained(STUDENT.fetch(), dtype=torch.float32)
    use_packed_attention(model)
    loss = DistillationLoss(tail="bucket", kd_weight=KD.kd_weight)
    given, written = (pack([replace(e, kd_weight=None) for e in part]) for part in (list(spool)[:2], list(spool)[2:]))
    ours = _gradients(SupervisedLoss(model, loss), pack(list(spool)))
    on_given = _gradients(SupervisedLoss(model, loss), given)
    on_written = _gradients(SupervisedLoss(model, replace(loss, kd_weight=1.0)), written)
    for name, gradient in ours.items():
        wanted = on_given[name] + on_written[name]
        assert float((gradient - wanted).norm() / wanted.norm().clamp_min(1e-6)) < 1e-5, name
    with_cross_entropy = _gradients(SupervisedLoss(model, loss), written)
    assert any(float((on_written[name] - with_cross_entropy[name]).norm()) > 1e-3 for name in ours)


def test_a_store_of_answers_alone_is_learned_from_without_cross_entropy(tmp_path: Path) -> None:
    examples = list(Examples(_scored(_rollout(), tmp_path), STUDENT, 256, KD))
    assert [example.kd_weight for example in examples] == [1.0, 1.0]
    assert [example.kd_weight for example in Examples(_scored(_given(), tmp_path), STUDENT, 256, KD)] == [None, None]


def test_a_store_that_lacks_an_answer_is_refused_by_name(tmp_path: Path, bucket: MemoryStore) -> None:
    rollout = _rollout()
    whole = _scored(rollout, tmp_path)
    work = Workspace("logits", 9, scoring_workspace(rollout, TEACHER, 4, SCORING).spec, {"rows": rollout})
    rows = [row for name in bucket.keys(whole.uri) if name.startswith(SHARDS) for row in _rows(whole, name)]
    write_shard(work, f"{SHARDS}00000.topk", rows[1:])
    work.put(TOKENIZER, bucket.objects[whole.uri + TOKENIZER][0])
    scores = work.publish((SHARDS, TOKENIZER), {"rows": 1, "skipped": 0}, {})
    with pytest.raises(ConfigurationError, match=rf"lack row {rows[0].row_id}… of {rollout.uri}"):
        list(Examples(scores, STUDENT, 256, KD))


def _rows(ref: ArtifactRef, name: str) -> list[Any]:
    work = scoring_workspace(_rollout(), TEACHER, 4, SCORING)
    assert work.uri == ref.uri
    return list(read_shard(work, name)[1])


def test_stores_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    given, rollouts = _scored(_given(), tmp_path), _scored(_rollout(), tmp_path, k=3)
    with pytest.raises(ConfigurationError, match="two teachers, or two k"):
        _spooled(given, rollouts, tmp_path / "spool")


def test_a_teacher_with_another_tokenizer_does_not_score_a_students_answers(tmp_path: Path) -> None:
    other = {**tokenizer_digests(STUDENT), "vocabulary": "of another"}
    with pytest.raises(ConfigurationError, match="has another tokenizer than the student, whose answers"):
        _scored(_rollout(other), tmp_path)


def test_rows_of_one_store_have_no_weights_of_their_own(tmp_path: Path) -> None:
    """So that the loss is computed as it ever was, to the last bit."""
    write_spool(tmp_path / "spool", Examples(_scored(_given(), tmp_path), STUDENT, 256, KD))
    batch = pack(list(ExampleStore(tmp_path / "spool")))
    assert batch.kd_weight_N is None


def test_a_wrong_answer_counts_as_much_as_it_was_asked_to_and_every_other_row_once(tmp_path: Path) -> None:
    wrong = replace(WRITTEN[0], row=WRITTEN[0].row.model_copy(update={"verdicts": {"execution": "wrong"}}))
    work = Workspace(KIND, 1, {"of": "wrong"}, {})
    work.put(f"{KEPT}00000.parquet", written_parquet([wrong, WRITTEN[1]], {"student": ["me"] * 2}))
    rollout = work.publish((KEPT,), {"rows": 2}, {"tokenizer": tokenizer_digests(STUDENT)})
    kd = KD.model_copy(update={"wrong_weight": 3.0})
    parts = [Examples(scores, STUDENT, 256, kd) for scores in (_scored(_given(), tmp_path), _scored(rollout, tmp_path))]
    write_spool(tmp_path / "spool", Mixture(parts, kd.kd_weight))
    weights = {example.row_id: example.weight for example in ExampleStore(tmp_path / "spool")}
    assert weights.pop(wrong.tokens.row_id) == 3.0
    assert list(weights.values()) == [1.0] * 3
