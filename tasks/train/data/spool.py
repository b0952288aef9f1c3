"""Training examples in files of this machine, mapped into memory.

Rows are tokenised, and the teacher's scores decoded, once and in the order of the artifact; after that any row is
there at once in any order, and memory does not grow with the data. All ranks of a machine map the same files.
"""

from __future__ import annotations

import contextlib
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tasks.tokens.spans import Span
from tasks.train.data.order import Example

_INDEX = "index.npz"
_ID_BYTES = 64
_DTYPES = {"ids": np.int32, "teacher_ids": np.int32, "teacher_logprobs": np.float32}


def write_spool(folder: Path, examples: Iterable[Example]) -> None:
    """Write all examples, part after part; they have all a teacher, of one K, or none has."""
    folder.mkdir(parents=True, exist_ok=True)
    row_ids: list[bytes] = []
    ends, response_starts, earlier, earlier_ends, k = [0], [], array("i"), [0], 0
    parts, kd_weights, weights, difficulty = array("B"), array("f"), array("f"), array("f")
    with contextlib.ExitStack() as stack:
        ids, teacher_ids, teacher_logprobs = (stack.enter_context((folder / name).open("wb")) for name in _DTYPES)
        for example in examples:
            np.asarray(example.ids, dtype=np.int32).tofile(ids)
            if example.teacher_ids_RK is not None and example.teacher_logprobs_RK is not None:
                k = example.teacher_ids_RK.shape[1]
                example.teacher_ids_RK.astype(np.int32).tofile(teacher_ids)
                example.teacher_logprobs_RK.astype(np.float32).tofile(teacher_logprobs)
            row_ids.append(example.row_id.encode()[:_ID_BYTES])
            ends.append(ends[-1] + len(example.ids))
            response_starts.append(example.response_start)
            parts.append(example.part)
            for column, weight in ((kd_weights, example.kd_weight), (weights, example.weight)):
                column.append(math.nan if weight is None else weight)
            difficulty.append(example.difficulty)
            for span in example.earlier:
                earlier.extend(span)
            earlier_ends.append(earlier_ends[-1] + len(example.earlier))
    np.savez(
        folder / _INDEX,
        row_ids=np.array(row_ids, f"S{_ID_BYTES}"),
        ends=np.array(ends, np.int64),
        response_starts=np.array(response_starts, np.int32),
        earlier=np.array(earlier, np.int32).reshape(-1, len(Span._fields)),
        earlier_ends=np.array(earlier_ends, np.int64),
        k=np.array(k),
        parts=np.array(parts, np.uint8),
        kd_weights=np.array(kd_weights, np.float32),
        weights=np.array(weights, np.float32),
        difficulty=np.array(difficulty, np.float32),
    )


class ExampleStore(Sequence[Example]):
    """Examples by their place; their arrays are views of the files."""

    def __init__(self, folder: Path):
        with np.load(folder / _INDEX) as index:
            self._ends, self._response_starts = index["ends"], index["response_starts"]
            self._earlier, self._earlier_ends = index["earlier"], index["earlier_ends"]
            self._row_ids, self._k = index["row_ids"], int(index["k"])
            self._parts, self._kd_weights, self._weights = index["parts"], index["kd_weights"], index["weights"]
            self.difficulty: np.ndarray = index["difficulty"]
        self.lengths: np.ndarray = np.diff(self._ends)
        before = np.cumsum([0, *(self._earlier[:, 2] - self._earlier[:, 1])])[self._earlier_ends]
        self._supervised_ends = np.cumsum([0, *(self.lengths - self._response_starts)]) + before
        self._ids = _mapped(folder / "ids", (-1,))
        self._teacher_ids = _mapped(folder / "teacher_ids", (-1, self._k)) if self._k else None
        self._teacher_logprobs = _mapped(folder / "teacher_logprobs", (-1, self._k)) if self._k else None

    @property
    def supervised_tokens(self) -> int:
        """Of all rows."""
        return int(self._supervised_ends[-1])

    def rows_of(self, part: int) -> int:
        """How many examples are of a part; parts lie one after the other."""
        return int(np.count_nonzero(self._parts == part))

    def supervised_of(self, place: int) -> int:
        return int(self._supervised_ends[place + 1] - self._supervised_ends[place])

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Example]:
        return (self[place] for place in range(len(self)))

    def __getitem__(self, place: int) -> Example:  # type: ignore[override]
        supervised = slice(self._supervised_ends[place], self._supervised_ends[place + 1])
        earlier = self._earlier[self._earlier_ends[place] : self._earlier_ends[place + 1]]
        kd_weight, weight = float(self._kd_weights[place]), float(self._weights[place])
        return Example(
            self._row_ids[place].decode(),
            self._ids[self._ends[place] : self._ends[place + 1]],
            int(self._response_starts[place]),
            None if self._teacher_ids is None else self._teacher_ids[supervised],
            None if self._teacher_logprobs is None else self._teacher_logprobs[supervised],
            tuple(Span(*numbers) for numbers in earlier.tolist()),
            int(self._parts[place]),
            None if math.isnan(kd_weight) else kd_weight,
            None if math.isnan(weight) else weight,
            float(self.difficulty[place]),
        )


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    dtype = _DTYPES[path.name]
    if path.stat().st_size == 0:
        return np.empty(0, dtype).reshape(0, *shape[1:])
    return np.memmap(path, dtype=dtype, mode="r").reshape(shape)
