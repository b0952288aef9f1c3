"""Answers that were of use, by the hash of what was asked: in a SQLite file here, and shared through storage.

A key covers the server, model, messages and parameters and nothing else, so an answer outlives a kill, a changed
setting and a changed program as long as the request is the same. Machines share answers as Parquet segments under
`s3://bucket/answers/`, written now and then, read once each. What is found here is read anew by whoever asks: an
answer that was kept by another version may be none.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra import settings
from infra.store import storage
from infra.store.parquet import packed
from tasks.llm.protocol import Reply

_MAX_TEXT = 200_000  # characters of an answer that are kept: more than any agent may say
_SEGMENT = 2_000  # answers in memory at a time
_SCHEMA = pa.schema([("key", pa.string()), ("answer", pa.string())])
_TABLES = """
PRAGMA journal_mode=WAL;
PRAGMA synchronous=NORMAL;
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL, shared_in TEXT);
CREATE TABLE IF NOT EXISTS segments (uri TEXT PRIMARY KEY);
"""


def key_of(request: dict[str, Any]) -> str:
    """sha256 of a request's canonical JSON."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def as_kept(reply: Reply, price: tuple[float, float]) -> dict[str, Any]:
    """An answer as it is kept, with what it cost at a `price` of a token of prompt and of answer."""
    told = {"last_logprobs": reply.last_logprobs, "logprobs": reply.logprobs}
    return {
        **{name: logprobs for name, logprobs in told.items() if logprobs is not None},
        "text": reply.text[:_MAX_TEXT],
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "cost_usd": reply.cost_usd or reply.prompt_tokens * price[0] + reply.completion_tokens * price[1],
        "model": reply.model,
        "finish_reason": reply.finish_reason,
        "place": reply.place,
    }


class AnswerCache:
    """Safe against a kill at any time, and for several processes of one machine."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60)
        self._database.executescript(_TABLES)
        self._place = f"s3://{settings.bucket()}/answers/"
        self._unshared: set[str] = set()

    def get(self, key: str) -> dict[str, Any] | None:
        found = self._database.execute("SELECT answer, shared_in FROM answers WHERE key = ?", (key,)).fetchone()
        if found is None:
            return None
        if found[1] != self._place:
            self._unshared.add(key)
        return json.loads(found[0])

    def put(self, key: str, answer: dict[str, Any]) -> None:
        text = json.dumps(answer, ensure_ascii=False)
        self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, NULL)", (key, text))
        self._unshared.add(key)

    def pull(self) -> int:
        """Take over what others have shared since the last time; the number of new segments."""
        known = {uri for (uri,) in self._database.execute("SELECT uri FROM segments")}
        new = [self._place + name for name in storage.keys(self._place) if self._place + name not in known]
        for uri in new:
            table = pq.read_table(pa.BufferReader(storage.get(uri) or b""), schema=_SCHEMA)
            pairs = zip(*(table[name].to_pylist() for name in _SCHEMA.names), strict=True)
            self._database.execute("BEGIN")
            self._database.executemany(
                "INSERT INTO answers VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET shared_in = excluded.shared_in",
                ((key, answer, self._place) for key, answer in pairs),
            )
            self._database.execute("INSERT OR IGNORE INTO segments VALUES (?)", (uri,))
            self._database.execute("COMMIT")
        return len(new)

    def push(self) -> int:
        """Share what this process asked or used and storage does not have yet; the number of answers."""
        keys, self._unshared = sorted(self._unshared), set()
        for start in range(0, len(keys), _SEGMENT):
            self._push_segment(keys[start : start + _SEGMENT])
        return len(keys)

    def _push_segment(self, keys: list[str]) -> None:
        answers = [
            self._database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()[0] for key in keys
        ]
        uri = f"{self._place}{uuid.uuid4().hex}.parquet"
        storage.put(uri, packed(pa.table([keys, answers], schema=_SCHEMA)))
        self._database.execute("BEGIN")
        self._database.executemany(
            "UPDATE answers SET shared_in = ? WHERE key = ?", ((self._place, key) for key in keys)
        )
        self._database.execute("INSERT OR IGNORE INTO segments VALUES (?)", (uri,))
        self._database.execute("COMMIT")

    def close(self) -> None:
        self._database.close()
