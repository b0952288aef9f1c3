"""The way from a stage to its LLMs: requests over pipes to provider processes (`tasks.llm.litellm_process`).

LiteLLM takes milliseconds of CPU a request, so it runs in processes of its own, as many as there are cores for;
this side only passes lines. A provider process that dies is replaced, and what it had in flight is asked again
once of another one. No process survives its parent, however that one ends: each leaves when its input closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from infra import settings
from infra.errors import TransientError
from infra.processes.environment import for_provider
from tasks.llm.pacing import Pace

READY_TIMEOUT_S = 120.0
_MAX_LINE = 2**24


class ProviderError(Exception):
    """A request (or a configuration) that failed for good; `kind` is one of the protocol's.

    refused_key, unknown_model, quota, bad_request, content_policy, context_window, rate_limit, timeout, unreachable,
    server; of a configuration: missing_key, unknown_model.
    """

    def __init__(self, kind: str, message: str, retry_after_s: float | None = None):
        super().__init__(message)
        self.kind = kind
        self.retry_after_s = retry_after_s


class ProviderDied(TransientError):
    """A provider process ended (killed, out of memory) with requests in flight."""


@dataclass(frozen=True)
class Deployment:
    """A LiteLLM model name and, for self-hosted ones, its address. Limits are a minute's, and of a route's first."""

    model: str
    api_base: str | None = None
    api_key: str | None = field(default=None, repr=False)
    rpm: float | None = None
    tpm: float | None = None


@dataclass(frozen=True)
class Configuration:
    """Routes by name, each a model and its fallbacks in order; `timeout_s` is for one attempt."""

    routes: dict[str, list[Deployment]]
    retries: int = 4
    timeout_s: float = 120.0
    concurrency: int = 64


@dataclass(frozen=True)
class Request:
    """What to ask, and of which route. `schema` is the JSON schema of the answer."""

    messages: list[dict[str, str]]
    route: str = "default"
    temperature: float | None = None
    max_tokens: int | None = None
    schema: dict[str, Any] | None = None
    schema_name: str = "Answer"
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Reply:
    """What a model answered, and what it took (`cost_usd` is 0 where the model's price is unknown).

    `last_logprobs` has the last tokens with their most likely alternatives, where they were asked for and the
    provider tells them: [token, [[alternative, log-prob], …]] each. `place`: of the route's models, which answered.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    model: str
    finish_reason: str | None
    last_logprobs: list[Any] | None = None
    place: int = 0


class Providers:
    """`async with Providers(configuration) as providers: await providers.complete(request)`."""

    def __init__(self, configuration: Configuration, processes: int = 1, ready_timeout_s: float = READY_TIMEOUT_S):
        self.routes: dict[str, list[dict[str, Any]]] = {}  # what each route's models are and cost
        self._configuration = configuration
        self._ready_timeout_s = ready_timeout_s
        self._free = asyncio.Semaphore(configuration.concurrency)
        self._paces = {name: Pace(route[0].rpm, route[0].tpm) for name, route in configuration.routes.items()}
        self._children: list[_Child | None] = [None] * processes
        self._keepers: list[asyncio.Task[None]] = []
        self._changed = asyncio.Condition()
        self._failure: Exception | None = None

    async def __aenter__(self) -> Providers:
        """Raises ProviderError for a configuration that cannot work, TransientError if no process gets ready."""
        self._keepers = [asyncio.create_task(self._keep(place)) for place in range(len(self._children))]
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._failure or None not in self._children)
            if self._failure:
                raise self._failure
        except BaseException:
            await self._end()
            raise
        self.routes = self._children[0].routes if self._children[0] else {}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    @property
    def pids(self) -> list[int]:
        """The processes that are ready."""
        return [child.pid for child in self._children if child]

    async def complete(self, request: Request) -> Reply:
        """Ask; at most `concurrency` at a time. Raises ProviderError, or ProviderDied if it did so twice."""
        pace = self._paces[request.route]
        async with self._free:
            await pace.turn()
            try:
                reply = await (await self._least_busy()).ask(request)
            except ProviderDied:
                reply = await (await self._least_busy()).ask(request)
        pace.used(reply.prompt_tokens + reply.completion_tokens)
        return reply

    async def tokens(self, route: str, texts: list[str]) -> list[int]:
        """Tokens of each text, as far as LiteLLM knows the tokenizer of the route's model."""
        return await (await self._least_busy()).send({"route": route, "count": texts})

    async def _least_busy(self) -> _Child:
        async with self._changed:
            await self._changed.wait_for(lambda: self._failure or any(self._children))
        if alive := [child for child in self._children if child]:
            return min(alive, key=lambda child: len(child.waiting))
        assert self._failure
        raise self._failure

    async def _keep(self, place: int) -> None:
        """Keep one child running, until it cannot even be started."""
        while True:
            try:
                child = await self._started()
            except (ProviderError, TransientError) as error:
                await self._fail(error)
                return
            try:
                await self._set(place, child)
                await child.listen()
            finally:
                self._children[place] = None
                await child.end()

    async def _started(self) -> _Child:
        child = _Child()
        try:
            await asyncio.wait_for(child.start(self._configuration), self._ready_timeout_s)
        except BaseException as error:
            await child.end()
            if isinstance(error, TimeoutError):
                late = f"a provider process was not ready after {self._ready_timeout_s:.0f} s; log: {log_path()}"
                raise TransientError(late) from error
            raise
        return child

    async def _set(self, place: int, child: _Child) -> None:
        async with self._changed:
            self._children[place] = child
            self._changed.notify_all()

    async def _fail(self, error: Exception) -> None:
        async with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    async def _end(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)


class _Child:
    """One provider process."""

    def __init__(self) -> None:
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        self.routes: dict[str, list[dict[str, Any]]] = {}
        self._asked = 0
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    async def start(self, configuration: Configuration) -> None:
        log_path().parent.mkdir(parents=True, exist_ok=True)
        models = [deployment.model for route in configuration.routes.values() for deployment in route]
        with log_path().open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tasks.llm.litellm_process",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=_MAX_LINE,
                start_new_session=True,  # Ctrl-C is for the parent to act on
                env=for_provider(models) | {"PYTHONPATH": _python_path()},
            )
        self._send(asdict(configuration))
        first = json.loads(await self._line() or "{}")
        if "error" in first:
            raise ProviderError(**first["error"])
        if "ready" not in first:
            raise TransientError(f"a provider process ended before it was ready; log: {log_path()}")
        self.routes = first["ready"]["routes"]

    async def ask(self, request: Request) -> Reply:
        return Reply(**await self.send(vars(request)))

    async def send(self, line: dict[str, Any]) -> Any:
        """The fields of the answer, or for texts to count their numbers."""
        self._asked += 1
        number = self._asked
        self.waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"id": number, **line})
            return await self.waiting[number]
        finally:
            self.waiting.pop(number, None)

    async def listen(self) -> None:
        """Hand out answers until the process ends; then fail what still waits."""
        try:
            while line := await self._line():
                self._hand_out(json.loads(line))
        finally:
            for future in self.waiting.values():
                if not future.done():
                    future.set_exception(ProviderDied(f"a provider process ended; log: {log_path()}"))

    def _hand_out(self, answer: dict[str, Any]) -> None:
        future = self.waiting.get(answer.pop("id"))
        if future is None or future.done():  # its asker was cancelled
            return
        if "error" in answer:
            future.set_exception(ProviderError(**answer["error"]))
        else:
            future.set_result(answer.get("tokens", answer))

    async def end(self) -> None:
        if self._process and self._process.stdin:
            self._process.stdin.close()
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.communicate()  # to the end of its output, which closes the pipe

    def _send(self, line: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")

    async def _line(self) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        return await self._process.stdout.readline()


def log_path() -> Path:
    """What provider processes say beside their answers."""
    return settings.home() / "logs" / "provider.log"


def _python_path() -> str:
    """Children import the same `tasks` as we do, also when the product is not installed."""
    here = str(Path(__file__).parents[2])
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
