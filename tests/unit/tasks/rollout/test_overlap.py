"""Student beside teacher, by what their stores hold: against the numbers over the whole vocabulary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import ConfigurationError
from infra.stage import Made, Unseen
from infra.store.artifacts import ArtifactRef, Workspace, facts_of
from tasks.logits.store.reader import SHARDS, write_shard
from tasks.rollout.checks import STOPS, CheckRound, CompareRollouts, SetAside
from tasks.rollout.overlap import NUMBERS, Overlap, compared, pairs
from tasks.rollout.rails import no_gain, running_away, too_far_apart
from tasks.rollout.settings import Rounds
from tasks.rows import KEPT, Row, read_rows, to_parquet
from tasks.tokens.scored import ScoredRow
from tests.support.memory_store import MemoryStore
from tests.support.stages import made

V, PROMPT = 12, 3


def _logprobs(seed: int, tokens: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(tokens, V, generator=generator, dtype=torch.float64)).log_softmax(1)


def _scored(row_id: str, labels: list[int], logprobs_RV: torch.Tensor, k: int) -> ScoredRow:
    """A row as a model with these log-probs would be stored."""
    top = logprobs_RV.topk(k, dim=1)
    actual_R = logprobs_RV.gather(1, torch.tensor(labels)[:, None])[:, 0]
    ids = [1] * PROMPT + labels
    return ScoredRow(row_id, ids, PROMPT, actual_R.numpy(), top.indices.numpy(), top.values.numpy())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, V))
def test_what_both_kept_gives_no_more_than_the_whole_vocabulary_and_all_of_it_where_all_is_kept(
    seed: int, k: int
) -> None:
    p, q, labels = _logprobs(seed), _logprobs(seed + 1), [2, 3, 5, 7, 11, 0]
    found = compared(_scored("r", labels, p, k), _scored("r", labels, q, k))
    numbers = dict(zip(NUMBERS, found.T, strict=True))
    kl = (p.exp() * (p - q)).sum(1).numpy()
    entropy = -(q.exp() * q).sum(1).numpy()
    assert (numbers["kl"] <= kl + 1e-9).all()
    assert (numbers["entropy"] <= entropy + 1e-9).all()
    if k == V:
        assert numbers["kl"] == pytest.approx(kl, abs=1e-9)
        assert numbers["entropy"] == pytest.approx(entropy, abs=1e-9)
    assert numbers["agreement"].tolist() == (p.argmax(1) == q.argmax(1)).tolist()
    tops = [[set(row.tolist()) for row in one.topk(k, dim=1).indices] for one in (p, q)]
    assert numbers["shared"].tolist() == [len(a & b) / k for a, b in zip(*tops, strict=True)]
    gap = (q - p).gather(1, torch.tensor(labels)[:, None])[:, 0]
    assert numbers["own_kl"] == pytest.approx(gap.numpy())


def test_what_a_student_draws_estimates_its_distance_to_the_teacher() -> None:
    p, q = _logprobs(1, 1).expand(20_000, V), _logprobs(2, 1).expand(20_000, V)
    labels = torch.multinomial(q[0].exp(), 20_000, replacement=True, generator=torch.Generator().manual_seed(0))
    overlap = Overlap()
    overlap.add(_scored("r", labels.tolist(), p, 3), _scored("r", labels.tolist(), q, 3))
    assert overlap.summary()["own_kl"] == pytest.approx(float((q.exp() * (q - p)).sum(1)[0]), rel=0.03)


def test_numbers_are_by_position_in_the_answer_and_other_tokens_are_not_compared() -> None:
    p, q = _logprobs(3), _logprobs(3).clone()
    q[4:] = p[4:].flip(1)  # nothing but the last two tokens differ
    overlap = Overlap()
    overlap.add(_scored("r", [1] * 6, p, 5), _scored("r", [1] * 6, q, 5))
    overlap.add(_scored("s", [1] * 6, p, 5), _scored("s", [2] * 6, q, 5))
    by = overlap.summary()["by_position"]
    assert (overlap.rows, overlap.unlike, overlap.tokens) == (1, 1, 6)
    assert {name: of["tokens"] for name, of in by.items()} == {"0": 1, "1–3": 3, "4–15": 2}
    assert by["0"]["agreement"] == by["1–3"]["agreement"] == 1
    assert by["0"]["kl"] == 0 < by["4–15"]["kl"]
    assert by["4–15"]["agreement"] == 0


def test_rows_are_paired_in_order_whichever_the_two_lack() -> None:
    p = _logprobs(4)
    teacher = [_scored(name, [1] * 6, p, 2) for name in "acdf"]
    student = [_scored(name, [1] * 6, p, 2) for name in "abdef"]
    assert [(a.row_id, b.row_id) for a, b in pairs(teacher, student, in_order=True)] == [(x, x) for x in "adf"]
    mixed = [student[2], student[4], student[0]]
    assert [a.row_id for a, _b in pairs(teacher, mixed, in_order=False)] == ["a", "d", "f"]


def test_rounds_stop_by_their_thresholds_and_what_runs_away_is_told() -> None:
    assert too_far_apart(0.2, 0.2) is None
    assert "at 19.0% of the student's own tokens, less than 20%" in (too_far_apart(0.19, 0.2) or "")
    assert no_gain(1, 0.5, 0.49, 0.0) is None
    assert "from 0.5000 to 0.5000" in (no_gain(1, 0.5, 0.5, 0.0) or "")
    assert "not by more than 5.0% (rounds.least_gain)" in (no_gain(2, 0.5, 0.49, 0.05) or "")
    before = {"answer_tokens": 100.0, "entropy": 0.4}
    assert running_away(2, before, {"answer_tokens": 140.0, "entropy": 0.21}) == []
    longer, fewer = running_away(2, before, {"answer_tokens": 160.0, "entropy": 0.19})
    assert longer.startswith("the student's answers grew from 100 to 160 tokens by round 2")
    assert fewer.startswith("the student's entropy fell from 0.400 to 0.190")
    assert "shrank" in running_away(2, before, {"answer_tokens": 60.0, "entropy": 0.4})[0]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MemoryStore:
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path))
    return MemoryStore().replace(monkeypatch)


def _store(name: str, rows: list[ScoredRow], k: int = 5) -> ArtifactRef:
    work = Workspace("logits", 4, {"name": name, "k": k, "tokenizer": {}}, {})
    write_shard(work, f"{SHARDS}00000.topk", rows)
    return work.publish((SHARDS,), {"rows": len(rows)}, {})


def _rollouts(name: str, generated: int) -> ArtifactRef:
    counts = {"rows": 3, "rejected": 1, "generated_tokens": generated}
    facts = {"left_out": {"cut off at the longest answer": 1}}
    return Workspace("rollout", 1, {"name": name}, {}).publish((), counts, facts)


def test_a_first_round_is_stopped_by_the_answers_of_the_student_and_a_later_one_only_looked_at(
    bucket: MemoryStore,
) -> None:
    p, labels = _logprobs(5), [1] * 6
    teacher = _store("teacher", [_scored(name, labels, p, 5) for name in "abc"])
    near = _store("near", [_scored(name, labels, p, 5) for name in "abc"])
    far = _store("far", [_scored(name, labels, p.flip(1), 5) for name in "abc"])
    one = {"rounds": Rounds(rounds=2, least_agreement=0.2), "round": 1, "before": None}

    def stage(student: ArtifactRef, generated: int, **changed: object) -> CompareRollouts:
        rollouts = _rollouts(f"{student.fingerprint}{generated}", generated)
        return CompareRollouts(**{**one, "rollouts": rollouts, "teacher": teacher, "student": student, **changed})  # type: ignore[arg-type]

    good, bad = made(stage(near, 48)), made(stage(far, 48))
    assert (good.counts[STOPS], bad.counts[STOPS]) == (0, 1)
    assert good.counts["tokens"] == 18
    facts = facts_of(good)
    assert (facts["answer_tokens"], facts["cut_off"], facts["left_out"], facts["agreement"]) == (12, 0.25, 0.25, 1)
    assert facts_of(bad)["said"][0].startswith("no on-policy round: ")
    assert made(stage(far, 48, rounds=Rounds(least_agreement=0))).counts[STOPS] == 0
    later = stage(far, 96, before=good, round=2)
    found = made(later)
    assert found.counts[STOPS] == 0
    assert "grew from 12 to 24 tokens by round 2" in facts_of(found)["said"][0]
    assert "24 tokens" in later.show(Made(refs={"overlap_2": found}), Unseen())


def test_a_round_is_checked_against_the_one_before_on_the_rows_that_both_scored(bucket: MemoryStore) -> None:
    p, labels = _logprobs(6), [1] * 6
    teacher = _store("teacher", [_scored(name, labels, p, 12) for name in "abcdef"], 12)
    rounds = Rounds(rounds=2, validation_rows=2)

    def student(nearness: float) -> ArtifactRef:
        q = (nearness * p).log_softmax(1)
        return _store(f"student {nearness}", [_scored(name, labels, q, 12) for name in "bd"], 12)

    first = made(CheckRound(teacher=teacher, student=student(0.5), before=None, rounds=rounds, round=0))
    assert (first.counts["rows"], first.counts[STOPS]) == (2, 0)
    better = CheckRound(teacher=teacher, student=student(0.8), before=first, rounds=rounds, round=1)
    worse = CheckRound(teacher=teacher, student=student(0.4), before=first, rounds=rounds, round=1)
    assert (made(better).counts[STOPS], made(worse).counts[STOPS]) == (0, 1)
    much = better.model_copy(update={"rounds": Rounds(least_gain=0.99)})
    assert made(much).counts[STOPS] == 1
    assert "rounds end after round 1" in worse.show(Made(refs={"validation_1": made(worse)}), Unseen())
    strange = _store("strange", [replace(_scored("b", [2] * 6, p, 12))], 12)
    with pytest.raises(ConfigurationError, match="no row in the same tokens"):
        made(CheckRound(teacher=teacher, student=strange, before=None, rounds=rounds, round=0))


def test_rows_set_aside_are_decided_by_their_digests_and_none_is_lost(bucket: MemoryStore) -> None:
    rows = [Row(instruction=f"question {i}", response="r", task_category="c") for i in range(20)]
    work = Workspace("augment", 1, {}, {})
    for piece in (0, 1):
        work.put(f"{KEPT}{piece:05}.parquet", to_parquet(rows[10 * piece : 10 * piece + 10]))
    ref = work.publish((KEPT,), {"rows": 20}, {})

    def part(name: str, seed: int = 0, number: int = 6) -> list[str]:
        stage = SetAside(rows=ref, number=number, part=name, seed=seed)  # type: ignore[arg-type]
        return [row.id for row in read_rows(made(stage), KEPT)]

    trained, validation = part("trained"), part("validation")
    assert len(validation) == 6
    assert sorted(trained + validation) == sorted(row.id for row in rows)
    assert trained == [row.id for row in rows if row.id not in validation]
    assert set(part("validation", number=9)) > set(validation) != set(part("validation", seed=1))
    with pytest.raises(ConfigurationError, match="rounds.validation_rows=11 takes 11 of the 20 training rows"):
        part("validation", number=11)


def test_rows_of_one_seed_are_set_aside_together(bucket: MemoryStore) -> None:
    rows = [Row(instruction=f"q {i}", response="r", task_category="c", origin_seed=f"seed {i % 5}") for i in range(20)]
    work = Workspace("augment", 1, {}, {})
    work.put(f"{KEPT}00000.parquet", to_parquet(rows))
    ref = work.publish((KEPT,), {"rows": 20}, {})

    def seeds_of(part: str, number: int) -> list[str]:
        stage = SetAside(rows=ref, number=number, part=part, seed=0)  # type: ignore[arg-type]
        return sorted(row.origin_seed for row in read_rows(made(stage), KEPT))

    aside, trained = seeds_of("validation", 5), seeds_of("trained", 5)
    assert len(aside) == 8
    assert not set(aside) & set(trained)
    with pytest.raises(ConfigurationError, match=r"validation_rows=9 takes 12 of the 20 .* come of the same seeds"):
        seeds_of("validation", 9)
