"""Which scored rows to keep: no low scores, no near-duplicates, and a share of each task category.

What is known of the rows lies in a SQLite file, so memory stays flat however many rows there are.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import rensa

from infra.files import scratch
from infra.store.artifacts import digest_of
from tasks.rows import Row
from tasks.text.leaks import RETOLD, Leaks

LOW_SCORE = "score below {:g}"
DUPLICATE = "near-duplicate of a better row"
OVER_SHARE = "over the balanced share of its task category"
_SHINGLE = 5  # characters: works for languages without spaces too
_BANDS, _ROWS_PER_BAND = 16, 6  # finds pairs of 0.9 in both texts with 99.5 %, of 0.95 with 99.99 %
_SIGNATURE = _BANDS * _ROWS_PER_BAND
_TABLES = """
PRAGMA journal_mode=OFF;
PRAGMA synchronous=OFF;
CREATE TABLE candidates (
    batch INTEGER, position INTEGER, category TEXT, score REAL, tie TEXT, context BLOB, instruction BLOB, input BLOB,
    reason TEXT, PRIMARY KEY (batch, position));
CREATE TABLE bands (band BLOB, candidate INTEGER);
CREATE INDEX bands_by_hash ON bands (band);
"""
_BEST_FIRST = "score DESC, tie, batch, position"


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Selection]:
    """A selection whose file lies in `folder` for the length of the `with`."""
    with scratch(folder, "selection") as place, contextlib.closing(Selection(place / "rows.sqlite")) as selection:
        yield selection


class Selection:
    """Add all rows, `decide` once, then ask for reasons."""

    def __init__(self, path: Path):
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.executescript(_TABLES)

    def close(self) -> None:
        self._database.close()

    def add(
        self, batch: int, rows: Iterable[Row], leaks: Leaks | None = None, retold: Collection[str] = frozenset()
    ) -> None:
        """The rows of a batch, in their order; those that `leaks` has a reason against, or `retold` the id, go."""
        entries = [
            (
                batch,
                position,
                row.task_category,
                score_of(row),
                row.id,
                context_of(row),
                signature(row.instruction),
                signature(row.input),
                (leaks.reason(row) if leaks else None) or (RETOLD if row.id in retold else None),
            )
            for position, row in enumerate(rows)
        ]
        self._database.execute("BEGIN")
        self._database.executemany("INSERT INTO candidates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", entries)
        self._database.execute("COMMIT")

    def decide(self, *, min_score: float, near_duplicate: float | None, max_rows: int | None) -> None:
        """Mark what is not kept: low scores, near-duplicates (best row first), then what is over its share.

        `near_duplicate` is the Jaccard similarity from which both instruction and input count as the same, where
        earlier turns, system prompt and database are the same too; None compares nothing. `max_rows` is filled evenly
        over task categories; a category with too few rows leaves its places to the others.
        """
        self._database.execute("BEGIN")
        low = LOW_SCORE.format(min_score)
        self._database.execute("UPDATE candidates SET reason = ? WHERE score < ? AND reason IS NULL", (low, min_score))
        if near_duplicate is not None:
            self._drop_duplicates(near_duplicate)
        if max_rows is not None:
            self._balance(max_rows)
        self._database.execute("COMMIT")

    def reasons(self, batch: int) -> dict[int, str]:
        """Reason of rejection by position, for the rows of a batch that are not kept."""
        query = "SELECT position, reason FROM candidates WHERE batch = ? AND reason IS NOT NULL"
        return dict(self._database.execute(query, (batch,)))

    def _drop_duplicates(self, threshold: float) -> None:
        kept = self._database.cursor()
        query = f"SELECT rowid, context, instruction, input FROM candidates WHERE reason IS NULL ORDER BY {_BEST_FIRST}"
        for rowid, context, instruction, given in self._database.execute(query):
            bands = _bands(context, instruction, given)
            if self._like(bands, instruction, given, threshold):
                kept.execute("UPDATE candidates SET reason = ? WHERE rowid = ?", (DUPLICATE, rowid))
            else:
                kept.executemany("INSERT INTO bands VALUES (?, ?)", ((band, rowid) for band in bands))

    def _like(self, bands: list[bytes], instruction: bytes, given: bytes, threshold: float) -> bool:
        marks = ",".join("?" * len(bands))
        alike = f"SELECT candidate FROM bands WHERE band IN ({marks})"
        query = f"SELECT instruction, input FROM candidates WHERE rowid IN ({alike})"
        return any(
            similarity(instruction, other) >= threshold and similarity(given, other_given) >= threshold
            for other, other_given in self._database.execute(query, bands)
        )

    def _balance(self, max_rows: int) -> None:
        query = "SELECT category, count(*) FROM candidates WHERE reason IS NULL GROUP BY category"
        quotas = balanced_quotas(dict(self._database.execute(query)), max_rows)
        for category, quota in quotas.items():
            self._database.execute(
                "UPDATE candidates SET reason = ? WHERE rowid IN (SELECT rowid FROM candidates "
                f"WHERE reason IS NULL AND category = ? ORDER BY {_BEST_FIRST} LIMIT -1 OFFSET ?)",
                (OVER_SHARE, category, quota),
            )


def score_of(row: Row) -> float:
    """Mean of Selection's scores; 10 where the row was not scored."""
    return sum(row.scores.values()) / len(row.scores) if row.scores else 10.0


def balanced_quotas(available: Mapping[str, int], total: int) -> dict[str, int]:
    """Places per category, as even as supply allows; sums to min(total, supply)."""
    quotas: dict[str, int] = {}
    left = total
    for position, (category, supply) in enumerate(sorted(available.items(), key=lambda item: (item[1], item[0]))):
        quotas[category] = min(supply, left // (len(available) - position))
        left -= quotas[category]
    return quotas


def context_of(row: Row) -> bytes:
    """Digest of what gives the same question another meaning: turns, the system prompt, tools and the database."""
    said = [[message.role, *map(_plain, message.texts)] for message in row.history]
    with_tools = [[message.role, *map(_plain, message.texts)] for message in row.tool_turns]
    called = [[row.tools, with_tools]] if row.uses_tools else []
    return bytes.fromhex(digest_of([said, row.database, *called]))[:16]


def signature(text: str) -> bytes:
    """MinHash of a text's character shingles, case and spacing apart: `_SIGNATURE` little-endian uint32."""
    plain = _plain(text)
    shingles = (
        {plain[start : start + _SHINGLE] for start in range(max(len(plain) - _SHINGLE + 1, 1))} if plain else set()
    )
    minhash = rensa.RMinHash(num_perm=_SIGNATURE, seed=1)
    minhash.update(sorted(shingles))
    return np.array(minhash.digest(), dtype="<u4").tobytes()


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def similarity(one: bytes, other: bytes) -> float:
    """Estimate of the Jaccard similarity of two signed texts."""
    return float(np.mean(np.frombuffer(one, "<u4") == np.frombuffer(other, "<u4")))


def _bands(context: bytes, instruction: bytes, given: bytes) -> list[bytes]:
    """Rows that share one may be alike; no two rows of different contexts share one."""
    size = 4 * _ROWS_PER_BAND
    return [
        bytes([band]) + context + instruction[band * size : (band + 1) * size] + given[band * size : (band + 1) * size]
        for band in range(_BANDS)
    ]
