"""Training examples out of artifacts: tokenised rows for SFT, the teacher's scored token ids for KD."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra import settings
from infra.errors import ConfigurationError
from infra.files import scratch
from infra.store.artifacts import ArtifactRef
from tasks.logits.store.reader import TopKReader
from tasks.models import ModelSource, load_tokenizer
from tasks.rows import KEPT, Row, Turns, read_rows
from tasks.tokens.alignment import (
    Alignment,
    check_same_template,
    known_tokens,
    remap,
    scored_answers,
    vocabulary_of,
)
from tasks.tokens.rows import Skipped, TokenisedRow, tokenise, tokenizer_digests
from tasks.tokens.scored import ScoredRow
from tasks.tokens.spans import NOT_SCORED, REWRITTEN, unsupervised_fact
from tasks.tokens.written import is_written, read_written
from tasks.train.data.order import Example
from tasks.train.settings import Distillation


class Examples:
    """A stream of examples in the order of `data`; afterwards, facts about them.

    With `kd`, `data` is a top-K store. Where teacher and student share a tokenizer, each example carries the ids
    that were scored: rows are never tokenised twice, so a template cannot differ between scoring and training.
    Where they do not, the student's own ids get the teacher's distributions as far as both cut the text alike.
    Which answers are supervised, `turns` says for rows, and a store for itself. Of a store, `only` the rows of that
    artifact are examples, where it is given, and of each token its `k` likeliest alternatives. What a student wrote is
    no example to repeat: of a store of such answers the divergence alone is learned from (`kd_weight` 1), and one that
    lacks an answer is refused.
    """

    def __init__(
        self,
        data: ArtifactRef,
        student: ModelSource,
        max_length: int,
        kd: Distillation | None,
        turns: Turns = "last",
        only: ArtifactRef | None = None,
        k: int | None = None,
    ):
        self._data = data
        self._student = student
        self._max_length = max_length
        self._kd = kd
        self._turns = turns
        self._only = only
        self._skipped: Counter[str] = Counter()
        self._unsupervised: Counter[str] = Counter()
        self._alignment: Alignment | None = None
        self._wanted_k = k
        self.k: int | None = None
        self.teacher = ""

    def __iter__(self) -> Iterator[Example]:
        if self._kd is None:
            return self._for_fine_tuning()
        reader = TopKReader(self._data, self._wanted_k)
        self.k, self.teacher, self._turns = reader.k, reader.teacher, reader.turns
        if reader.tokenizer_digest["vocabulary"] == tokenizer_digests(self._student)["vocabulary"]:
            check_same_template(reader.tokenizer_digest, self._student)
            return self._with_scored_ids(reader)
        if is_written(reader.rows):
            raise ConfigurationError(f"{reader.rows.uri} was written by a student with another tokenizer")
        self._alignment = Alignment(reader.vocabulary(), vocabulary_of(self._student))
        return self._with_own_ids(reader, self._alignment)

    def facts(self) -> dict[str, Any]:
        """How many rows were skipped, and answers left out, for what; with two tokenizers, how much moved.

        Raises ConfigurationError where that is less than `kd.min_alignment`.
        """
        facts: dict[str, Any] = {"skipped": self._skipped, **unsupervised_fact(self._unsupervised)}
        if self.k is not None:
            facts["k"] = self.k
        if self._alignment is not None and self._kd is not None:
            self._alignment.check(self._kd.min_alignment)
            facts["alignment"] = self._alignment.summary()
        return facts

    def _for_fine_tuning(self) -> Iterator[Example]:
        tokenizer = load_tokenizer(self._student)
        for row in read_rows(self._data, KEPT):
            tokenised = self._tokenised(row, tokenizer)
            if tokenised is not None:
                self._unsupervised[REWRITTEN] += tokenised.unsupervised
                yield Example(tokenised.row_id, tokenised.ids, tokenised.response_start, earlier=tokenised.earlier)

    def _wanted(self, reader: TopKReader) -> Iterable[ScoredRow]:
        """The scored rows to train on; of the ids, 64 bits each are in memory."""
        if is_written(reader.rows):
            return self._all_written(reader)
        if self._only is None:
            return reader
        keys = np.array([_key(row.id) for row in read_rows(self._only, KEPT)], np.uint64)
        keys.sort()
        return (scored for scored in reader if _is_among(keys, scored.row_id))

    def _all_written(self, reader: TopKReader) -> Iterator[ScoredRow]:
        """Every answer of a student, but as many as the teacher's record says that it could not score."""
        keys = np.array([_key(written.tokens.row_id) for written in read_written(reader.rows)], np.uint64)
        keys.sort()
        scored_of = np.zeros(len(keys), bool)
        for scored in reader:
            if not _is_among(keys, scored.row_id):
                raise ConfigurationError(f"row {scored.row_id} was scored, and {reader.rows.uri} has no such answer")
            scored_of[np.searchsorted(keys, _key(scored.row_id))] = True
            yield scored
        missing = keys[~scored_of]
        if len(missing) > reader.skipped:
            more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
            raise ConfigurationError(
                f"the teacher's scores lack answer {int(missing[0]):016x}…{more} of {reader.rows.uri}: delete the "
                f"record.json of {self._data.uri} and run again, they are scored anew"
            )
        if len(missing):
            self._skipped["not scored by the teacher"] += len(missing)

    def _with_scored_ids(self, reader: TopKReader) -> Iterator[Example]:
        size = self._student.config()["vocab_size"]
        known = known_tokens(vocabulary_of(self._student), size)
        kd_weight = 1.0 if is_written(reader.rows) else None
        for scored in self._wanted(reader):
            if len(scored.ids) > self._max_length:
                self._skipped[f"longer than {self._max_length} tokens"] += 1
                continue
            teacher = remap(scored.topk_ids_RK, scored.logprobs_RK, known)
            yield Example(
                scored.row_id, scored.ids, scored.response_start, *teacher, scored.earlier, kd_weight=kd_weight
            )

    def _with_own_ids(self, reader: TopKReader, alignment: Alignment) -> Iterator[Example]:
        tokenizer = load_tokenizer(self._student)
        with _by_id(read_rows(self._only or reader.rows, KEPT)) as texts:
            not_scored = len(texts)
            for scored in self._wanted(reader):
                not_scored -= 1
                tokenised = self._tokenised(texts[scored.row_id], tokenizer)
                if tokenised is not None:
                    own = scored_answers(tokenised, scored)
                    self._unsupervised[REWRITTEN] += tokenised.unsupervised
                    self._unsupervised[NOT_SCORED] += len(tokenised.earlier) - len(own.earlier)
                    teacher = alignment.move(scored, own)
                    yield Example(own.row_id, own.ids, own.response_start, *teacher, own.earlier)
        if not_scored:
            self._skipped["not scored by the teacher"] += not_scored

    def _tokenised(self, row: Row, tokenizer: Any) -> TokenisedRow | None:
        tokenised = tokenise(row, tokenizer, self._max_length, self._turns)
        if isinstance(tokenised, Skipped):
            self._skipped[tokenised.reason] += 1
            return None
        return tokenised


class Mixture:
    """Examples of several stores, those of one after those of the other, with `kd_weight` where theirs is not 1.

    Raises ConfigurationError where the stores do not go together, or one of them has no example.
    """

    def __init__(self, parts: Sequence[Examples], kd_weight: float):
        self._parts, self._kd_weight = parts, kd_weight

    def __iter__(self) -> Iterator[Example]:
        first = self._parts[0]
        for number, part in enumerate(self._parts):
            found = 0
            for example in part:
                found += 1
                yield replace(example, part=number, kd_weight=example.kd_weight or self._kd_weight)
            if (part.k, part.teacher) != (first.k, first.teacher):
                raise ConfigurationError("the stores to train on are of two teachers, or two k: score both alike")
            if not found:
                skipped = dict(part.facts()["skipped"])
                raise ConfigurationError(f"no row of store {number + 1} is usable for training: {skipped}")

    def facts(self) -> dict[str, Any]:
        """Those of the first store, with what was skipped in all of them."""
        each = [part.facts() for part in self._parts]
        return {**each[0], "skipped": sum((facts["skipped"] for facts in each), Counter())}


def _key(row_id: str) -> np.uint64:
    """The first 64 bits of a row's id."""
    return np.uint64(int(row_id[:16], 16))


def _is_among(keys: NDArray[np.uint64], row_id: str) -> bool:
    place = int(np.searchsorted(keys, key := _key(row_id)))
    return place < len(keys) and bool(keys[place] == key)


class _Texts:
    """Rows by their id, in a file: memory stays flat however many there are."""

    def __init__(self, path: Path, rows: Iterable[Row]):
        self._database = sqlite3.connect(path)
        self._database.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; CREATE TABLE rows (id TEXT PRIMARY KEY, row TEXT);"
        )
        self._database.executemany(
            "INSERT OR IGNORE INTO rows VALUES (?, ?)", ((row.id, row.model_dump_json()) for row in rows)
        )

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM rows").fetchone()[0])

    def __getitem__(self, row_id: str) -> Row:
        (row,) = self._database.execute("SELECT row FROM rows WHERE id = ?", (row_id,)).fetchone()
        return Row.model_validate_json(row)

    def close(self) -> None:
        self._database.close()


@contextlib.contextmanager
def _by_id(rows: Iterable[Row]) -> Iterator[_Texts]:
    with (
        scratch(settings.work_dir(), "texts") as folder,
        contextlib.closing(_Texts(folder / "rows.sqlite", rows)) as texts,
    ):
        yield texts
