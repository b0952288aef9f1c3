"""Requests through real provider processes to a real endpoint, which fails in every way that it can."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from tasks.llm.litellm_pool import Providers, log_path
from tasks.llm.protocol import Configuration, LLMEndpoint, ProviderDied, ProviderError, Reply, Request
from tests.support.endpoint import endpoint, tell
from tests.support.wait import wait_for

pytestmark = pytest.mark.usefixtures("home")

Result = TypeVar("Result")
SCHEMA = {"type": "object", "properties": {"instruction": {"type": "string"}, "response": {"type": "string"}}}
NOBODY = "http://127.0.0.1:9/v1"


def _request(text: str = "Sort a list", route: str = "default") -> Request:
    payload = {"agent": "rewriting", "instruction": text, "input": ""}
    return Request(
        [{"role": "user", "content": json.dumps(payload)}], route=route, schema=SCHEMA, schema_name="Rewritten"
    )


def _to(*bases: str, retries: int = 4) -> Configuration:
    models = [LLMEndpoint(f"openai/model-{place}", base) for place, base in enumerate(bases)]
    return Configuration({"default": models}, retries, timeout_s=20.0)


def _with(configuration: Configuration, work: Callable[[Providers], Awaitable[Result]], processes: int = 0) -> Result:
    async def run() -> Result:
        async with Providers(configuration, processes) as providers:
            return await work(providers)

    return asyncio.run(run())


def _ask(configuration: Configuration) -> Reply:
    return _with(configuration, lambda providers: providers.complete(_request()))


def _ask_each(bases: dict[str, str], retries: int = 4, timeout_s: float = 20.0) -> dict[str, Any]:
    """Each route once, of one process: its reply, or why there is none, and the seconds until then."""
    configuration = Configuration(
        {name: [LLMEndpoint("openai/m", base)] for name, base in bases.items()}, retries, timeout_s
    )

    async def one(providers: Providers, name: str) -> tuple[Reply | BaseException, float]:
        began = time.monotonic()
        (said,) = await asyncio.gather(providers.complete(_request(route=name)), return_exceptions=True)
        return said, time.monotonic() - began

    async def each(providers: Providers) -> dict[str, Any]:
        return dict(zip(bases, await asyncio.gather(*(one(providers, name) for name in bases)), strict=True))

    return _with(configuration, each)


@contextlib.contextmanager
def _failing(kinds: Iterable[str], **options: Any) -> Iterator[dict[str, str]]:
    """For each kind an endpoint that always fails so; their addresses."""
    with contextlib.ExitStack() as stack:
        yield {kind: stack.enter_context(endpoint(faults=1.0, kinds=[kind], **options)) for kind in kinds}


def _gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


def test_an_answer_comes_back_with_what_it_took() -> None:
    with endpoint() as url:
        reply = _ask(_to(url))
    assert json.loads(reply.text)["instruction"].startswith("Sort a list ")
    assert (reply.prompt_tokens, reply.completion_tokens) == (
        len(_request().messages[0]["content"]) // 4 + 1,
        len(reply.text) // 4 + 1,
    )
    assert (reply.model, reply.finish_reason, reply.cost_usd) == ("openai/model-0", "stop", 0.0)


def test_a_request_that_fails_once_is_answered_in_the_end() -> None:
    with _failing(["429", "500", "hang", "cut"], faults_of_a_body=1) as urls:
        for fault, (reply, seconds) in _ask_each(urls, timeout_s=2.0).items():
            assert json.loads(reply.text)["response"], fault
            assert list(tell(urls[fault], "seen").values()) == [2], fault
            assert tell(urls[fault], "stats")["by_fault"] == {fault: 1}
            if fault == "429":
                assert seconds > 1.0, "Retry-After: 1 was not honoured"


def test_a_request_that_always_fails_says_how() -> None:
    kinds = {"429": "rate_limit", "500": "server", "hang": "timeout", "cut": "unreachable", "nobody": "unreachable"}
    with _failing(["429", "500", "hang", "cut"]) as urls:
        for fault, (caught, _) in _ask_each(urls | {"nobody": NOBODY}, retries=0, timeout_s=1.0).items():
            assert isinstance(caught, ProviderError), fault
            assert caught.kind == kinds[fault]
            assert caught.retry_after_s == (1.0 if fault == "429" else None), fault


def test_strange_texts_come_back_as_they_are() -> None:
    begins, lengths = (
        {"empty": "", "refusal": "I'm sorry", "big": "word word"},
        {"empty": 0, "refusal": 38, "big": 10**6},
    )
    with _failing(begins) as urls:
        for fault, (reply, _) in _ask_each(urls).items():
            assert reply.text.startswith(begins[fault])
            assert len(reply.text) == lengths[fault]


def test_the_fallback_answers_where_the_primary_is_down() -> None:
    async def ask_many(providers: Providers) -> list[Reply]:
        return await asyncio.gather(*[providers.complete(_request(f"Sort list {n}")) for n in range(40)])

    with endpoint() as url:
        replies = _with(_to(NOBODY, NOBODY, url, retries=0), ask_many)
    assert {reply.model for reply in replies} == {"openai/model-2"}


def test_a_model_is_asked_in_the_form_that_it_takes_a_fallback_too_and_the_form_is_remembered() -> None:
    async def one_after_the_other(providers: Providers) -> list[Reply]:
        return [await providers.complete(_request(f"Sort list {number}")) for number in range(5)]

    with endpoint() as url:
        models = [LLMEndpoint("openai/no_schema", NOBODY), LLMEndpoint("openai/no_json", url)]
        replies = _with(Configuration({"default": models}, retries=0), one_after_the_other)
        assert tell(url, "stats")["requests"] == 5 + 2
    assert {(reply.model, reply.place) for reply in replies} == {("openai/no_json", 1)}
    assert all("response" in reply.text for reply in replies)


def test_many_faults_lose_no_request_and_never_cool_the_only_model_down() -> None:
    async def ask_many(providers: Providers) -> list[Reply]:
        return await asyncio.gather(*[providers.complete(_request(f"Sort list {n}")) for n in range(200)])

    with endpoint(faults=0.2, kinds=["429", "500", "cut"]) as url:
        replies = _with(_to(url, retries=6), ask_many)
        assert tell(url, "stats")["repeated"] == 0, "an answer that was paid for was asked for again"
    assert len(replies) == 200


@pytest.mark.parametrize("processes", [0, 1])
def test_a_refused_key_is_named_but_not_shown(
    processes: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = {"configured": "plain0key0of0no0known0shape", "of the environment": "another0key0of0no0shape"}
    monkeypatch.setenv("OPENAI_API_KEY", keys["of the environment"])

    async def ask(providers: Providers) -> list[Reply | BaseException]:
        asked = [providers.complete(_request(route=name)) for name in keys]
        return await asyncio.gather(*asked, return_exceptions=True)

    with endpoint(require_key="right") as url:
        given = {"configured": keys["configured"], "of the environment": None}
        routes = {name: [LLMEndpoint("openai/m", url, key)] for name, key in given.items()}
        refusals = _with(Configuration(routes), ask, processes)
        assert tell(url, "stats")["requests"] == 0
    said = "".join(capfd.readouterr()) + (log_path().read_text() if processes else "")
    for refused in refusals:
        assert isinstance(refused, ProviderError)
        assert refused.kind == "refused_key"
        assert "Incorrect API key" in str(refused)
        assert not [key for key in keys.values() if key in str(refused) + said]


@pytest.mark.parametrize(
    ("deployment", "kind", "words"),
    [
        (LLMEndpoint("nosuch/model"), "unknown_model", "PROVIDER/MODEL"),
        (LLMEndpoint("anthropic/claude-sonnet-4-5"), "missing_key", "ANTHROPIC_API_KEY"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(
    deployment: LLMEndpoint, kind: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with pytest.raises(ProviderError, match=words) as caught:
        _ask(Configuration({"default": [deployment]}))
    assert caught.value.kind == kind


def test_prices_and_answer_modes_are_told() -> None:
    names = ["openai/gpt-4o", "openai/gpt-3.5-turbo", "openai/self-hosted"]
    routes = {"default": [LLMEndpoint(name, NOBODY, "key") for name in names]}

    async def described(providers: Providers) -> list[dict[str, object]]:
        return providers.routes["default"]

    told = _with(Configuration(routes), described)
    assert [(model["mode"], model["priced"]) for model in told] == [("schema", True), ("json", True), ("schema", False)]
    assert told[0]["max_output_tokens"] == 16384


def test_a_killed_process_is_replaced_and_its_requests_are_asked_again() -> None:
    async def kill_and_ask(providers: Providers) -> list[Reply]:
        asked = [asyncio.create_task(providers.complete(_request(f"Sort list {n}"))) for n in range(8)]
        while (await asyncio.to_thread(tell, url, "stats"))["requests"] < 8:
            await asyncio.sleep(0.05)
        os.kill(providers.pids[0], signal.SIGKILL)
        return await asyncio.gather(*asked)

    with endpoint(latency=5) as url:
        assert len(_with(_to(url), kill_and_ask, processes=2)) == 8
        assert tell(url, "stats")["requests"] == 12  # half of the eight were with the process that died
        assert len(_with(_to(url), kill_and_ask, processes=1)) == 8


def test_a_request_that_kills_twice_is_a_transient_error() -> None:
    async def kill_twice(providers: Providers) -> None:
        asked = asyncio.create_task(providers.complete(_request()))
        for _ in range(2):
            while not providers.pids:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
            os.kill(providers.pids[0], signal.SIGKILL)
            await asyncio.sleep(0.2)
        await asked

    with endpoint(latency=5.0) as url, pytest.raises(ProviderDied):
        _with(_to(url), kill_twice, processes=1)


@pytest.mark.parametrize("when", ["ready", "importing"])
def test_no_process_survives_a_killed_parent(when: str, tmp_path: Path) -> None:
    program = f"""
    import asyncio, pathlib
    from tasks.llm.litellm_pool import Providers
    from tasks.llm.protocol import Configuration, LLMEndpoint
    async def main():
        async with Providers(Configuration({{"default": [LLMEndpoint("openai/x", {NOBODY!r})]}}), 2) as providers:
            pathlib.Path({str(tmp_path / "ready")!r}).touch()
            await asyncio.sleep(600)
    asyncio.run(main())
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    wait_for(lambda: (tmp_path / "ready").exists() or when == "importing", alive=[parent])
    wait_for(lambda: len(psutil.Process(parent.pid).children()) == 2, alive=[parent])
    pids = [child.pid for child in psutil.Process(parent.pid).children()]
    time.sleep(1.0)  # in the middle of its import of LiteLLM, or at rest
    assert not _gone(pids[:1])
    assert not _gone(pids[1:])
    parent.kill()
    parent.wait()
    wait_for(lambda: _gone(pids), 10)


@pytest.mark.parametrize("processes", [0, 2])
def test_requests_are_under_way_together_and_leaving_ends_the_processes(processes: int) -> None:
    async def ask_many(providers: Providers) -> list[int]:
        await asyncio.gather(*[providers.complete(_request(f"Sort list {n}")) for n in range(20)])
        return providers.pids

    with endpoint(latency=1.5) as url:
        pids = _with(Configuration({"default": [LLMEndpoint("openai/x", url)]}), ask_many, processes)
        assert tell(url, "stats")["max_in_flight"] == 20
    assert len(pids) == processes
    assert _gone(pids)


def test_requests_keep_to_a_limit_a_minute() -> None:
    async def duration(providers: Providers) -> float:
        started = time.monotonic()
        await asyncio.gather(*[providers.complete(_request(f"Sort list {n}")) for n in range(6)])
        return time.monotonic() - started

    with endpoint() as url:
        assert _with(Configuration({"default": [LLMEndpoint("openai/x", url, rpm=120)]}), duration) >= 2.5


def test_the_stage_side_does_not_import_litellm() -> None:
    code = "import sys, tasks.llm.litellm_pool; sys.exit('litellm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
