"""Order, dealing and collation: every row once an epoch, on any number of ranks, labels predicted by one before."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.tokens.spans import Span
from tasks.train.data.feed import feeding
from tasks.train.data.order import (
    Example,
    assign_micro_batches,
    global_batch_indices,
    mixed_batch_indices,
    rows_of_parts,
    total_steps,
)
from tasks.train.data.packing import pack
from tasks.train.data.spool import ExampleStore, write_spool
from tasks.train.loop import rate_at
from tasks.train.settings import Training


def _examples(count: int, k: int | None = None) -> list[Example]:
    rng = np.random.default_rng(0)
    made = []
    for index in range(count):
        length = int(rng.integers(4, 12))
        start = int(rng.integers(1, length))
        ids = [int(i) for i in rng.integers(1, 50, length)]
        teacher = None
        if k:
            shape = (length - start, k)
            teacher = (rng.integers(0, 50, shape).astype(np.int32), -rng.random(shape).astype(np.float32))
        earlier: tuple[Span, ...] = () if index % 3 or start < 4 else (Span(1, 1, 2), Span(3, 2, 4))
        if k and earlier:
            shape = (length - start + 3, k)
            teacher = (rng.integers(0, 50, shape).astype(np.int32), -rng.random(shape).astype(np.float32))
        teacher_ids, teacher_logprobs = teacher or (None, None)
        made.append(Example(f"row{index}", ids, start, teacher_ids, teacher_logprobs, earlier))
    return made


@given(st.integers(1, 40), st.integers(1, 64), st.integers(0, 3))
def test_every_row_comes_once_an_epoch(examples: int, global_batch: int, seed: int) -> None:
    epochs = 3
    steps = -(-examples * epochs // global_batch)
    stream = [i for step in range(steps) for i in global_batch_indices(examples, global_batch, step, seed)]
    assert len(stream) == steps * global_batch
    for epoch in range(epochs):
        assert sorted(stream[epoch * examples : (epoch + 1) * examples]) == list(range(examples))


@given(st.integers(1, 64), st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any))
def test_every_batch_has_of_each_store_its_share_to_the_nearest_row(global_batch: int, weights: list[int]) -> None:
    shares = [weight / sum(weights) for weight in weights]
    rows = rows_of_parts(global_batch, shares)
    assert sum(rows) == global_batch
    assert all(abs(got - global_batch * share) < 1 for got, share in zip(rows, shares, strict=True))


def test_each_store_goes_through_epochs_of_its_own() -> None:
    steps = [mixed_batch_indices([10, 4, 6], [2, 4, 0], step, seed=3) for step in range(10)]
    assert all(
        len([i for i in step if i < 10]) == 2 and {i for i in step if i >= 10} == {10, 11, 12, 13} for step in steps
    )
    assert sorted(i for step in steps[:5] for i in step if i < 10) == list(range(10))
    alone = [global_batch_indices(10, 2, step, seed=3) for step in range(10)]
    assert [[i for i in step if i < 10] for step in steps] == alone  # the first store's order is as it ever was


def test_order_depends_on_the_seed_and_on_the_epoch() -> None:
    first = global_batch_indices(100, 100, 0, seed=0)
    assert first != global_batch_indices(100, 100, 1, seed=0)
    assert first != global_batch_indices(100, 100, 0, seed=1)
    assert first == global_batch_indices(100, 100, 0, seed=0)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=50), st.integers(1, 4), st.integers(1, 5))
def test_ranks_and_micro_batches_share_a_batch_without_loss_and_evenly(
    lengths: list[int], ranks: int, micro_batches: int
) -> None:
    dealt = [assign_micro_batches(lengths, rank, ranks, micro_batches) for rank in range(ranks)]
    assert all(len(micros) == micro_batches for micros in dealt)
    assert sorted(row for micros in dealt for micro in micros for row in micro) == list(range(len(lengths)))
    loads = [sum(lengths[row] for row in micro) for micros in dealt for micro in micros]
    assert max(loads) - min(loads) <= max(lengths)


def test_labels_are_the_response_tokens_and_positions_stand_one_before() -> None:
    batch = pack([Example("a", [11, 12, 13, 14], 2), Example("b", [21, 22, 23], 1)])
    assert batch.labels_N.tolist() == [13, 14, 22, 23]
    assert batch.input_ids_1T[0, batch.positions_N + 1].tolist() == batch.labels_N.tolist()
    assert batch.position_ids_1T.tolist() == [[0, 1, 2, 3, 0, 1, 2]]


def test_earlier_answers_have_labels_too() -> None:
    batch = pack([Example("a", [11, 12, 13, 14], 2), Example("b", list(range(21, 30)), 7, earlier=(Span(1, 2, 4),))])
    assert batch.labels_N.tolist() == [13, 14, 23, 24, 28, 29]
    assert batch.input_ids_1T[0, batch.positions_N + 1].tolist() == batch.labels_N.tolist()


def test_teacher_entries_stay_with_their_tokens() -> None:
    examples = _examples(5, k=3)
    batch = pack(examples)
    assert batch.teacher_ids_NK is not None
    assert batch.teacher_ids_NK.shape == (len(batch.labels_N), 3)
    row = 0
    for example in examples:
        assert example.teacher_ids_RK is not None
        end = row + example.supervised_tokens
        assert torch.equal(batch.teacher_ids_NK[row:end], torch.from_numpy(example.teacher_ids_RK).long())
        assert batch.labels_N[row:end].tolist() == [example.ids[place] for place in example.places_R]
        row = end


@pytest.mark.parametrize("k", [None, 3])
def test_spooled_examples_come_back_in_any_order(tmp_path: Path, k: int | None) -> None:
    examples = _examples(20, k)
    write_spool(tmp_path, iter(examples))
    spool = ExampleStore(tmp_path)
    assert len(spool) == 20
    assert spool.lengths.tolist() == [len(example.ids) for example in examples]
    assert spool.supervised_tokens == sum(example.supervised_tokens for example in examples)
    assert any(example.earlier for example in examples)
    for place in (19, *range(20)):
        one, other = spool[place], examples[place]
        assert (one.row_id, list(one.ids), one.spans) == (other.row_id, other.ids, other.spans)
        assert spool.supervised_of(place) == other.supervised_tokens
        if k:
            assert np.array_equal(np.asarray(one.teacher_ids_RK), np.asarray(other.teacher_ids_RK))
            assert np.array_equal(np.asarray(one.teacher_logprobs_RK), np.asarray(other.teacher_logprobs_RK))
        else:
            assert one.teacher_ids_RK is None


def test_the_feed_gives_the_same_steps_in_order_and_out_of_it(tmp_path: Path) -> None:
    write_spool(tmp_path, iter(_examples(30)))
    spool = ExampleStore(tmp_path)
    with feeding(spool, [8], 2, 0, 0, 1) as feed:
        in_order = [feed.step(step) for step in range(1, 6)]
    with feeding(spool, [8], 2, 0, 0, 1) as feed:  # a resumed run starts in the middle
        resumed = [feed.step(step) for step in (3, 4, 5)]
    for one, other in zip(in_order[2:], resumed, strict=True):
        assert one.supervised_tokens == other.supervised_tokens
        for mine, theirs in zip(one.micro_batches, other.micro_batches, strict=True):
            assert torch.equal(mine.input_ids_1T, theirs.input_ids_1T)


def test_ranks_without_rows_compute_something_that_does_not_count(tmp_path: Path) -> None:
    write_spool(tmp_path, iter(_examples(1)))
    with feeding(ExampleStore(tmp_path), [1], 1, 0, 1, 2) as feed:
        assert feed.step(1).idle == [True]


def test_steps_follow_epochs_unless_given() -> None:
    assert total_steps(100, 3.0, 32, None) == 9
    assert total_steps(3, 1.0, 32, None) == 1
    assert total_steps(100, 3.0, 32, 7) == 7


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 0.0), ("linear", 0.0), ("constant", 1.0)])
def test_the_rate_warms_up_to_its_peak_and_then_follows_its_schedule(schedule: str, last: float) -> None:
    training = Training(schedule=schedule, warmup_share=0.1)
    rates = [rate_at(step, 100, training) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[9] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(last, abs=1e-9)
