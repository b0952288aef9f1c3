"""Training examples out of artifacts: tokenised rows for SFT, the teacher's scored token ids for KD."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
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
from tasks.text.categories import TaskCategories, is_of
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
    artifact are examples, where it is given, and of each token its `k` likeliest alternatives. Of what a student wrote
    the divergence alone is learned (`kd_weight` 1): it is no example to repeat. A store of such answers, or of some
    task categories, that lacks a row is refused.
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
        if not self._data.counts["rows"]:
            return iter(())
        if reader.tokenizer_digest["vocabulary"] == tokenizer_digests(self._student)["vocabulary"]:
            check_same_template(reader.tokenizer_digest, self._student)
            return self._weighed(self._with_scored_ids(reader), reader.rows)
        if is_written(reader.rows):
            raise ConfigurationError(f"{reader.rows.uri} was written by a student with another tokenizer")
        self._alignment = Alignment(reader.vocabulary(), vocabulary_of(self._student))
        return self._weighed(self._with_own_ids(reader, self._alignment), reader.rows)

    def _weighed(self, examples: Iterator[Example], rows: ArtifactRef) -> Iterator[Example]:
        """Answers whose result is wrong count `kd.wrong_weight`, and all others 1."""
        if self._kd is None or self._kd.wrong_weight == 1:
            return examples
        answers = read_written(rows) if is_written(rows) else ()
        wrong = _sorted_keys(answer.tokens.row_id for answer in answers if answer.is_wrong)
        weights = {True: self._kd.wrong_weight, False: 1.0}
        return (replace(example, weight=weights[_is_among(wrong, example.row_id)]) for example in examples)

    def facts(self) -> dict[str, Any]:
        """How many rows were skipped, and answers left out, for what; with two tokenizers, how much moved.

        Raises ConfigurationError where that is less than `kd.min_alignment`.
        """
        facts: dict[str, Any] = {"skipped": self._skipped, **unsupervised_fact(self._unsupervised)}
        if self.k is not None:
            facts["k"] = self.k
        if self._alignment is not None and self._kd is not None and self._data.counts["rows"]:
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
        if is_written(reader.rows) or reader.categories:
            return self._all_of(reader)
        if self._only is None:
            return reader
        keys = _sorted_keys(row.id for row in read_rows(self._only, KEPT))
        return (scored for scored in reader if _is_among(keys, scored.row_id))

    def _all_of(self, reader: TopKReader) -> Iterator[ScoredRow]:
        """Every row that is the teacher's to score, but as many as its record says that it could not."""
        keys = _sorted_keys(row_id for row_id, category in self.rows() if is_of(reader.categories, category))
        scored_of = np.zeros(len(keys), bool)
        for scored in reader:
            if not _is_among(keys, scored.row_id):
                if self._only is not None:
                    continue
                raise ConfigurationError(f"row {scored.row_id} was scored, and {reader.rows.uri} has no such row")
            scored_of[np.searchsorted(keys, _key(scored.row_id))] = True
            yield scored
        missing = keys[~scored_of]
        if len(missing) > reader.skipped:
            more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
            raise ConfigurationError(
                f"the teacher's scores lack row {int(missing[0]):016x}…{more} of {reader.rows.uri}: delete the "
                f"record.json of {self._data.uri} and run again, they are scored anew"
            )
        if len(missing):
            self._skipped["not scored by the teacher"] += len(missing)

    def rows(self) -> Iterator[tuple[str, str]]:
        """Id and task category of all rows that this store and those of other teachers are of."""
        scored = TopKReader(self._data).rows
        if is_written(scored):
            yield from ((written.tokens.row_id, written.row.task_category) for written in read_written(scored))
        else:
            yield from ((row.id, row.task_category) for row in read_rows(self._only or scored, KEPT))

    @property
    def categories(self) -> TaskCategories | None:
        """Whose rows the teacher was to score (None: all)."""
        return TopKReader(self._data).categories

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
                *(scored.row_id, scored.ids, scored.response_start, *teacher, scored.earlier),
                kd_weight=kd_weight,
                difficulty=_teachers_loss(scored),
            )

    def _with_own_ids(self, reader: TopKReader, alignment: Alignment) -> Iterator[Example]:
        tokenizer = load_tokenizer(self._student)
        rows = read_rows(self._only or reader.rows, KEPT)
        with _by_id(row for row in rows if is_of(reader.categories, row.task_category)) as texts:
            not_scored = len(texts)
            for scored in self._wanted(reader):
                not_scored -= 1
                tokenised = self._tokenised(texts[scored.row_id], tokenizer)
                if tokenised is not None:
                    own = scored_answers(tokenised, scored)
                    self._unsupervised[REWRITTEN] += tokenised.unsupervised
                    self._unsupervised[NOT_SCORED] += len(tokenised.earlier) - len(own.earlier)
                    teacher = alignment.move(scored, own)
                    loss = _teachers_loss(scored)
                    yield Example(own.row_id, own.ids, own.response_start, *teacher, own.earlier, difficulty=loss)
        if not_scored:
            self._skipped["not scored by the teacher"] += not_scored

    def _tokenised(self, row: Row, tokenizer: Any) -> TokenisedRow | None:
        tokenised = tokenise(row, tokenizer, self._max_length, self._turns)
        if isinstance(tokenised, Skipped):
            self._skipped[tokenised.reason] += 1
            return None
        return tokenised


def _teachers_loss(scored: ScoredRow) -> float:
    """On the answers that are supervised, in nats a token; what is impossible for the teacher counts 100."""
    return -float(np.maximum(scored.actual_logprobs_R, -100.0).mean(dtype=np.float64))


def _key(row_id: str) -> np.uint64:
    """The first 64 bits of a row's id."""
    return np.uint64(int(row_id[:16], 16))


def _sorted_keys(row_ids: Iterable[str]) -> NDArray[np.uint64]:
    """64 bits of each id are in memory."""
    keys = np.fromiter((_key(row_id) for row_id in row_ids), np.uint64)
    keys.sort()
    return keys


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
