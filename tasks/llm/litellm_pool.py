"""The way from a stage to its LLMs: LiteLLM in this process, or requests over pipes to processes of its own.

LiteLLM takes milliseconds of CPU a request. Beside the stage that is enough for hundreds of requests in flight that
take seconds each; for more, it runs in processes of its own (`tasks.llm.litellm_process`), and this side only passes
lines. One that dies is replaced, and what it had in flight is asked again once of another one. No process survives its
parent, however that one ends: each leaves when its input closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from infra import settings
from infra.errors import TransientError
from infra.processes.environment import for_provider
from tasks.llm.litellm_here import LiteLLMHere
from tasks.llm.pacing import RateLimit
from tasks.llm.protocol import Configuration, ProviderDied, ProviderError, Reply, Request, content_of

READY_TIMEOUT_S = 120.0
_MAX_LINE = 2**24


class Providers:
    """`async with Providers(configuration) as providers: await providers.complete(request)`."""

    def __init__(self, configuration: Configuration, processes: int = 0, ready_timeout_s: float = READY_TIMEOUT_S):
        """With 0 `processes`, LiteLLM runs in this one."""
        self.routes: dict[str, list[dict[str, Any]]] = {}  # what each route's models are and cost
        self._configuration = configuration
        self._ready_timeout_s = ready_timeout_s
        self._paces = {name: RateLimit(route[0].rpm, route[0].tpm) for name, route in configuration.routes.items()}
        self._in_process = processes == 0
        self._children: list[_Child | LiteLLMHere | None] = [None] * max(processes, 1)
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
        return [child.pid for child in self._children if isinstance(child, _Child)]

    async def complete(self, request: Request) -> Reply:
        """Ask. Raises ProviderError, or ProviderDied if a process did so twice."""
        pace = self._paces[request.route]
        await pace.turn()
        try:
            answer = await (await self._least_busy()).send(vars(request))
        except ProviderDied:
            answer = await (await self._least_busy()).send(vars(request))
        reply = Reply(**answer)
        pace.used(reply.prompt_tokens + reply.completion_tokens)
        return reply

    async def sent_before(self, request: Request) -> bool:
        """Whether the request is paid for already, and only its answer is to come."""
        return False

    def settled(self, requests: Sequence[Request]) -> None:
        """What was answered is kept, or of no use: it need not be found again."""

    def tidy(self) -> None:
        """Leave nothing behind of what is settled, now that all answers are shared."""

    async def tokens(self, route: str, texts: list[str]) -> list[int]:
        """Tokens of each text, as far as LiteLLM knows the tokenizer of the route's model."""
        return await (await self._least_busy()).send({"route": route, "count": texts})

    async def _least_busy(self) -> _Child | LiteLLMHere:
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

    async def _started(self) -> _Child | LiteLLMHere:
        child = LiteLLMHere() if self._in_process else _Child()
        try:
            await asyncio.wait_for(child.start(self._configuration), self._ready_timeout_s)
        except BaseException as error:
            await child.end()
            if isinstance(error, TimeoutError):
                late = f"LiteLLM was not ready after {self._ready_timeout_s:.0f} s; log: {log_path()}"
                raise TransientError(late) from error
            raise
        return child

    async def _set(self, place: int, child: _Child | LiteLLMHere) -> None:
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
        future = self.waiting.get(answer["id"])
        if future is None or future.done():  # its asker was cancelled
            return
        try:
            future.set_result(content_of(answer))
        except ProviderError as error:
            future.set_exception(error)

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
