"""Which rows are trained on and which are held out: each row once, and no question on both sides.

What is known of the rows lies in a SQLite file, so memory stays flat however many rows there are.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from infra.files import scratch
from tasks.rows import HELDOUT, TRAIN, Row
from tasks.seeds.account import DUPLICATE, NOT_SAMPLED, OTHER_DATABASE, Account
from tasks.text.leaks import Leaks
from tasks.text.overlap import conversations

_TABLES = """
PRAGMA journal_mode=OFF;
PRAGMA synchronous=OFF;
PRAGMA cache_size=-65536;
CREATE TABLE rows (
    place INTEGER PRIMARY KEY, part TEXT, id TEXT, database TEXT, conversation INTEGER, asked TEXT,
    answered INTEGER, row TEXT, times INTEGER DEFAULT 1);
CREATE UNIQUE INDEX rows_by_id ON rows (part, id);
"""


def _lateness(row_id: str, times: int) -> float:
    """When a row first comes, where each of its copies comes at a random moment (exponential, decided by its id)."""
    uniform = (int(row_id[:13], 16) + 1) / 16**13
    return -math.log(uniform) / times


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Split]:
    """A split whose file lies in `folder` for the length of the `with`."""
    with scratch(folder, "split") as place, contextlib.closing(Split(place / "rows.sqlite")) as split:
        yield split


class Split:
    """Add the rows of both parts, or those of `TRAIN` alone and then `hold_out` a share; then read the parts."""

    def __init__(self, path: Path):
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.executescript(_TABLES)

    def close(self) -> None:
        self._database.close()

    def add(self, part: str, rows: Iterable[Row], account: Account) -> None:
        """Rows of a file, each text once; which of them were left out as duplicates goes into `account`."""
        self._database.execute("BEGIN")
        for row in rows:
            asked = conversations(row)
            about = (part, row.id, row.database, asked[-1], json.dumps(asked), row.is_answered)
            insert = "INSERT OR IGNORE INTO rows VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, 1)"
            if self._database.execute(insert, (*about, row.model_dump_json())).rowcount == 0:
                known = "SELECT database FROM rows WHERE part = ? AND id = ?"
                same = self._database.execute(known, (part, row.id)).fetchone()[0] == row.database
                self._database.execute("UPDATE rows SET times = times + 1 WHERE part = ? AND id = ?", (part, row.id))
                account.left_out[DUPLICATE if same else OTHER_DATABASE] += 1
        self._database.execute("COMMIT")

    def hold_out(self, share: float) -> None:
        """Move a share of the questions, chosen by their hash, with all rows that answer them, to the held-out part.

        A conversation that goes on where another row ends is held out with that row. A question with more rows than
        the share is trained on.
        """
        self._database.create_function("question", 2, self._question)
        self._database.execute("CREATE INDEX rows_by_conversation ON rows (conversation)")
        self._database.execute("UPDATE rows SET conversation = question(conversation, asked) WHERE asked LIKE '%,%'")
        total = self._database.execute("SELECT count(*) FROM rows").fetchone()[0]
        grouped = "SELECT conversation FROM rows {} GROUP BY conversation HAVING sum(answered) {}"
        chosen = grouped.format("WHERE (conversation & 4294967295) < ?", "AND count(*) <= ?")
        first = grouped.format("", "ORDER BY count(*) > ?, conversation & 4294967295 LIMIT 1")
        most = max(1, int(share * total))
        for questions, values in ((chosen, (int(share * 2**32), most)), (first, (most,))):
            move = f"UPDATE rows SET part = ? WHERE answered AND conversation IN ({questions})"
            if self._database.execute(move, (HELDOUT, *values)).rowcount:
                return

    def heldout(self) -> Iterator[Row]:
        return self._rows(HELDOUT)

    def training(self, account: Account, most: int | None = None, near: float | None = None) -> Iterator[Row]:
        """The rows that ask nothing that a held-out row asks, at most so many; `account` counts what is left out.

        `near` is the similarity from which a question counts as a held-out one; None: equal ones only. A row that is in
        the files n times is n times as likely to be in the sample (Efraimidis and Spirakis 2006).
        """
        leaks = Leaks.of(self.heldout, lambda: self._rows(TRAIN), near)
        if most is None:
            yield from self._without(leaks, account)
            return
        self._database.execute("CREATE TABLE kept (id TEXT PRIMARY KEY)")
        self._database.executemany("INSERT INTO kept VALUES (?)", ((row.id,) for row in self._without(leaks, account)))
        self._database.execute("DELETE FROM rows WHERE part = ? AND id NOT IN (SELECT id FROM kept)", (TRAIN,))
        self._sample(most, account)
        yield from self._rows(TRAIN)

    def _without(self, leaks: Leaks, account: Account) -> Iterator[Row]:
        for row in self._rows(TRAIN):
            if reason := leaks.reason(row):
                account.left_out[reason] += 1
            else:
                yield row

    def _sample(self, most: int, account: Account) -> None:
        self._database.create_function("lateness", 2, _lateness)
        chosen = "SELECT place FROM rows WHERE part = ? ORDER BY lateness(id, times), id LIMIT ?"
        drop = f"DELETE FROM rows WHERE part = ? AND place NOT IN ({chosen})"
        if dropped := self._database.execute(drop, (TRAIN, TRAIN, most)).rowcount:
            account.left_out[NOT_SAMPLED] += dropped

    def _question(self, conversation: int, asked: str) -> int:
        """The shortest beginning of a conversation that is a row of its own."""
        whole = "SELECT 1 FROM rows WHERE conversation = ?"
        beginnings = (one for one in json.loads(asked) if self._database.execute(whole, (one,)).fetchone())
        return next(beginnings, conversation)

    def _rows(self, part: str) -> Iterator[Row]:
        in_order = "SELECT row FROM rows WHERE +part = ? ORDER BY place"  # by the index, all rows would be sorted first
        for (row,) in self._database.execute(in_order, (part,)):
            yield Row.model_validate_json(row)
