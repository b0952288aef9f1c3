"""Requests through real provider processes to a real endpoint, which fails in every way that it can."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from tasks.augment.providers import (
    Configuration,
    Deployment,
    ProviderDied,
    ProviderError,
    Providers,
    Reply,
    Request,
    log_path,
)
from tests.support.endpoint import endpoint, tell
from tests.support.wait import wait_for

pytestmark = pytest.mark.usefixtures("home")

Result = TypeVar("Result")
SCHEMA = {"type": "object", "properties": {"instruction": {"type": "string"}, "response": {"type": "string"}}}
NOBODY = "http://127.0.0.1:9/v1"


def _request(text: str = "Sort a list") -> Request:
    payload = {"agent": "rewriting", "instruction": text, "input": ""}
    return Request([{"role": "user", "content": json.dumps(payload)}], schema=SCHEMA, schema_name="Rewritten")


def _to(*bases: str, key: str | None = None, retries: int = 4, timeout_s: float = 20.0) -> Configuration:
    models = [Deployment(f"openai/model-{place}", base, key) for place, base in enumerate(bases)]
    return Configuration({"default": models}, retries, timeout_s)


def _with(configuration: Configuration, work: Callable[[Providers], Awaitable[Result]], processes: int = 1) -> Result:
    async def run() -> Result:
        async with Providers(configuration, processes) as providers:
            return await work(providers)

    return asyncio.run(run())


def _ask(configuration: Configuration) -> Reply:
    return _with(configuration, lambda providers: providers.complete(_request()))


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


@pytest.mark.parametrize("fault", ["429", "500", "hang", "cut"])
def test_a_request_that_fails_once_is_answered_in_the_end(fault: str) -> None:
    with endpoint(faults=1.0, kinds=[fault], faults_of_a_body=1) as url:
        started = time.monotonic()
        reply = _ask(_to(url, timeout_s=2.0))
        assert json.loads(reply.text)["response"]
        assert list(tell(url, "seen").values()) == [2]
        assert tell(url, "stats")["by_fault"] == {fault: 1}
    if fault == "429":
        assert time.monotonic() - started > 1.0, "Retry-After: 1 was not honoured"


@pytest.mark.parametrize(
    ("fault", "kind"), [("429", "rate_limit"), ("500", "server"), ("hang", "timeout"), ("cut", "unreachable")]
)
def test_a_request_that_always_fails_says_how(fault: str, kind: str) -> None:
    with endpoint(faults=1.0, kinds=[fault]) as url, pytest.raises(ProviderError) as caught:
        _ask(_to(url, retries=0, timeout_s=1.0))
    assert caught.value.kind == kind
    assert caught.value.retry_after_s == (1.0 if fault == "429" else None)


@pytest.mark.parametrize(("fault", "text"), [("empty", ""), ("refusal", "I'm sorry"), ("big", "word word")])
def test_strange_texts_come_back_as_they_are(fault: str, text: str) -> None:
    with endpoint(faults=1.0, kinds=[fault]) as url:
        reply = _ask(_to(url))
    assert reply.text.startswith(text)
    assert len(reply.text) == {"empty": 0, "refusal": 38, "big": 1_000_000}[fault]


def test_the_fallback_answers_where_the_primary_is_down() -> None:
    async def ask_many(providers: Providers) -> list[Reply]:
        return await asyncio.gather(*[providers.complete(_request(f"Sort list {n}")) for n in range(40)])

    with endpoint() as url:
        replies = _with(_to(NOBODY, NOBODY, url, retries=0), ask_many)
    assert {reply.model for reply in replies} == {"openai/model-2"}


def test_a_fallback_is_asked_in_the_form_that_it_takes() -> None:
    with endpoint() as url:
        models = [Deployment("openai/no_schema", NOBODY), Deployment("openai/no_json", url)]
        reply = _ask(Configuration({"default": models}, retries=0))
    assert (reply.model, reply.place) == ("openai/no_json", 1)
    assert "response" in reply.text


def test_the_form_that_a_server_takes_is_remembered() -> None:
    async def one_after_the_other(providers: Providers) -> None:
        for number in range(5):
            await providers.complete(_request(f"Sort list {number}"))

    with endpoint() as url:
        _with(Configuration({"default": [Deployment("openai/no_json", url)]}), one_after_the_other)
        assert tell(url, "stats")["requests"] == 5 + 2


def test_nobody_there_is_unreachable() -> None:
    with pytest.raises(ProviderError) as caught:
        _ask(_to(NOBODY, retries=0))
    assert caught.value.kind == "unreachable"


def test_many_faults_lose_no_request_and_never_cool_the_only_model_down() -> None:
    async def ask_many(providers: Providers) -> list[Reply]:
        return await asyncio.gather(*[providers.complete(_request(f"Sort list {n}")) for n in range(200)])

    with endpoint(faults=0.2, kinds=["429", "500", "cut"]) as url:
        replies = _with(_to(url, retries=6), ask_many)
        assert tell(url, "stats")["repeated"] == 0, "an answer that was paid for was asked for again"
    assert len(replies) == 200


@pytest.mark.parametrize("configured", [True, False], ids=["configured", "from the environment"])
def test_a_refused_key_is_named_but_not_shown(configured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "plain0key0of0no0known0shape"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with endpoint(require_key="right") as url:
        with pytest.raises(ProviderError, match="Incorrect API key") as caught:
            _ask(_to(url, key=key if configured else None))
        assert tell(url, "stats")["requests"] == 0
    assert caught.value.kind == "refused_key"
    assert key not in str(caught.value)
    assert key not in log_path().read_text()


@pytest.mark.parametrize(
    ("deployment", "kind", "words"),
    [
        (Deployment("nosuch/model"), "unknown_model", "PROVIDER/MODEL"),
        (Deployment("anthropic/claude-sonnet-4-5"), "missing_key", "ANTHROPIC_API_KEY"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(
    deployment: Deployment, kind: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with pytest.raises(ProviderError, match=words) as caught:
        _ask(Configuration({"default": [deployment]}))
    assert caught.value.kind == kind


def test_prices_and_answer_modes_are_told() -> None:
    names = ["openai/gpt-4o", "openai/gpt-3.5-turbo", "openai/self-hosted"]
    routes = {"default": [Deployment(name, NOBODY, "key") for name in names]}

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
        _with(_to(url), kill_twice)


@pytest.mark.parametrize("when", ["ready", "importing"])
def test_no_process_survives_a_killed_parent(when: str, tmp_path: Path) -> None:
    program = f"""
    import asyncio, pathlib
    from tasks.augment.providers import Configuration, Deployment, Providers
    async def main():
        async with Providers(Configuration({{"default": [Deployment("openai/x", {NOBODY!r})]}}), 2) as providers:
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


def test_leaving_ends_the_processes() -> None:
    async def pids(providers: Providers) -> list[int]:
        return providers.pids

    with endpoint() as url:
        assert _gone(_with(_to(url), pids, processes=2))


def test_as_many_requests_are_under_way_as_allowed_and_no_more() -> None:
    async def ask_many(providers: Providers) -> None:
        await asyncio.gather(*[providers.complete(_request(f"Sort list {n}")) for n in range(60)])

    with endpoint(latency=0.5) as url:
        routes = {"default": [Deployment("openai/x", url)]}
        _with(Configuration(routes, concurrency=20), ask_many, processes=2)
        assert tell(url, "stats")["max_in_flight"] == 20


def test_requests_keep_to_a_limit_a_minute() -> None:
    async def duration(providers: Providers) -> float:
        started = time.monotonic()
        await asyncio.gather(*[providers.complete(_request(f"Sort list {n}")) for n in range(6)])
        return time.monotonic() - started

    with endpoint() as url:
        assert _with(Configuration({"default": [Deployment("openai/x", url, rpm=120)]}), duration) >= 2.5


def test_the_stage_side_does_not_import_litellm() -> None:
    code = "import sys, tasks.augment.providers; sys.exit('litellm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
