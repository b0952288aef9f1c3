"""One model's batches: what waits for the next one, what is under way, and which line of which file answers whom."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import functools
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from infra.errors import ConfigurationError
from infra.store.claims import LeaseLost, check_leases
from tasks.llm.addresses import server_of
from tasks.llm.batch_calls import PASSES, PatientCalls, pauses
from tasks.llm.batch_notes import Note, Notes, key_of_request
from tasks.llm.litellm_batches import QUEUE_IS_FULL, BatchAPI, BatchState
from tasks.llm.litellm_forms import Form, Line
from tasks.llm.protocol import LLMEndpoint, ProviderError, Request
from tasks.llm.settings import LLMCalls

_MOST_REQUESTS, _MOST_BYTES = 50_000, 100_000_000  # of a batch; OpenAI takes twice the bytes
_TRIES = 3  # of a request that fails in a batch


class _AskAgain(Exception):
    """The batch came to nothing, and nothing of it was paid."""


@dataclass
class UnderWay:
    """A batch from its first byte to its last answer; `keys` are those that it has to answer."""

    note: Note
    keys: set[str]
    ours: bool  # this process submits it
    done: int = 0

    def __post_init__(self) -> None:
        self.requests = len(self.keys)


class ModelBatches:
    """`await answer(request)`, any number of them at a time."""

    def __init__(self, api: BatchAPI, endpoint: LLMEndpoint, mode: str, notes: Notes, options: LLMCalls):
        self.provider = api.provider
        self.under_way: dict[str, UnderWay] = {}
        self._api, self._endpoint, self._notes = api, endpoint, notes
        self._calls = PatientCalls(api, options.batch_poll_s)
        self._wait_s, self._poll_s = options.batch_wait_s, options.batch_poll_s
        self._first = Form(mode)
        self._proven: dict[str, Form] = {}  # by schema
        self._wanted: dict[str, asyncio.Future[Line | Exception]] = {}
        self._next: dict[str, tuple[bytes, contextvars.Context]] = {}  # the lines of the next batch, and whose they are
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._room: int | None = None  # requests that the provider lets us have under way, once it has refused more

    async def answer(self, request: Request) -> Line:
        """The fields of a Reply. Raises ProviderError where the model gives none, and what ends the stage."""
        asked, key = vars(request), key_of_request(self._endpoint, request)
        form = self._proven.get(request.schema_name, self._first)
        tries = 1
        while True:
            result = await self._result(key, functools.partial(self._api.line, key, asked, form))
            if not isinstance(result, Exception):
                self._proven.setdefault(request.schema_name, dataclasses.replace(form, proven=True))
                return result
            if isinstance(result, _AskAgain):
                continue
            if not isinstance(result, ProviderError):
                raise result
            if other := form.without(result.kind, str(result), asked):
                form = other
            elif result.kind in PASSES and tries < _TRIES:
                tries += 1
            else:
                raise result

    async def end(self) -> None:
        """Stop waiting; the batches go on, and are found again."""
        if self._timer:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _result(self, key: str, line: Callable[[], bytes]) -> Line | Exception:
        if key not in self._wanted:
            note = self._notes.of(key)
            new = None if note else line()
            self._wanted[key] = asyncio.get_running_loop().create_future()
            if note:
                self._follow(note)
            else:
                assert new is not None
                self._next[key] = new, contextvars.copy_context()
                self._bytes += len(new)
                is_full = len(self._next) >= _MOST_REQUESTS or self._bytes >= _MOST_BYTES
                self._submit() if is_full else self._submit_in(self._wait_s)
        return await asyncio.shield(self._wanted[key])

    def _give(self, keys: Iterable[str], result: Line | Exception) -> None:
        for key in keys:
            wanted = self._wanted.pop(key, None)
            if wanted and not wanted.done():
                wanted.set_result(result)

    def _submit_in(self, seconds: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._submit)

    def _submit(self) -> None:
        """Make a batch of what waits, as far as the provider has room; the rest goes when one has ended."""
        room = _MOST_REQUESTS
        if self._room is not None:
            room = min(room, self._room - sum(batch.requests for batch in self.under_way.values()))
        keys = list(itertools.islice(self._next, max(room, 0)))
        lines = {key: self._next.pop(key) for key in keys}
        self._bytes -= sum(len(line) for line, _ in lines.values())
        if lines:
            note = Note(self._endpoint.model, server_of(self._endpoint.model, self._endpoint.api_base), set(lines))
            self._start(UnderWay(note, set(lines), ours=True), lines)

    def _follow(self, note: Note) -> None:
        if note.name not in self.under_way:
            self._start(UnderWay(note, set(note.open), ours=False))

    def _start(self, batch: UnderWay, lines: dict[str, tuple[bytes, contextvars.Context]] | None = None) -> None:
        self.under_way[batch.note.name] = batch
        task = asyncio.ensure_future(self._to_its_end(batch, lines))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _to_its_end(self, batch: UnderWay, lines: dict[str, tuple[bytes, contextvars.Context]] | None) -> None:
        try:
            if lines is None or await self._submitted(batch, lines):
                await self._read(batch, await self._ended(batch))
        except Exception as error:  # each asker raises it
            self._give(batch.keys, error)
        finally:
            del self.under_way[batch.note.name]
            if not batch.note.open.isdisjoint(self._wanted):  # asked for since their lines were read
                self._follow(batch.note)
            if self._next:
                self._submit_in(self._wait_s)

    async def _submitted(self, batch: UnderWay, lines: dict[str, tuple[bytes, contextvars.Context]]) -> bool:
        """Note it, then submit it; False where nothing is left of it that others have not submitted."""
        note = batch.note
        await self._notes.refresh()
        for key, (_, context) in list(lines.items()):
            if self._is_to_be_sent(key, context):
                continue
            del lines[key]
            batch.keys.remove(key)
            note.open.remove(key)
        if not lines:
            return False
        batch.requests = len(lines)
        await self._notes.write(note)
        with tempfile.TemporaryFile() as file:
            file.writelines(line for line, _ in lines.values())
            lines.clear()
            try:
                note.id = await self._calls.submit(note.name, file)
            except ProviderError as error:
                if error.kind not in PASSES:  # else it may be there all the same
                    await self._notes.drop(note)
                raise
        await self._notes.write(note)
        return True

    def _is_to_be_sent(self, key: str, context: contextvars.Context) -> bool:
        """Not where another has submitted it meanwhile, or has taken over what it is for."""
        if other := self._notes.of(key):
            self._follow(other)
            return False
        try:
            context.run(check_leases)
        except LeaseLost as lost:
            self._give([key], lost)
            return False
        return True

    async def _ended(self, batch: UnderWay) -> BatchState:
        """Wait for its end. A batch of before that its provider does not know (any more) is asked anew."""
        note = batch.note
        try:
            if note.id is None:
                note.id = await self._found(note)
                await self._notes.write(note)
            for number, pause in enumerate(pauses(self._poll_s)):
                state = await self._calls.state(note.id, is_there=batch.ours)
                batch.done = state.done
                if state.has_ended:
                    await asyncio.sleep(0.0 if number else self._wait_s)  # others of it may be asked for right now
                    return state
                await asyncio.sleep(pause)
        except ProviderError as error:
            if batch.ours or error.kind != "unknown_model":
                raise
        await self._notes.drop(note)
        raise _AskAgain

    async def _found(self, note: Note) -> str:
        """The id of a batch whose maker was killed before it was noted, or is about to note it."""
        for pause in (self._poll_s, 0.0):
            if found := await self._notes.id_by_another(note) or await self._calls.find(note.name):
                return found
            await asyncio.sleep(pause)
        raise ProviderError("unknown_model", "no such batch")

    async def _read(self, batch: UnderWay, state: BatchState) -> None:
        """Answer who waits, and leave in the note what is there for those who do not ask yet."""
        note = batch.note
        if state.error:
            await self._failed(batch, state)
            return
        answered: set[str] = set()
        for file_id in state.files:
            with tempfile.TemporaryFile() as file:
                await self._calls.download(file_id, file)
                for number, line in enumerate(file):
                    if key := self._read_line(note, line, state):
                        answered.add(key)
                    if number % 100 == 0:
                        await asyncio.sleep(0)
        left = note.open - answered
        self._notes.settle(left)
        self._give(left, _why_unanswered(note, state, self.provider))

    def _read_line(self, note: Note, line: bytes, state: BatchState) -> str | None:
        """The key that it answers; None where it answers none that is open."""
        try:
            said = json.loads(line)
            key: str = said["custom_id"]
            answers = said["response"] is not None and said["response"]["status_code"] == 200
            if key not in note.open:
                return None
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        if key not in self._wanted:
            return key if answers else None
        result = self._api.answer(said)
        if isinstance(result, ProviderError):
            if state.status == "cancelled":
                return None
            self._notes.settle([key])
        self._give([key], result)
        return key

    async def _failed(self, batch: UnderWay, state: BatchState) -> None:
        """It was refused as a whole, which costs nothing."""
        await self._notes.drop(batch.note)
        others = sum(other.requests for other in self.under_way.values()) - batch.requests
        error: Exception | None = state.error
        if state.code == QUEUE_IS_FULL and (others or batch.requests > 1):
            self._room = others or batch.requests // 2
            error = _AskAgain()
        assert error
        self._give(batch.keys, error)


def _why_unanswered(note: Note, state: BatchState, provider: str) -> Exception:
    match state.status:
        case "cancelled":
            return ConfigurationError(
                f"batch {note.id} was cancelled at {provider}: run again to ask what it has not answered"
            )
        case "expired":
            return ProviderError("timeout", "the batch expired before its turn came")
    return ProviderError("server", "the batch's files have no line for it")
