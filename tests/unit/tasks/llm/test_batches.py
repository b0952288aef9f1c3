"""One model's batches against a made-up batch API: who is answered by what, what is noted when, what is asked again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import IO, Any

import pytest

from infra.errors import ConfigurationError
from infra.store.claims import LeaseLost
from tasks.augment.settings import Augmentation
from tasks.llm import batch_queue
from tasks.llm.batch_notes import Note, Notes, key_of_request
from tasks.llm.batch_queue import ModelBatches
from tasks.llm.cache import AnswerCache
from tasks.llm.client import LLMClient
from tasks.llm.litellm_batches import QUEUE_IS_FULL, BatchAPI, BatchState
from tasks.llm.litellm_forms import Form
from tasks.llm.protocol import LLMEndpoint, ProviderError, Request
from tests.support.memory_store import MemoryStore

ENDPOINT = LLMEndpoint("openai/test", "http://here/v1")
OPTIONS = Augmentation(batch=True, batch_wait_s=0.01, batch_poll_s=0.01)
COMPLETED = BatchState("completed", 1, ("answers",))
Use = Callable[[ModelBatches, Notes], Coroutine[Any, Any, Any]]


class MadeUp(BatchAPI):
    """Answers each request with its own words; `script` has what states and calls come to in turn."""

    def __init__(self, *script: BatchState | Exception) -> None:
        self.provider = "openai"
        self.script = list(script)
        self.batches: dict[str, list[dict[str, Any]]] = {}
        self.names: dict[str, str] = {}
        self.answer_of: Callable[[dict[str, Any]], Any] = lambda line: {"text": line["custom_id"]}
        self.extra: list[bytes] = []

    def line(self, key: str, request: dict[str, Any], form: Form) -> bytes:
        return json.dumps({"custom_id": key, "mode": form.mode}).encode() + b"\n"

    async def submit(self, name: str, requests: IO[bytes]) -> str:
        self.names[name] = batch = f"batch-{len(self.batches)}"
        self.batches[batch] = [json.loads(line) for line in requests]
        if self.script and isinstance(lost := self.script[0], Exception):
            del self.script[0]
            raise lost
        return batch

    async def find(self, name: str) -> str | None:
        return self.names.get(name)

    async def state(self, batch_id: str) -> BatchState:
        if batch_id not in self.batches:
            raise ProviderError("unknown_model", "no such batch")
        said = self.script.pop(0) if self.script else COMPLETED
        if isinstance(said, Exception):
            raise said
        return BatchState(said.status, said.done, tuple(batch_id for _ in said.files), said.code, said.error)

    async def download(self, file_id: str, into: IO[bytes]) -> None:
        response = {"status_code": 200}
        lines = [json.dumps({**line, "response": response}).encode() for line in reversed(self.batches[file_id])]
        into.write(b"\n".join([*self.extra, *lines]))

    def answer(self, line: Any) -> Any:
        return self.answer_of(line)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    return MemoryStore().replace(monkeypatch)


@pytest.fixture
def run(store: MemoryStore, tmp_path: Path) -> Callable[[MadeUp, Use], Any]:
    def run(api: MadeUp, use: Use) -> Any:
        async def used() -> Any:
            cache = AnswerCache(tmp_path / "answers.sqlite")
            notes = Notes(cache)
            batches = ModelBatches(api, ENDPOINT, "schema", notes, OPTIONS)
            try:
                return await asyncio.wait_for(use(batches, notes), 20)
            finally:
                await batches.end()
                cache.close()

        return asyncio.run(used())

    return run


def _request(number: int = 0) -> Request:
    return Request([{"role": "user", "content": str(number)}], schema={"type": "object"})


def _key(number: int = 0) -> str:
    return key_of_request(ENDPOINT, _request(number))


def _asks(*numbers: int) -> Use:
    async def ask(batches: ModelBatches, notes: Notes) -> list[Any]:
        return await asyncio.gather(*[batches.answer(_request(n)) for n in numbers], return_exceptions=True)

    return ask


def test_all_that_wait_go_into_one_batch_and_each_gets_its_own_answer(run: Any) -> None:
    api = MadeUp()
    answers = run(api, _asks(*range(50)))
    assert answers == [{"text": _key(n)} for n in range(50)]
    assert [len(lines) for lines in api.batches.values()] == [50]


def test_a_batch_is_noted_before_it_is_sent_and_forgotten_when_it_is_settled(run: Any, store: MemoryStore) -> None:
    class Watched(MadeUp):
        async def submit(self, name: str, requests: IO[bytes]) -> str:
            seen.append(json.loads(next(iter(store.objects.values()))[0]))
            return await super().submit(name, requests)

    async def use(batches: ModelBatches, notes: Notes) -> None:
        await _asks(1, 2)(batches, notes)
        seen.append(json.loads(next(iter(store.objects.values()))[0]))
        notes.settle([_key(1)])
        notes.tidy()
        assert store.objects, "an answer is not settled yet"
        notes.settle([_key(2)])
        notes.tidy()
        assert not store.objects

    seen: list[Any] = []
    run(Watched(), use)
    assert [one["keys"] for one in seen] == [sorted([_key(1), _key(2)])] * 2
    assert [one["id"] for one in seen] == [None, "batch-0"]


@pytest.mark.parametrize("noted", [True, False])
def test_what_was_sent_by_one_that_was_killed_is_read_and_not_sent(run: Any, noted: bool) -> None:
    """Also those who ask when its answers are being read, and those who ask later."""
    api = MadeUp()
    note = Note("openai/test", "here/v1", {_key(n) for n in range(4)}, "a name")
    api.names["a name"], api.batches["batch-7"] = "batch-7", [{"custom_id": _key(n)} for n in range(4)]

    async def killed(batches: ModelBatches, notes: Notes) -> None:
        note.id = "batch-7" if noted else None
        await notes.write(note)

    async def use(batches: ModelBatches, notes: Notes) -> list[Any]:
        await notes.refresh()
        first = await _asks(0, 1)(batches, notes)
        return [*first, *await _asks(2, 3)(batches, notes)]

    run(api, killed)
    assert run(api, use) == [{"text": _key(n)} for n in range(4)]
    assert list(api.batches) == ["batch-7"]


def test_a_note_of_a_batch_that_never_was_is_dropped(run: Any, store: MemoryStore) -> None:
    api = MadeUp()
    run(api, lambda batches, notes: notes.write(Note("openai/test", "here/v1", {_key()}, "never sent")))

    async def use(batches: ModelBatches, notes: Notes) -> list[Any]:
        await notes.refresh()
        return await _asks(0)(batches, notes)

    assert run(api, use) == [{"text": _key()}]
    assert len(api.batches) == 1
    assert not [name for name in store.names() if "never sent" in name]


def test_what_another_has_noted_meanwhile_is_waited_for(run: Any, store: MemoryStore) -> None:
    api = MadeUp()
    api.batches["batch-9"] = [{"custom_id": _key(1)}]
    other = Note("openai/test", "here/v1", {_key(1)}, "another's", "batch-9")

    async def use(batches: ModelBatches, notes: Notes) -> list[Any]:
        asking = asyncio.create_task(_asks(1, 2)(batches, notes))
        await asyncio.sleep(0)
        content = {"model": other.model, "server": other.server, "id": other.id, "since": 0.0, "keys": [_key(1)]}
        store.put(f"{notes._place}{'0' * 32}.json", json.dumps(content).encode())
        return await asking

    assert run(api, use) == [{"text": _key(1)}, {"text": _key(2)}]
    assert [[line["custom_id"] for line in lines] for lines in api.batches.values()] == [[_key(1)], [_key(2)]]


def test_a_batch_that_its_provider_has_forgotten_is_sent_once_more(run: Any, store: MemoryStore) -> None:
    api = MadeUp()
    run(api, lambda batches, notes: notes.write(Note("openai/test", "here/v1", {_key()}, "forgotten", "batch-old")))
    assert run(api, _asks(0)) == [{"text": _key()}]  # found when it is about to be sent
    assert len(api.batches) == 1
    assert len(store.objects) == 1, "the new one's, which nobody has settled"


def test_a_note_whose_answers_are_all_kept_goes(run: Any, store: MemoryStore, tmp_path: Path) -> None:
    """Its maker was killed between sharing the answers and deleting it."""
    run(MadeUp(), lambda batches, notes: notes.write(Note("openai/test", "here/v1", {_key(1), _key(2)}, "read")))

    async def use(batches: ModelBatches, notes: Notes) -> list[str]:
        await notes.refresh()
        notes.tidy()
        return store.names()

    cache = AnswerCache(tmp_path / "answers.sqlite")
    cache.put(_key(1), {})
    assert len(run(MadeUp(), use)) == 1
    cache.put(_key(2), {})
    assert run(MadeUp(), use) == []
    cache.close()


def test_an_answer_to_create_that_is_lost_makes_no_second_batch(run: Any) -> None:
    api = MadeUp(ProviderError("unreachable", "the line broke"))
    assert run(api, _asks(0)) == [{"text": _key()}]
    assert len(api.batches) == 1


@pytest.mark.parametrize("looks", [19, 200])
def test_a_provider_that_is_away_is_asked_again_and_not_for_ever(run: Any, looks: int) -> None:
    api = MadeUp(BatchState("in_progress", 0), *[ProviderError("unreachable", "away")] * looks)
    (error,) = run(api, _asks(0))
    if looks == 19:
        assert error == {"text": _key()}
        return
    assert (type(error), error.kind) == (ProviderError, "unreachable")
    assert len(api.batches) == 1, "it is the same batch that is looked at"


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"null", b'{"custom_id": "of nobody", "response": {"status_code": 200}}', b"[" * 9999]
)
def test_lines_that_answer_nobody_are_passed_over(run: Any, line: bytes) -> None:
    api = MadeUp()
    api.extra = [line]
    assert run(api, _asks(0, 1)) == [{"text": _key(0)}, {"text": _key(1)}]


def test_a_request_that_has_no_line_is_asked_again_and_then_has_no_answer(run: Any) -> None:
    api = MadeUp(*[BatchState("expired", 0)] * 3)
    (error,) = run(api, _asks(0))
    assert (error.kind, str(error)) == ("timeout", "the batch expired before its turn came")
    assert len(api.batches) == 3


def test_a_form_that_is_refused_is_not_asked_for_again(run: Any) -> None:
    def answer(line: dict[str, Any]) -> Any:
        return ProviderError("bad_request", "json_schema?") if line["mode"] == "schema" else {"text": line["mode"]}

    async def use(batches: ModelBatches, notes: Notes) -> list[Any]:
        return [*await _asks(0)(batches, notes), *await _asks(1)(batches, notes)]

    api = MadeUp()
    api.answer_of = answer
    assert run(api, use) == [{"text": "json"}] * 2
    assert [[line["mode"] for line in lines] for lines in api.batches.values()] == [["schema"], ["json"], ["json"]]


def test_a_refusal_of_one_request_is_for_it_alone(run: Any) -> None:
    def answer(line: dict[str, Any]) -> Any:
        return ProviderError("context_window", "too long") if line["custom_id"] == _key(1) else {"text": "fine"}

    api = MadeUp()
    api.answer_of = answer
    fine, error, also = run(api, _asks(0, 1, 2))
    assert (fine, also, error.kind) == ({"text": "fine"}, {"text": "fine"}, "context_window")
    assert len(api.batches) == 1


def test_a_queue_that_is_full_is_filled_with_as_much_as_goes(run: Any) -> None:
    full = BatchState("failed", 0, (), QUEUE_IS_FULL, ProviderError("rate_limit", "full"))
    api = MadeUp(full, full)
    assert run(api, _asks(*range(8))) == [{"text": _key(n)} for n in range(8)]
    assert [len(lines) for lines in api.batches.values()] == [8, 4, 2, 2, 2, 2]


def test_one_that_does_not_fit_alone_has_no_answer(run: Any) -> None:
    full = BatchState("failed", 0, (), QUEUE_IS_FULL, ProviderError("rate_limit", "full"))
    (error,) = run(MadeUp(*[full] * 9), _asks(0))
    assert error.kind == "rate_limit"


def test_nothing_is_sent_for_work_that_another_has_taken_over(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise LeaseLost("taken over")

    monkeypatch.setattr(batch_queue, "check_leases", lost)
    api = MadeUp()
    (error,) = run(api, _asks(0))
    assert isinstance(error, LeaseLost)
    assert api.batches == {}


def test_a_cancelled_batch_is_nothing_to_go_on_with(run: Any) -> None:
    (error,) = run(MadeUp(BatchState("cancelled", 0)), _asks(0))
    assert isinstance(error, ConfigurationError)


def test_a_large_batch_does_not_wait_for_more(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_queue, "_MOST_REQUESTS", 3)
    api = MadeUp()
    assert len(run(api, _asks(*range(7)))) == 7
    assert [len(lines) for lines in api.batches.values()] == [3, 3, 1]


@pytest.mark.parametrize("top_logprobs", [None, 5])
def test_a_key_is_that_of_the_answer(tmp_path: Path, top_logprobs: int | None) -> None:
    messages, schema = [{"role": "user", "content": "x"}], {"type": "object"}
    asked: dict[str, Any] = {"messages": messages, "schema": schema, "temperature": 0.7, "max_tokens": 9}
    if top_logprobs:
        asked["top_logprobs"] = top_logprobs
    cache = AnswerCache(tmp_path / "answers.sqlite")
    (of_answer,) = LLMClient(ENDPOINT, cache, OPTIONS)._keys(ENDPOINT.model, asked)
    assert key_of_request(ENDPOINT, Request(route=ENDPOINT.model, **asked)) == of_answer
    cache.close()
