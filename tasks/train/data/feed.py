"""This rank's micro-batches, step after step, made ready in a thread while the step before is computed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from tasks.train.data.curriculum import Curriculum
from tasks.train.data.order import assign_micro_batches, mixed_batch_indices
from tasks.train.data.packing import MicroBatch, pack
from tasks.train.data.spool import ExampleStore

_AHEAD = 2


@dataclass(frozen=True)
class Step:
    """What a rank computes in one optimizer step; the numbers are those of the whole global batch.

    Where there are fewer rows than bins, `idle` micro-batches hold a row that must not count.
    """

    micro_batches: list[MicroBatch]
    idle: list[bool]
    supervised_tokens: int
    tokens: int


class BatchLoader:
    """`step(n)` gives step n; asking in order costs no time if making a step takes less than computing one."""

    def __init__(
        self,
        spool: ExampleStore,
        batch_rows: Sequence[int],
        micro_batches: int,
        seed: int,
        rank: int,
        ranks: int,
        curriculum: Curriculum | None = None,
    ):
        """`batch_rows`: of a global batch, from each part."""
        self.waited_s = 0.0
        self._spool = spool
        self._batch_rows = batch_rows
        self._sizes = [spool.rows_of(part) for part in range(len(batch_rows))]
        self._micro_batches = micro_batches
        self._seed = seed
        self._rank, self._ranks = rank, ranks
        self._curriculum = curriculum
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ready: dict[int, Future[Step]] = {}

    def rows(self, step: int) -> list[int]:
        """Places of the global batch's rows; steps count from 1."""
        if self._curriculum and step <= self._curriculum.steps:
            return self._curriculum.rows(step - 1, self._batch_rows)
        return mixed_batch_indices(self._sizes, self._batch_rows, step - 1, self._seed)

    def step(self, step: int) -> Step:
        for number in range(step, step + 1 + _AHEAD):
            if number not in self._ready:
                self._ready[number] = self._pool.submit(self._made, number)
        started = time.monotonic()
        made = self._ready.pop(step).result()
        self.waited_s += time.monotonic() - started
        return made

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _made(self, step: int) -> Step:
        places = self.rows(step)
        lengths = self._spool.lengths[places].tolist()
        mine = assign_micro_batches(lengths, self._rank, self._ranks, self._micro_batches)
        examples = [[self._spool[places[row]] for row in rows or [0]] for rows in mine]
        supervised = sum(self._spool.supervised_of(place) for place in places)
        return Step([pack(rows) for rows in examples], [not rows for rows in mine], supervised, sum(lengths))


@contextmanager
def feeding(*arguments: Any) -> Iterator[BatchLoader]:
    """A feed whose thread ends with the `with`."""
    feed = BatchLoader(*arguments)
    try:
        yield feed
    finally:
        feed.close()


def moved(batch: MicroBatch, device: Any) -> MicroBatch:
    """The micro-batch on a device."""
    return replace(batch, **{field.name: _moved(getattr(batch, field.name), device) for field in fields(batch)})


def _moved(value: Any, device: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return [_moved(one, device) for one in value] if isinstance(value, list) else value
