"""What is asked in batches, written down in storage before it is: a rerun, here or elsewhere, waits instead of paying.

A note is an object under `s3://bucket/batches/`: the keys of a batch's requests, and its id once the provider has given
one. It goes when all of its answers are kept and shared. A key is the one that the answer is cached under.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from infra import settings
from infra.store import storage
from tasks.llm.addresses import server_of
from tasks.llm.cache import AnswerCache, key_of
from tasks.llm.protocol import LLMEndpoint, Request

FOLDER = "batches"
_DAYS = 30.0  # providers keep the files of a batch for so long


@dataclass
class Note:
    """A batch: `open` are the keys whose answers nobody has settled."""

    model: str
    server: str
    open: set[str]
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    id: str | None = None
    since: float = field(default_factory=time.time)


class Notes:
    """The notes that this process wrote or has found."""

    def __init__(self, cache: AnswerCache):
        self._cache = cache
        self._place = f"s3://{settings.bucket()}/{FOLDER}/"
        self._seen: set[str] = set()
        self._of: dict[str, Note] = {}
        self._finished: list[Note] = []
        self._looking = asyncio.Lock()

    def of(self, key: str) -> Note | None:
        """The batch that holds a request."""
        return self._of.get(key)

    @property
    def any_open(self) -> bool:
        return bool(self._of)

    async def refresh(self) -> None:
        """Take over what others have noted since the last time, but for what has an answer by now."""
        async with self._looking:
            for note in await asyncio.to_thread(lambda: list(self._new())):
                note.open = {key for key in note.open if self._cache.get(key) is None}
                self._hold(note)

    async def write(self, note: Note) -> None:
        """Once before anything is sent, and again when the id is known."""
        self._seen.add(f"{note.name}.json")
        self._hold(note)
        content = {"model": note.model, "server": note.server, "id": note.id, "since": note.since}
        data = json.dumps({**content, "keys": sorted(note.open)}).encode()
        await asyncio.to_thread(storage.put, self._uri(note), data)

    async def id_by_another(self, note: Note) -> str | None:
        """The id, where whoever wrote the note has added it since."""
        data = await asyncio.to_thread(storage.get, self._uri(note))
        return None if data is None else json.loads(data)["id"]

    async def drop(self, note: Note) -> None:
        """Nothing was sent, or nothing can come of it any more: what is in it may be asked again."""
        self.settle(list(note.open))
        await asyncio.to_thread(storage.delete, self._uri(note))

    def settle(self, keys: Iterable[str]) -> None:
        """Their answers are kept, or of no use, or there is none."""
        for key in keys:
            if note := self._of.pop(key, None):
                note.open.discard(key)
                if not note.open:
                    self._finished.append(note)

    def tidy(self) -> None:
        """Delete the notes that are finished: call it when all answers are shared."""
        finished, self._finished = self._finished, []
        for note in finished:
            storage.delete(self._uri(note))

    def _hold(self, note: Note) -> None:
        if not note.open:
            self._finished.append(note)
        for key in note.open:
            self._of.setdefault(key, note)

    def _new(self) -> Iterable[Note]:
        for name in storage.keys(self._place):
            if name in self._seen:
                continue
            self._seen.add(name)
            if (found := storage.get_with_age(self._place + name)) is None:
                continue
            if found[2] > _DAYS * 86400:
                storage.delete(self._place + name)
            else:
                content: dict[str, Any] = json.loads(found[0])
                keys = set(content.pop("keys"))
                yield Note(**content, open=keys, name=name.removesuffix(".json"))

    def _uri(self, note: Note) -> str:
        return f"{self._place}{note.name}.json"


def key_of_request(endpoint: LLMEndpoint, request: Request) -> str:
    """The key that the answer of this model is cached under."""
    asked: dict[str, Any] = {
        "model": endpoint.model,
        "server": server_of(endpoint.model, endpoint.api_base),
        "messages": request.messages,
        "schema": request.schema,
        "temperature": request.temperature,
        "max_tokens": request.max_tokens,
    }
    if request.top_logprobs is not None:
        asked["top_logprobs"] = request.top_logprobs
    return key_of(asked)
