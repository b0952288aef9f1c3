"""Which rows are compared with which held-out rows: the pairs that are likest, a bounded number of a held-out row.

Each row names the few held-out rows that it is likest (`tasks.text.retold`). Of the rows that name a held-out row, the
likest of its own language are candidates, and as many of other languages: so how many pairs there are depends on the
number of held-out rows alone. They lie in a SQLite file, so memory stays flat however many rows there are.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infra.files import scratch
from tasks.rows import Row
from tasks.text.retold import Retold

_OWN, _OTHER = 3, 20  # held-out rows of a row's language, and of others, that it may be compared with
_AT_ONCE = 1_000_000  # likely pairs that are added before those that cannot be chosen any more are deleted
_PAIRS_A_BATCH = 500  # that one worker claims
_ASKED, _ANSWERED = 1_500, 500  # characters of each that are shown
_TABLES = """
PRAGMA journal_mode=OFF;
PRAGMA synchronous=OFF;
CREATE TABLE heldout (place INTEGER PRIMARY KEY, language TEXT, shown TEXT);
CREATE TABLE likely (
    batch INTEGER, row TEXT, place INTEGER, own INTEGER, alike REAL, PRIMARY KEY (batch, row, place)) WITHOUT ROWID;
CREATE TABLE pairs (number INTEGER PRIMARY KEY, batch INTEGER, row TEXT, place INTEGER);
"""
_CHOOSE = """
DELETE FROM likely WHERE (batch, row, place) IN (SELECT batch, row, place FROM (
    SELECT *, row_number() OVER (PARTITION BY place, own ORDER BY alike DESC, batch, row) AS rank FROM likely)
WHERE rank > ?)
"""
_BATCH = """
SELECT batch, row, shown FROM pairs JOIN heldout USING (place) WHERE number > ? AND number <= ? ORDER BY number
"""
Likely = tuple[str, int, bool, float]  # a row's id, a held-out row's place, whether their language is one, how alike


@dataclass(frozen=True)
class ComparedPair:
    """A row, by its batch and id, and a held-out row, each as the agent is shown it."""

    batch: int
    row: str
    language: str
    first: dict[str, str]
    second: dict[str, str]


@contextlib.contextmanager
def opened(
    folder: Path, heldout: Iterable[Row], others: Callable[[], Iterable[Row]], most: int
) -> Iterator[Candidates]:
    """Candidates whose file lies in `folder` for the length of the `with`."""
    with (
        scratch(folder, "candidates") as place,
        contextlib.closing(Candidates(place / "pairs.sqlite", heldout, others, most)) as candidates,
    ):
        yield candidates


class Candidates:
    """Ask which are `likely` of each batch of rows, `add` them all, `choose` once, then read `batches` of pairs."""

    def __init__(self, path: Path, heldout: Iterable[Row], others: Callable[[], Iterable[Row]], most: int):
        """At most `most` rows of a held-out row's own language, and as many of others; 0: none, and nothing is read."""
        self._most = most
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.executescript(_TABLES)
        self._retold = Retold.of(self._noted(heldout), others) if most else None
        self._languages_N = np.array([code for (code,) in self._database.execute("SELECT language FROM heldout")], str)
        self._added = 0

    def close(self) -> None:
        self._database.close()

    def likely(self, rows: Iterable[Row]) -> list[Likely]:
        """The held-out rows that each of some rows is likest."""
        found: list[Likely] = []
        if self._retold is None:
            return found
        for row in rows:
            alike_N = self._retold.alike_N(row)
            own_N = self._languages_N == row.language
            for own, most in ((True, _OWN), (False, _OTHER)):
                places = np.flatnonzero((own_N == own) & (alike_N > 0))
                best = places[np.argsort(-alike_N[places], kind="stable")[:most]]
                found += [(row.id, int(place), own, round(float(alike_N[place]), 6)) for place in best]
        return found

    def add(self, batch: int, likely: Iterable[Likely]) -> None:
        """What is likely of a batch."""
        new = [(batch, *one) for one in likely]
        self._database.execute("BEGIN")
        self._database.executemany("INSERT OR IGNORE INTO likely VALUES (?, ?, ?, ?, ?)", new)
        self._database.execute("COMMIT")
        self._added += len(new)
        if self._added > _AT_ONCE:
            self._database.execute(_CHOOSE, (self._most,))
            self._added = 0

    def choose(self) -> None:
        """Decide which pairs are compared."""
        self._database.execute(_CHOOSE, (self._most,))
        in_order = (
            "INSERT INTO pairs (batch, row, place) SELECT batch, row, place FROM likely ORDER BY batch, row, place"
        )
        self._database.execute(in_order)

    @property
    def batch_count(self) -> int:
        pairs = self._database.execute("SELECT count(*) FROM pairs").fetchone()[0]
        return int(-(-pairs // _PAIRS_A_BATCH))

    def batches(
        self, rows_of: Callable[[int], Iterable[Row]]
    ) -> Iterator[tuple[int, Callable[[], list[ComparedPair]]]]:
        """The pairs in batches, each read when it is called; `rows_of` gives the rows of a batch that was added."""

        def of(index: int) -> list[ComparedPair]:
            found = []
            chosen = self._database.execute(_BATCH, (index * _PAIRS_A_BATCH, (index + 1) * _PAIRS_A_BATCH)).fetchall()
            for batch, pairs in itertools.groupby(chosen, key=lambda pair: pair[0]):
                rows = {row.id: row for row in rows_of(batch)}
                for _batch, row_id, shown in pairs:
                    row = rows[row_id]
                    found.append(ComparedPair(batch, row_id, row.language, _shown(row), json.loads(shown)))
            return found

        for index in range(self.batch_count):
            yield index, functools.partial(of, index)

    def _noted(self, rows: Iterable[Row]) -> Iterator[Row]:
        for place, row in enumerate(rows):
            shown = json.dumps(_shown(row))
            self._database.execute("INSERT INTO heldout VALUES (?, ?, ?)", (place, row.language, shown))
            yield row


def most_pairs(rows: float, heldout: int, most: int, *, several_languages: bool) -> float:
    """How many pairs there can be of so many rows and held-out rows."""
    own, other = (min(heldout * most, rows * of_a_row) for of_a_row in (_OWN, _OTHER))
    return own + other * several_languages


def _shown(row: Row) -> dict[str, str]:
    """What the agent sees of a row: what was asked, of a conversation the end, and the beginning of the answer."""
    turns = [message for message in row.prompt if message.role != "system"]
    if len(turns) == 1:
        asked = turns[0].content[:_ASKED]
    else:
        asked = "\n".join(f"{turn.role}: {turn.content}" for turn in turns)[-_ASKED:]
    return {"asked": asked, "answered": row.response[:_ANSWERED]}
