"""Preference pairs out of what the agents found, for DPO: TRL's conversational form, one row in memory at a time.

- rewriting: a kept row's response against the one before Rewriting, where the check called it corrected;
- verification: a kept row's response against those to the same question that Verification rejected as incorrect.
  With Selection on, which drops near-duplicates first, only one row of a question comes as far as that.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from infra import settings
from infra.errors import ConfigurationError
from infra.files import scratch, whole
from infra.store.artifacts import ArtifactReader, ArtifactRef, digest_of
from tasks.augment.export import about, plain
from tasks.rows import BEFORE_REWRITING, KEPT, REJECTED, Message, Row, from_parquet, read_rows

Source = Literal["rewriting", "verification"]
_SAME, _AGAIN = "pairs of two equal responses", "rejected rows that say what another one says"
_TOOLS = "rows that use tools, which are not rewritten"
_ALONE = "rows rejected as incorrect without a kept row of the same question"


_TABLE = """
PRAGMA journal_mode=OFF;
PRAGMA synchronous=OFF;
CREATE TABLE rejected (question BLOB, response TEXT);
BEGIN;
"""


@dataclass
class Exported:
    """How many pairs were written, by source, and what was left out, by reason."""

    pairs: Counter[Source] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


def export_pairs(ref: ArtifactRef, to: Path) -> Exported:
    """Write an augment artifact's preference pairs as JSONL, whole or not at all.

    Raises ConfigurationError where there are none.
    """
    done = Exported()
    with scratch(settings.work_dir(), "pairs") as place, whole(to) as partial:
        with contextlib.closing(_Rejected(place / "rejected.sqlite", ref)) as rejected:
            with partial.open("w", encoding="utf-8", newline="\n") as stream:
                for row in read_rows(ref, KEPT):
                    if row.uses_tools:
                        done.left_out[_TOOLS] += 1
                        continue
                    for source, response, times in _worse(row, rejected):
                        done.left_out[_AGAIN] += times - 1
                        if response.strip() == row.response.strip():
                            done.left_out[_SAME] += 1
                            continue
                        stream.write(json.dumps(pair(row, response, source), ensure_ascii=False) + "\n")
                        done.pairs[source] += 1
            done.left_out[_ALONE] = rejected.left()
        if not done.pairs:
            raise ConfigurationError(
                f"{ref.uri} holds no preference pairs: no kept row has the response that Rewriting corrected (earlier "
                "versions did not keep it), and no row that Verification rejected has a kept row of the same question "
                "(with augmentation.selection on, one row a question is verified)"
            )
    return done


def pair(row: Row, rejected: str, source: Source) -> dict[str, Any]:
    """`prompt`, `chosen` and `rejected` as lists of messages, and where the pair comes from."""
    return {
        "prompt": plain(row.prompt),
        "chosen": _said(row.response),
        "rejected": _said(rejected),
        "source": source,
        **about(row),
    }


def _said(response: str) -> list[dict[str, str]]:
    return plain([Message(role="assistant", content=response)])


def _worse(row: Row, rejected: _Rejected) -> Iterator[tuple[Source, str, int]]:
    """The responses that the row's own is better than, and how many rows gave each."""
    if before := row.verdicts.get(BEFORE_REWRITING):
        yield "rewriting", before, 1
    for response, times in rejected.taken(row):
        yield "verification", response, times


class _Rejected:
    """The responses that Verification rejected, in a SQLite file by the question that they answer."""

    def __init__(self, path: Path, ref: ArtifactRef):
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.executescript(_TABLE)
        rows = ((_question(row), row.response) for row in _rejected_as_incorrect(ref))
        self._database.executemany("INSERT INTO rejected VALUES (?, ?)", rows)
        self._database.execute("CREATE INDEX by_question ON rejected (question)")

    def taken(self, row: Row) -> Iterator[tuple[str, int]]:
        """Each response to the row's question and how often it was given; the next row of the question gets none."""
        question = (_question(row),)
        query = "SELECT response, count(*) FROM rejected WHERE question = ? GROUP BY response ORDER BY min(rowid)"
        yield from self._database.execute(query, question)
        self._database.execute("DELETE FROM rejected WHERE question = ?", question)

    def left(self) -> int:
        """How many responses no row has taken."""
        return int(self._database.execute("SELECT count(*) FROM rejected").fetchone()[0])

    def close(self) -> None:
        self._database.close()


def _rejected_as_incorrect(ref: ArtifactRef) -> Iterator[Row]:
    for _name, data in ArtifactReader(ref).stream(REJECTED):
        agents = pq.read_table(pa.BufferReader(data), columns=["agent"])["agent"].to_pylist()
        for row, agent in zip(from_parquet(data), agents, strict=True):
            if agent == "verification" and not row.uses_tools:
                yield row


def _question(row: Row) -> bytes:
    """Digest of what is asked: the prompt, and the database that it is asked of."""
    return bytes.fromhex(digest_of([plain(row.prompt), row.database]))[:16]
